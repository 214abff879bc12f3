"""A hub on loopback: the HTTP protocol that huggingface_hub speaks, for tests.

    from hubserver import hub            # the fixture: environment set, empty cache
    hub.add("owkin/phikon", {"model.safetensors": data}, commit="0" * 40)

Large files are answered as the real hub answers them: HEAD and GET on `resolve` redirect to storage
and carry `X-Linked-Etag` (sha256) and `X-Linked-Size`; storage honours Range. Xet is not spoken.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

__all__ = ["Hub", "Repo", "hub", "safetensors_bytes", "serve_hub"]

_LARGE = (".safetensors", ".bin", ".pth", ".pt")


@dataclass
class Repo:
    """One repository at one commit."""

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    token: str = "hf_loopback"

    def __post_init__(self) -> None:
        self.sha256 = {file: hashlib.sha256(data).hexdigest() for file, data in self.files.items()}


@dataclass
class Hub:
    """The server's content, its faults, and what was asked of it."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)  # bytes after which a download breaks; once
    corrupt: bool = False  # storage answers with one byte changed
    delay_s: float = 0.0  # before each storage answer
    url: str = ""

    def add(
        self,
        repo: str,
        files: dict[str, bytes | str],
        *,
        commit: str | None = None,
        gated: bool = False,
    ) -> Repo:
        """Publish a repository; the commit defaults to a hash of its content."""
        content = {k: v.encode() if isinstance(v, str) else v for k, v in files.items()}
        digest = hashlib.sha1(repr(sorted((k, len(v)) for k, v in content.items())).encode())
        self.repos[repo.lower()] = Repo(content, commit or digest.hexdigest(), gated)
        return self.repos[repo.lower()]

    def downloads(self) -> int:
        """How many times storage was asked for bytes."""
        return sum(line.startswith("GET /storage/") for line in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/storage/([0-9a-f]{64})", path):
            return self._storage(match[1], send_body)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(match[1], send_body)
        if match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name = f"datasets/{match[1]}" if path.startswith("/datasets/") else match[1]
            return self._resolve(name, match[2], match[3], send_body)
        return self._plain(404, b"", {"X-Error-Code": "RepoNotFound"}, send_body)

    def _repo(self, name: str, send_body: bool) -> Repo | None:
        repo = self.hub.repos.get(name.lower())
        if repo is None:
            self._plain(401, b"", {"X-Error-Code": "RepoNotFound"}, send_body)
            return None
        if repo.gated and self.headers.get("authorization") != f"Bearer {repo.token}":
            self._plain(
                401 if "authorization" not in self.headers else 403,
                b"Access to model is restricted.",
                {"X-Error-Code": "GatedRepo"},
                send_body,
            )
            return None
        return repo

    def _info(self, name: str, send_body: bool) -> None:
        repo = self._repo(name, send_body)
        if repo is None:
            return
        body = {
            "id": name,
            "modelId": name,
            "sha": repo.commit,
            "gated": "auto" if repo.gated else False,
            "private": False,
            "tags": [],
            "siblings": [{"rfilename": file} for file in repo.files],
        }
        self._plain(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, send_body)

    def _resolve(self, name: str, revision: str, file: str, send_body: bool) -> None:
        repo = self._repo(name, send_body)
        if repo is None:
            return None
        if revision not in ("main", repo.commit):
            return self._plain(404, b"", {"X-Error-Code": "RevisionNotFound"}, send_body)
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if file not in repo.files:
            return self._plain(404, b"", {**headers, "X-Error-Code": "EntryNotFound"}, send_body)
        data = repo.files[file]
        if not file.endswith(_LARGE):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return self._plain(200, data, {**headers, "ETag": f'"{blob}"'}, send_body)
        digest = repo.sha256[file]
        # As the real hub's storage: another host, which must not be followed for metadata and must
        # not be sent the token.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        headers |= {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{storage}/storage/{digest}",
        }
        return self._plain(302, b"", headers, send_body)

    def _storage(self, digest: str, send_body: bool) -> None:
        data = next(
            (
                repo.files[file]
                for repo in self.hub.repos.values()
                for file, known in repo.sha256.items()
                if known == digest
            ),
            None,
        )
        if data is None or "authorization" in self.headers:
            return self._plain(403, b"", {}, send_body)
        time.sleep(self.hub.delay_s)
        if self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status, headers = 0, 200, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            self.hub.ranges.append(asked)
            start, status = int(re.fullmatch(r"bytes=(\d+)-.*", asked)[1]), 206  # type: ignore[index]
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if send_body and self.hub.cut_after:
            whole, body = len(body), body[: self.hub.cut_after.pop(0)]
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(whole))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
            return None
        return self._plain(status, body, headers, send_body)

    def _plain(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self.wfile.write(body)


def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub until the generator is closed."""
    content = Hub()
    handler = type("Handler", (_Handler,), {"hub": content})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    content.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield content
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, and an environment that knows no other; caches are empty."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("WSIPIPE_CACHE", str(tmp_path / "wsipipe-cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for served in serve_hub():
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def safetensors_bytes(state: dict) -> bytes:
    """A state dict as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({key: value.contiguous() for key, value in state.items()})
