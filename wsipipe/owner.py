"""Who wrote this: host, pid and start time, so that the dead can be told from the living.

A pid alone is not enough (pids are used again), nor is a host name (containers share it while each
has its own pids). An owner is therefore written `<host>.<pid>.<start>`, where `host` carries the
pid namespace unless it is the machine's own, and `start` carries the boot.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Owner", "this_host", "this_process"]

# The machine's own pid namespace has this inode on every Linux (PROC_PID_INIT_INO in the kernel).
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC


@functools.cache
def this_host() -> str:
    """Name of this host (and pid namespace), made of letters, digits, `-` and `_` only."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().split(".")[0])[:48] or "host"
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return name
    return name if namespace == _INITIAL_PID_NAMESPACE else f"{name}-ns{namespace}"


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:6]
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When process `pid` of this host started, as a word; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_by_ps(pid)
    except ProcessLookupError:
        return None
    except OSError:
        return _start_by_ps(pid)
    # The command name (field 2) may contain spaces and brackets; what follows it does not.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):  # a killed child whose parent has not looked yet
        return None
    return f"{_boot()}{int(fields[19]):x}"


def _start_by_ps(pid: int) -> str | None:
    """The same where there is no /proc (macOS)."""
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return re.sub(r"[^A-Za-z0-9]", "", done.stdout) or None


@dataclass(frozen=True, slots=True)
class Owner:
    """One process of one host."""

    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"{self.host}.{self.pid}.{self.start}"

    def state(self) -> Literal["alive", "dead", "elsewhere"]:
        """Whether the process lives; another host's cannot be asked."""
        if self.host != this_host():
            return "elsewhere"
        return "alive" if _start_of(self.pid) == self.start else "dead"


@functools.cache
def _process(pid: int) -> Owner:
    return Owner(this_host(), pid, _start_of(pid) or "0")


def this_process() -> Owner:
    """The owner that this process writes into names and leases (right after a fork, too)."""
    return _process(os.getpid())
