"""A hub of models on this machine: as much of the Hugging Face Hub's interface as its own client asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Tokens that may write, and that may read only.
WRITE, READ = "hf_writewritewrite", "hf_readreadread"


@dataclass
class Repository:
    """Files by commit, the newest commit last, and what it was created with."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    created: dict[str, Any] = field(default_factory=dict)

    def add(self, files: dict[str, bytes]) -> str:
        number = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[number] = files
        return number

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        number = revision if revision in self.commits else next(reversed(self.commits), "")
        return (number, self.commits[number]) if number and revision in ("main", number) else None


class FakeHub(ThreadingHTTPServer):
    """``repositories`` by name, and the paths that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._found(body=True)

    def do_HEAD(self) -> None:
        self._found(body=False)

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != WRITE:  # as careless as a server can be
            return self._error(403 if token == READ else 401, f"not with {token}")
        if self.path == "/api/repos/create":
            return self._create(json.loads(content))
        name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        return self._commit(name, content)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            return self._json({"url": f"{self.server.endpoint}/{name}", "error": "it is there"}, 409)
        repository = self.server.repositories[name] = Repository(created=asked)
        repository.add({".gitattributes": b""})
        return self._json({"url": f"{self.server.endpoint}/{name}", "name": name, "id": "1"})

    def _commit(self, name: str, content: bytes) -> None:
        repository = self.server.repositories[name]
        files = dict(next(reversed(repository.commits.values())))
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        number = repository.add(files)
        self._json(
            {"success": True, "commitOid": number, "commitUrl": f"{self.server.endpoint}/{name}/commit/{number}"}
        )

    def _found(self, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", WRITE, READ):
            return self._error(401, f"not with {token}")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups(), body)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        repository = self.server.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            return self._error(404, "no such repository", "RepoNotFound")
        number, files = repository.at(match[3] or "main")
        if match[2] == "tree":
            return self._json(
                [
                    {"type": "file", "path": p, "oid": hashlib.sha1(c).hexdigest(), "size": len(c)}
                    for p, c in files.items()
                ]
            )
        return self._json({"id": match[1], "sha": number, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, name: str, revision: str, path: str, body: bool) -> None:
        repository = self.server.repositories.get(name)
        found = repository.at(revision) if repository else None
        if found is None:
            return self._error(404, "no such repository", "RepoNotFound")
        number, files = found
        if path not in files:
            return self._error(404, "no such file", "EntryNotFound", number)
        self.send_response(200)
        headers = {"X-Repo-Commit": number, "ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"'}
        self._send(files[path], headers, body)

    def _error(self, status: int, text: str, code: str = "", commit: str = "") -> None:
        self._json({"error": text}, status, {"X-Error-Code": code, "X-Error-Message": text, "X-Repo-Commit": commit})

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}, True)

    def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)
