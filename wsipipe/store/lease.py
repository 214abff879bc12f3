"""Leases: who works on what, among any number of processes on any hosts that share a folder.

A lease only places work. It never decides what is done (the finished file does), so a lease that
is lost or stolen costs at most duplicated work, never a wrong file. No daemon, no file locks (they
are off or broken on many network file systems); what is used is atomic there too:

- taken by `link` of a file that already holds its content: nobody ever sees an empty lease;
- kept alive by its modification time, set by the file server;
- stale when that time is older than the time-to-live by the server's own clock (read back from a
  file touched there), or at once when its owner was a process of this host that is dead;
- stolen by `rename`, which one of several thieves wins.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from wsipipe.owner import Owner, this_process
from wsipipe.store.names import safe_name
from wsipipe.store.publish import LEASE_TTL_S, file_system_now, make_folder, output_error

__all__ = ["Lease", "Leases"]

# How long a reading of the server's clock is carried forward by this host's monotonic clock.
_CLOCK_S = 20.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lease:
    """One claim on one key; made by `Leases.acquire`.

    Attributes:
        key: What is claimed, for instance a slide id.
        held: False once another process has taken it over: then drop the work.
    """

    def __init__(self, leases: Leases, key: str, path: Path, token: str) -> None:
        self.key = key
        self.held = True
        self._leases = leases
        self._path = path
        self._token = token

    def check(self) -> bool:
        """Look at the lease now; True if it is still this process's."""
        content = _read(self._path)
        if content is None or content.get("token") != self._token:
            self.held = False
        return self.held

    def beat(self) -> bool:
        """Refresh the lease; False if it is lost."""
        if self.held and self.check():
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self.held = False
        return self.held

    def release(self) -> None:
        """Give the key back. Nothing happens if the lease is lost already."""
        self._leases._forget(self)
        # A server that is away now will find the lease stale later.
        with suppress(OSError):
            if self.held and self.check():
                self._path.unlink(missing_ok=True)
        self.held = False

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _read(path: Path) -> dict[str, Any] | None:
    """Content of a lease; None if there is none (or it was damaged from outside)."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class Leases:
    """The leases that this process holds in one folder, and the thread that keeps them alive.

    Args:
        folder: Shared by all who work together, on one file system.
        ttl_s: A lease that was not refreshed for so long may be taken over.
        beat_s: Time between refreshes; at most a fifth of `ttl_s`.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(
        self, folder: str | Path, *, ttl_s: float = LEASE_TTL_S, beat_s: float | None = None
    ) -> None:
        self.folder = make_folder(folder)
        self.ttl_s = ttl_s
        self.beat_s = min(60.0, ttl_s / 5) if beat_s is None else beat_s
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._clock: tuple[float, float] | None = None
        self._thread: threading.Thread | None = None

    def acquire(self, key: str, details: Mapping[str, Any] | None = None) -> Lease | None:
        """Claim `key`; None if somebody else holds it. Look again whether the work is done, then.

        Args:
            key: Any text.
            details: Further facts for those who look at the lease, for instance the job's number.
        """
        path = self._path(key)
        token = uuid.uuid4().hex
        owner = this_process()
        content = {
            **(details or {}),
            "key": key,
            "token": token,
            "host": owner.host,
            "pid": owner.pid,
            "start": owner.start,
            "taken_unix": round(time.time(), 3),
        }
        draft = self.folder / f".{path.name}.{token}"
        try:
            self._write(draft, json.dumps(content))
            try:
                if not self._link(draft, path) and not (
                    self._bury_if_stale(path, token) and self._link(draft, path)
                ):
                    return None
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(path, error) from error
        lease = Lease(self, key, path, token)
        with self._lock:
            self._held.add(lease)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._keep_alive, name="wsipipe-leases", daemon=True
                )
                self._thread.start()
        return lease

    def holder(self, key: str) -> dict[str, Any] | None:
        """What the lease on `key` says (host, pid, ...), or None if nobody claims it."""
        return _read(self._path(key))

    def others(self) -> dict[str, tuple[str, int]]:
        """The keys that other processes hold, each with its holder's host and pid."""
        me = this_process()
        found = {}
        for path in self.folder.glob("*.lease"):
            content = _read(path) or {}
            holder = (str(content.get("host")), int(content.get("pid", 0)))
            if holder != (me.host, me.pid):
                found[str(content.get("key"))] = holder
        return found

    def close(self) -> None:
        """Release what is held, end the thread, remove the folder if it is empty."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for lease in list(self._held):
            lease.release()
        with suppress(OSError):
            self.remove_remains()
            self.folder.rmdir()

    def remove_remains(self) -> None:
        """Remove drafts of processes that were killed while they took a lease, and stale leases."""
        for path in list(self.folder.iterdir()):
            with suppress(FileNotFoundError):
                if path.suffix == ".guard":
                    self._remove_old_guard(path)
                elif path.suffix == ".lease" and not path.name.startswith("."):
                    self._bury_if_stale(path, uuid.uuid4().hex)
                elif self._age(path, fresh=False) > self.ttl_s or _is_of_dead(_read(path)):
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{safe_name(key)}.lease"

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except FileNotFoundError:  # the last one out has removed the folder
            make_folder(self.folder)
            path.write_text(text)

    def _link(self, draft: Path, path: Path) -> bool:
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links (exFAT, some FUSE and SMB mounts): a folder is made
            # by one process only, and guards the moment between the look and the rename.
            return self._rename_into_gap(draft, path)
        return True

    def _rename_into_gap(self, draft: Path, path: Path) -> bool:
        guard = path.with_name(f".{path.name}.guard")
        try:
            guard.mkdir()
        except FileExistsError:
            self._remove_old_guard(guard)
            return False
        try:
            if path.exists():
                return False
            draft.rename(path)
            return True
        finally:
            guard.rmdir()

    def _remove_old_guard(self, guard: Path) -> None:
        """Remove the guard of a process that was killed in the moment that it guards."""
        with suppress(FileNotFoundError):
            if self._age(guard, fresh=False) > self.ttl_s:
                guard.rmdir()

    def _age(self, path: Path, *, fresh: bool) -> float:
        """Seconds since `path` was refreshed, by the clock of its file system."""
        if fresh or self._clock is None or time.monotonic() - self._clock[1] > _CLOCK_S:
            self._clock = (file_system_now(self.folder), time.monotonic())
        now = self._clock[0] + time.monotonic() - self._clock[1]
        age = now - path.stat().st_mtime
        # A time far in the future was written before the clock was set back: its owner would have
        # refreshed it since.
        return age if age > -self.ttl_s else self.ttl_s + 1

    def _bury_if_stale(self, path: Path, token: str) -> bool:
        """Remove the lease at `path` if it is stale; True if there is room for a new one."""
        try:
            if self._age(path, fresh=False) <= self.ttl_s and not _is_of_dead(_read(path)):
                return False
            grave = self.folder / f".stale.{path.name}.{token}"
            path.rename(grave)  # one of several thieves succeeds
        except FileNotFoundError:
            return True
        try:
            # Refreshed, or released and taken anew, between the look and the rename: give it back.
            if self._age(grave, fresh=True) <= self.ttl_s and not _is_of_dead(_read(grave)):
                self._link(grave, path)
                return False
        finally:
            grave.unlink(missing_ok=True)
        return True

    def _forget(self, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)

    def _keep_alive(self) -> None:
        while not self._stop.wait(self.beat_s):
            with self._lock:
                held = list(self._held)
            for lease in held:
                # A server that is away for a moment is no reason to give up: try at the next beat.
                with suppress(OSError):
                    lease.beat()


def _is_of_dead(content: Mapping[str, Any] | None) -> bool:
    """True if a lease was written by a process of this host that no longer lives."""
    try:
        owner = Owner(str(content["host"]), int(content["pid"]), str(content["start"]))  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return False
    return owner.state() == "dead"
