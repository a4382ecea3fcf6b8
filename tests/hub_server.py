"""A server on this machine that speaks the Hub's protocol as huggingface_hub uses it.

Repositories are commits of files in memory. What is asked and how many bytes are sent is kept, so
that tests can say what was fetched; a download can be slowed down so that it can be cut off.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"
LARGE = (".safetensors", ".gguf")
PIECE = 1 << 16


@dataclass
class Repo:
    """Commits of files by their hash, and branches and tags by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit of these files alone, at the end of a branch."""
        seed = json.dumps([sorted(files), len(self.commits), ref])
        sha = sha1(seed.encode() + b"".join(files.values())).hexdigest()
        self.commits[sha], self.refs[ref] = dict(files), sha
        return sha


@dataclass(frozen=True)
class Asked:
    """One request: what was asked, the range if there was one, and the body's bytes sent."""

    method: str
    path: str
    range: str | None
    sent: int


@dataclass
class Hub:
    """The server's state, and its address."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by their SHA-256
    asked: list[Asked] = field(default_factory=list)
    rate: float = float("inf")  # bytes a second of one answer

    def add(self, name: str, files: dict[str, bytes] | Path, **options: Any) -> str:
        """A repository, or another commit of it, of files or a folder's; its hash."""
        if isinstance(files, Path):
            paths = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in paths}
        ref = options.pop("ref", "main")
        repo = self.repos.setdefault(name, Repo(**options))
        return repo.commit(files, ref)

    def sent(self, end: str) -> int:
        """Bytes sent of files whose names end in this."""
        return sum(one.sent for one in self.asked if one.path.endswith(end))


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free port of this machine, stopped at the end."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", rf"/api/models/{REPO}(?:/revision/(?P<rev>[^/]+))?", "info"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<rev>[^/]+)", "tree"),
    ("POST", rf"/api/models/{REPO}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    ("GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", "resolve"),
    ("HEAD", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", "resolve"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<rev>[^/]+)", "branch"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/whoami-v2", "whoami"),
]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        self.sent = 0
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self._read_body(length)
        try:
            for method, pattern, name in ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    parts = {key: unquote(value or "") for key, value in found.groupdict().items()}
                    getattr(self, f"_{name}")(**parts)
                    break
            else:
                raise _Refused(404, "", f"{self.command} {path} is not spoken here")
        except _Refused as refused:
            body = json.dumps({"error": refused.message}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._answer(body, refused.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            asked = Asked(self.command, unquote(path), self.headers.get("Range"), self.sent)
            self.hub.asked.append(asked)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        parts = []
        while length > 0:
            part = self.rfile.read(min(length, PIECE))
            if not part:
                raise ConnectionResetError
            parts.append(part)
            length -= len(part)
            self._wait(len(part))
        return b"".join(parts)

    def _wait(self, size: int) -> None:
        if self.hub.rate < float("inf"):
            time.sleep(size / self.hub.rate)

    def _answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), PIECE):
            part = body[start : start + PIECE]
            self.wfile.write(part)
            self.sent += len(part)
            self._wait(len(part))

    def _json(self, value: Any) -> None:
        self._answer(json.dumps(value).encode())

    def _repo(self, name: str, rev: str, write: bool = False) -> tuple[Repo, str]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        if write and not token:
            raise _Refused(401, "", "Invalid username or password.")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not token):
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        sha = repo.refs.get(rev or "main", rev)
        if sha not in repo.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return repo, sha

    def _files(self, name: str, rev: str) -> tuple[dict[str, bytes], str]:
        repo, sha = self._repo(name, rev)
        return repo.commits[sha], sha

    def _info(self, repo: str, rev: str) -> None:
        files, sha = self._files(repo, rev)
        entries = [_entry(path, data) for path, data in files.items()]
        siblings = [{"rfilename": e["path"], "blobId": e["oid"]} | e for e in entries]
        for each in siblings:
            if "lfs" in each:
                each["lfs"] = each["lfs"] | {"sha256": each["lfs"]["oid"]}
        self._json({"_id": "1", "id": repo, "sha": sha, "siblings": siblings, "tags": []})

    def _tree(self, repo: str, rev: str) -> None:
        files, _ = self._files(repo, rev)
        self._json([_entry(path, data) for path, data in files.items()])

    def _paths_info(self, repo: str, rev: str) -> None:
        files, _ = self._files(repo, rev)
        text = self.body.decode()
        asked = json.loads(text) if text.startswith("{") else parse_qs(text)
        self._json([_entry(p, files[p]) for p in asked.get("paths", []) if p in files])

    def _resolve(self, repo: str, rev: str, file: str) -> None:
        files, sha = self._files(repo, rev)
        if self.hub.repos[repo].gated and "Authorization" not in self.headers:
            raise _Refused(401, "GatedRepo", f"Access to model {repo} is restricted")
        if file not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        data = files[file]
        etag = sha256(data).hexdigest() if file.endswith(LARGE) else sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            if self.command == "HEAD":
                headers["Content-Length"] = str(len(data))
            self._answer(data, 200, headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._answer(data[start : end + 1], 206, headers)

    # What an upload asks

    def _create(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "", "Invalid username or password.")
        asked = json.loads(self.body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repos:
            text = {"error": "You already created this model repo", "url": url}
            self._answer(json.dumps(text).encode(), 409)
            return
        visible = asked.get("visibility", "private" if asked.get("private") else "public")
        self.hub.add(name, {".gitattributes": b""}, private=visible == "private")
        self._json({"url": url, "id": name})

    def _branch(self, repo: str, rev: str) -> None:
        found, sha = self._repo(repo, "main", write=True)
        if rev in found.refs:
            raise _Refused(409, "", "Reference already exists")
        found.refs[rev] = sha
        self._json({})

    def _preupload(self, repo: str, rev: str) -> None:
        found, sha = self._repo(repo, rev, write=True)
        files = []
        for one in json.loads(self.body)["files"]:
            path = one["path"]
            old = found.commits[sha].get(path)
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = None if old is None else _entry(path, old)["oid"]
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _batch(self, repo: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            if one["oid"] not in self.hub.stored:
                href = f"{self.hub.endpoint}/lfs/{one['oid']}"
                one = one | {"actions": {"upload": {"href": href}}}
            objects.append(one)
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        assert sha256(self.body).hexdigest() == oid
        self.hub.stored[oid] = self.body
        self._answer(b"")

    def _commit(self, repo: str, rev: str) -> None:
        found, sha = self._repo(repo, rev, write=True)
        files = dict(found.commits[sha])
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif step["key"] == "deletedFile":
                files.pop(value["path"], None)
        new = found.commit(files, rev)
        url = f"{self.hub.endpoint}/{repo}/commit/{new}"
        self._json({"commitUrl": url, "commitOid": new, "hookOutput": ""})

    def _validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _whoami(self) -> None:
        self._json({"type": "user", "name": "tester", "auth": {"type": "access_token"}})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LARGE):
        oid = sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
    return entry
