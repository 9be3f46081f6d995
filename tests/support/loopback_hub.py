"""In-memory test double of the Hugging Face Hub on 127.0.0.1.

For end-to-end tests of publishing with the real client (create, preupload, large files, commit, tag, download) without
network. Like the Hub it rejects a wrong token, a missing revision and a path outside of the repository. Protocol of the
client of huggingface_hub 2.4 with HF_HUB_DISABLE_XET=1 (its `_commit_api.py` and `lfs.py`).
"""

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
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE_SUFFIXES = (".safetensors", ".parquet", ".model")
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(preupload|commit|tag|refs|tree|paths-info|revision)(?:/(.*))?)?"
)
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class HubError(Exception):
    """An answer other than success; `code` is the Hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """One file of a commit. A large file's id is its sha256, a regular file's is the one that git gives it."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_id


@dataclass
class Repo:
    """Commits (id -> path -> blob), one branch called main, and tags."""

    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob]) -> str:
        listing = json.dumps([len(self.commits)] + sorted((path, blob.etag) for path, blob in files.items()))
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid] = files
        self.branches["main"] = oid
        return oid

    def find(self, revision: str) -> str:
        oid = {**{oid: oid for oid in self.commits}, **self.tags, **self.branches}.get(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid


class Hub:
    """All state of the double; `log` is what a test reads."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int]] = []
        self.lock = threading.Lock()
        self.endpoint = ""

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Path -> content at a revision, past all protocol."""
        repo = self.repos[kind, repo_id]
        return {path: blob.content for path, blob in repo.commits[repo.find(revision)].items()}

    def downloads(self) -> list[str]:
        """Paths that were fetched with GET from any repo, in order."""
        found = (
            RESOLVE.fullmatch(path) for method, path, status in self.log if method == "GET" and status in (200, 206)
        )
        return [match.group(4) for match in found if match]


def safe_path(path: str) -> str:
    if path.startswith("/") or "\\" in path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"path outside the repository: {path}")
    return path


class Handler(BaseHTTPRequestHandler):
    """One request: parse, dispatch, answer. The hub hangs on the server object."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr quiet; `reply` records every answer."""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        body = self.read_chunks() if chunked else self.rfile.read(length)
        try:
            with self.hub.lock:
                self.dispatch(body)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            self.reply({"error": error.message}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        raw = isinstance(content, bytes)
        data = content if raw else json.dumps(content).encode()
        self.hub.log.append((self.command, unquote(urlsplit(self.path).path), status))
        self.send_response(status)
        sent = {
            "Content-Type": "application/octet-stream" if raw else "application/json",
            "Content-Length": str(len(data)),
        }
        for name, value in (sent | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def check_token(self, *, needed: bool) -> bool:
        """Reject a wrong token, and a missing one where it is required. Returns whether a token was sent."""
        given = self.headers.get("Authorization")
        if given is None and not needed:
            return False
        if given != f"Bearer {self.hub.token}":
            raise HubError(
                401, "Invalid credentials in Authorization header" if given else "Invalid username or password."
            )
        return True

    def repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self.check_token(needed=False)):
            raise HubError(404 if repo is None else 401, "Repository not found", "RepoNotFound")
        return repo

    def dispatch(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        if self.command == "PUT" and path.startswith("/large/"):
            return self.put_large(path.removeprefix("/large/"), body)
        self.check_token(needed=self.command == "POST")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if match := BATCH.fullmatch(path):
            return self.batch(json.loads(body))
        if match := API.fullmatch(path):
            kind, repo_id, verb, rest = match.groups()
            return self.api(self.repo(kind, repo_id), kind, repo_id, verb or "", unquote(rest or ""), body)
        if match := RESOLVE.fullmatch(path):
            kind, repo_id, revision, name = match.groups()
            return self.resolve(self.repo(kind or "models", repo_id), unquote(revision), unquote(name))
        raise HubError(404, f"no such page: {path}")

    def create(self, wish: dict[str, Any]) -> None:
        kind, repo_id = wish.get("type", "model") + "s", f"{wish['organization']}/{wish['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return self.reply({"error": "You already created this repo", "url": url}, 409)
        repo = Repo(private=wish.get("visibility") == "private" or bool(wish.get("private")))
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", large=False)})
        self.hub.repos[kind, repo_id] = repo
        return self.reply({"url": url, "name": repo_id, "id": repo_id})

    def validate(self, content: str) -> None:
        block = re.match(r"---\n(.*?)\n---\n", content, re.S)
        found = yaml.safe_load(block.group(1)) if block else None
        if not isinstance(found, dict):
            return self.reply({"errors": [{"message": "no metadata"}], "warnings": []}, 400)
        return self.reply({"errors": [], "warnings": []})

    def batch(self, wish: dict[str, Any]) -> None:
        objects = []
        for item in wish["objects"]:
            href = f"{self.hub.endpoint}/large/{item['oid']}"
            actions = {} if item["oid"] in self.hub.large else {"actions": {"upload": {"href": href}}}
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        self.reply({"transfer": "basic", "objects": objects})

    def put_large(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "content does not match its sha256")
        self.hub.large[oid] = body
        self.reply({})

    def api(self, repo: Repo, kind: str, repo_id: str, verb: str, rest: str, body: bytes) -> None:
        if verb in ("", "revision"):
            return self.info(repo, kind, repo_id, rest or "main")
        if verb == "refs":
            return self.reply(
                {"branches": refs(repo.branches, "heads"), "tags": refs(repo.tags, "tags"), "converts": []}
            )
        if verb == "preupload":
            files = repo.commits[repo.find(rest)]
            return self.reply({"files": [upload_mode(item, files) for item in json.loads(body)["files"]]})
        if verb == "commit":
            return self.commit(repo, repo_id, rest, body)
        if verb == "tag":
            return self.tag(repo, rest, json.loads(body)["tag"])
        revision, _, folder = rest.partition("/")
        files = repo.commits[repo.find(revision)]
        if verb == "paths-info":
            wanted = [safe_path(path) for path in parse_qs(body.decode()).get("paths", [])]
            return self.reply([entry(path, files[path]) for path in wanted if path in files] + folders(wanted, files))
        return self.tree(files, folder)

    def info(self, repo: Repo, kind: str, repo_id: str, revision: str) -> None:
        oid = repo.find(revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        about = {"_id": "0", "id": repo_id, "sha": oid, "private": repo.private, "gated": False, "disabled": False}
        self.reply(
            {**about, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings, "author": repo_id.split("/")[0]}
        )

    def commit(self, repo: Repo, repo_id: str, branch: str, body: bytes) -> None:
        if branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files = dict(repo.commits[repo.branches[branch]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[safe_path(value["path"])] = Blob(base64.b64decode(value["content"]), large=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise HubError(400, f"large file {value['path']} was not uploaded")
                files[safe_path(value["path"])] = Blob(self.hub.large[value["oid"]], large=True)
            elif item["key"] != "header":
                raise HubError(400, f"operation {item['key']} is not supported")
        oid = repo.commit(files)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"})

    def tag(self, repo: Repo, revision: str, name: str) -> None:
        if name in repo.tags:
            return self.reply({"error": "Tag reference exists already"}, 409)
        repo.tags[name] = repo.find(revision)
        return self.reply({})

    def tree(self, files: dict[str, Blob], folder: str) -> None:
        inside = f"{safe_path(folder)}/" if folder else ""
        wanted = parse_qs(urlsplit(self.path).query)
        recursive = wanted.get("recursive", [""])[0].lower() in ("true", "1")
        found = {path: blob for path, blob in files.items() if path.startswith(inside)}
        if folder and not found:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        parents = {inside + path[len(inside) :].split("/")[0] for path in found if "/" in path[len(inside) :]}
        shown = {path: blob for path, blob in found.items() if recursive or "/" not in path[len(inside) :]}
        self.reply(folders(sorted(parents), files) + [entry(path, blob) for path, blob in sorted(shown.items())])

    def resolve(self, repo: Repo, revision: str, name: str) -> None:
        oid = repo.find(revision)
        blob = repo.commits[oid].get(safe_path(name))
        if blob is None:
            raise HubError(404, f"{name} does not exist", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))} if blob.large else {}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.reply(blob.content, 200, headers)
        first, last = int(part.group(1)), int(part.group(2) or len(blob.content) - 1)
        content = blob.content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{len(blob.content)}"
        return self.reply(content, 206, headers)


def refs(names: dict[str, str], folder: str) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in names.items()]


def upload_mode(item: dict[str, Any], files: dict[str, Blob]) -> dict[str, Any]:
    path = safe_path(item["path"])
    mode = "lfs" if path.endswith(LARGE_SUFFIXES) else "regular"
    there = {"oid": files[path].etag} if path in files else {}
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, **there}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    large = {"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}} if blob.large else {}
    return {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_id, **large}


def folders(paths: list[str], files: dict[str, Blob]) -> list[dict[str, Any]]:
    real = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
    return [
        {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()} for path in real
    ]


class Server(ThreadingHTTPServer):
    """The HTTP server; daemon threads, so that a test that fails does not hang."""

    daemon_threads = True
    hub: Hub


@contextmanager
def loopback_hub(token: str = "hf_right") -> Iterator[Hub]:
    """Start the double on a free port of 127.0.0.1; `hub.endpoint` is what HF_ENDPOINT should say."""
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = Hub(token)
    server.hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
