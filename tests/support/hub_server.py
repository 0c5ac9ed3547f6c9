"""A hub on the loopback address: what huggingface_hub asks for of a repository, and what can go wrong with it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


@dataclass
class Repository:
    """One repository.

    Args:
        revisions: name of a branch or tag -> files.
        gated: whether its files are given to nobody.
        hidden: whether it is answered for with 401, as the hub does where nobody is logged in.
        short: files that end early, every time. cut: files whose connection ends halfway, once.
    """

    revisions: dict[str, Files]
    gated: bool = False
    hidden: bool = False
    short: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.revisions}
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def files(self, commit: str) -> Files:
        """The files of a commit."""
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


class Hub(ThreadingHTTPServer):
    """The server; ``asked`` lists what it was asked for, as "GET /path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def given(self, kind: str = ".safetensors") -> list[str]:
        """The files of a kind that were downloaded, by name."""
        return sorted(
            {line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and line.endswith(kind)}
        )


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.server.repositories.get("/".join(parts[:2]))
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if repository.hidden:
            return self._refuse(401, "")
        if path.startswith("/api/models/"):
            return self._describe("/".join(parts[:2]), repository, parts[2:])
        commit = repository.commit(parts[3])
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        return self._file(repository, commit, "/".join(parts[4:]))

    def _describe(self, name: str, repository: Repository, rest: list[str]) -> None:
        commit = repository.commit("/".join(rest[1:]) or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = repository.files(commit)
        if rest and rest[0] == "tree":
            content = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return self._send(200, json.dumps(content).encode())
        siblings = [{"rfilename": file} for file in files]
        about = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        return self._send(200, json.dumps(about).encode())

    def _file(self, repository: Repository, commit: str, file: str) -> None:
        data = repository.files(commit).get(file)
        if data is None:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        head = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.command == "GET" and file in repository.short:
            return self._send(200, data[: len(data) // 2], head)
        if self.command == "GET" and file in repository.cut:
            repository.cut.remove(file)
            self._head(200, len(data), head)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        if begin:
            head["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return self._send(206 if begin else 200, data[begin:], head)

    def _refuse(self, code: int, reason: str, head: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": reason, "X-Error-Message": reason} if reason else {}
        self._send(code, b"", {**named, **(head or {})})

    def _send(self, code: int, data: bytes, head: Mapping[str, str] | None = None) -> None:
        self._head(code, len(data), head or {})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, code: int, length: int, head: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **head, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their names in it."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
