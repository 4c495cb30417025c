"""A Hugging Face Hub small enough for tests: it answers on 127.0.0.1 what the real one answers to downloads.

Large files (here: .safetensors) are redirected to another host, as on the real one, with their sha256 as entity tag; small ones
have the git hash of their content.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

PROXIES = [name for key in ("http", "https", "all", "no") for name in (f"{key}_proxy", f"{key.upper()}_PROXY")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = COMMIT
    license: str = "apache-2.0"
    gated: str = ""
    tokens: tuple[str, ...] = ()  # who may read a gated repository
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> files, besides main

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in ("main", self.commit):
            return self.commit, self.files
        return (revision, self.revisions[revision]) if revision in self.revisions else None


@dataclass
class Asked:
    method: str
    path: str
    token: str
    range: str


@dataclass
class FakeHub:
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    endpoint: str = ""
    status: int = 0  # answered to everything
    cut: int = 0  # bytes after which the next download breaks off
    spoil: bool = False  # downloads come with a wrong byte
    short: int = 0  # bytes that downloads lack
    server: ThreadingHTTPServer | None = None

    def paths(self, method: str = "") -> list[str]:
        return [entry.path for entry in self.asked if method in ("", entry.method)]

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], content: bytes = b"", send: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if send is None else content[:send])
            if send is not None:
                self.close_connection = True

    def refuse(self, status: int, code: str, message: str = "", **headers: str) -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        path = urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.asked.append(Asked(self.command, path, token, self.headers.get("Range", "")))
        if hub.status:
            return self.answer(hub.status, {})
        if path.startswith("/cdn/"):
            folders = (folder for repo in hub.repos.values() for folder in (repo.files, *repo.revisions.values()))
            content = next(content for folder in folders for content in folder.values() if _sha(content) == path[5:])
            return self.download(content, {"ETag": f'"{_sha(content)}"'})
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            file = None
        else:
            name, _, rest = path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
        repo = hub.repos.get(name)
        if repo is None:
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if token == "expired":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        found = repo.at(unquote(revision) or "main")
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, files = found
        if file is None:
            info = {
                "id": name, "modelId": name, "sha": commit, "gated": repo.gated or False, "private": False, "tags": [], "downloads": 0,
                "siblings": [{"rfilename": entry} for entry in files], "cardData": {"license": repo.license},
            }  # fmt: skip
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if repo.gated and token not in repo.tokens:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
        if unquote(file) not in files:
            return self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        content = files[unquote(file)]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_hash(content)}"'}
        if file.endswith(".safetensors"):
            elsewhere = f"{hub.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{_sha(content)}"
            linked = {"X-Linked-Etag": f'"{_sha(content)}"', "X-Linked-Size": str(len(content))}
            return self.answer(302, {**headers, **linked, "Location": elsewhere})
        return self.download(content, headers)

    def download(self, content: bytes, headers: dict[str, str]) -> None:
        hub, status = self.hub, 200
        start = 0
        if self.headers.get("Range"):
            start, status = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if self.command == "GET" and hub.spoil:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command == "GET" and hub.short:
            content = content[: -hub.short]
        send = None
        if self.command == "GET" and hub.cut:
            send, hub.cut = hub.cut, 0
        self.answer(status, headers, content[start:], send)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Run a hub in a thread."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    hub.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{hub.server.server_port}"
    threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop()


def point_at(endpoint: str, monkeypatch: Any) -> None:
    """Do what HF_ENDPOINT does when huggingface_hub is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
