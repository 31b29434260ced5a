"""A local stand-in for the Hugging Face Hub: what its client asks for, over HTTP.

It answers the calls of downloading (HEAD and GET of a file at a revision, with byte ranges, and
the listing of a repository), and of publishing (creation, pre-upload, LFS, commit), and can be
asked to cut connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One model: its commits, each a mapping of file names to bytes, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        previous = self.commits.get(self.branches.get(branch, ""), {})
        sha = hashlib.sha1(repr(sorted(files)).encode() + str(len(self.commits)).encode())
        self.commits[sha.hexdigest()] = {**previous, **files}
        self.branches[branch] = sha.hexdigest()
        return sha.hexdigest()


class HubServer:
    """The server, running in a thread.

    Attributes:
        repositories: By OWNER/NAME.
        cut_after: For the next downloads, how many bytes to send before the connection is cut.
        requests: "METHOD path" of what was asked, with the byte range where there was one.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.cut_after: list[int] = []
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_state = hub

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve_file(body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path)
        if listing:
            return self._list(*listing.groups())
        return self._serve_file(body=True)

    def do_PUT(self) -> None:
        self._note()
        self.server_state.uploads[self.path.rsplit("/", 1)[1]] = self._body()
        self._answer(200, b"")

    def do_POST(self) -> None:
        self._note()
        path, body = urlsplit(self.path).path, self._body()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            repository = self.server_state.repositories.setdefault(name, Repository())
            if not self._allowed(repository, writing=True):
                return None
            repository.branches.setdefault("main", repository.commit({}))
            return self._json({"url": f"{self.server_state.address}/{name}", "name": name})
        preupload = re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path)
        if preupload:
            files = json.loads(body)["files"]
            answer = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
            return self._json({"files": answer})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": entry["oid"],
                    "size": entry["size"],
                    "actions": {
                        "upload": {"href": f"{self.server_state.address}/lfs/{entry['oid']}"}
                    },
                }
                for entry in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        committing = re.fullmatch(r"/api/models/(.+)/commit/(.+)", path)
        if committing:
            return self._commit(*map(unquote, committing.groups()), body)
        return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repository = self.server_state.repositories[name]
        if not self._allowed(repository, writing=True):
            return None
        files = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server_state.uploads[value["oid"]]
        sha = repository.commit(files, branch)
        url = f"{self.server_state.address}/{name}/commit/{sha}"
        return self._json({"success": True, "commitOid": sha, "commitUrl": url})

    def _list(self, name: str, revision: str) -> None:
        self._note()
        repository = self.server_state.repositories.get(name)
        if repository is None or not self._allowed(repository):
            return None
        files = self._files(repository, unquote(revision))
        if files is None:
            return None
        return self._json(
            [{"type": "file", "path": n, "size": len(b), "oid": _etag(b)} for n, b in files.items()]
        )

    def _serve_file(self, *, body: bool) -> None:
        self._note()
        path = urlsplit(self.path).path
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self.server_state.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if not self._allowed(repository):
            return None
        revision = unquote(found[2])
        files = self._files(repository, revision)
        if files is None:
            return None
        commit = repository.branches.get(revision, revision)
        headers = {"X-Repo-Commit": commit}
        if found[3] not in files:
            return self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        content = files[found[3]]
        headers |= {"ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if not body:
            return self._answer(200, b"", {**headers, "Content-Length": str(len(content))})
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        part = content[start:]
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if wanted else 200)
        for key, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.server_state.cut_after and len(part) > self.server_state.cut_after[0]:
            self.wfile.write(part[: self.server_state.cut_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        self.wfile.write(part)
        return None

    def _allowed(self, repository: Repository, *, writing: bool = False) -> bool:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given == "wrong" or (writing and not given):
            words = "Invalid credentials in Authorization header"
            self._answer(401, b"", {"X-Error-Message": words})
            return False
        if repository.gated and not given:
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
            return False
        if repository.token is not None and given != repository.token:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _files(self, repository: Repository, revision: str) -> dict[str, bytes] | None:
        files = repository.commits.get(repository.branches.get(revision, revision))
        if files is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return files

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _note(self) -> None:
        span = self.headers.get("Range")
        line = f"{self.command} {urlsplit(self.path).path}{f' {span}' if span else ''}"
        self.server_state.requests.append(line)

    def log_message(self, *_: object) -> None:
        pass


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
