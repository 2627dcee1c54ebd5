"""The answers of the tests' Hub, request by request (see ``hub_server.py``).

One method for each address that the client calls.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from hub_server import HubServer, Repo

LFS_FROM_BYTES = 1024  # a file of this size or more, and every .safetensors, travels as LFS


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        on_cdn = self.server.server_port == int(self.hub.cdn_url.rsplit(":", 1)[1])
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.saw(self.command, path, token, self.headers.get("Range"), on_cdn)
        self.user = self.hub.users.get(token or "")
        body = self._body()
        for end, answer in self.hub.hostile.items():
            if path.endswith(end):
                return answer(self)
        if token is not None and self.user is None and not on_cdn:
            return self._error(401, "", "Invalid credentials in Authorization header")
        for pattern, method, is_cdn in ROUTES:
            if on_cdn == is_cdn and (match := re.fullmatch(pattern, path)):
                return getattr(self, method)(body, *match.groups())
        return self._error(404, "", f"no such page: {path}")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # who is asking, and what may be seen
    def whoami(self, _: bytes) -> None:
        if self.user is None:
            return self._error(401, "", "Invalid username or password.")
        name, role = self.user
        return self._json(
            {
                "type": "user",
                "name": name,
                "orgs": [],
                "auth": {"accessToken": {"role": role, "displayName": "t"}},
            }
        )

    def _repo(self, repo_id: str, write: bool = False) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        owner = self.user is not None and repo_id.startswith(self.user[0] + "/")
        if repo is None or (repo.private and not owner):
            self._error(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        elif write and not (owner and self.user[1] == "write"):
            self._error(403, "", "You don't have the rights to write to this repository")
        else:
            return repo
        return None

    def _commit(self, repo: Repo | None, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = None if repo is None else self.hub.at(repo, revision)
        if repo is not None and found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # reading
    def info(self, _: bytes, repo_id: str, revision: str | None = None) -> None:
        repo = self._repo(repo_id)
        if found := self._commit(repo, revision or "main"):
            header = re.match(rb"---\n(.*?)\n---\n", found[1].get("README.md", b""), re.DOTALL)
            card = yaml.safe_load(header[1]) if header else {}
            self._json(
                {
                    "cardData": card,
                    "_id": "0",
                    "id": repo_id,
                    "modelId": repo_id,
                    "sha": found[0],
                    "private": repo.private,
                    "tags": [f"license:{card['license']}"] if "license" in card else [],
                    "gated": "manual" if repo.gated else False,
                    "siblings": [{"rfilename": path} for path in sorted(found[1])],
                    "downloads": 0,
                    "likes": 0,
                }
            )

    def tree(self, _: bytes, repo_id: str, revision: str) -> None:
        if found := self._commit(self._repo(repo_id), revision):
            self._json([_entry(path, content) for path, content in sorted(found[1].items())])

    def resolve(self, _: bytes, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(repo_id)
        if not (found := self._commit(repo, revision)):
            return None
        if repo.gated and (self.user is None or self.user[0] not in repo.granted):
            return self._error(
                401 if self.user is None else 403,
                "GatedRepo",
                f"Access to model {repo_id} is restricted.",
            )
        if path not in found[1]:
            return self._error(
                404, "EntryNotFound", f"Entry not found: {path}", X_Repo_Commit=found[0]
            )
        content = found[1][path]
        head = {"X_Repo_Commit": found[0], "Accept_Ranges": "bytes"}
        if not _is_lfs(path, content):
            return self._content(content, ETag=f'"{_blob_id(content)}"', **head)
        sha256 = hashlib.sha256(content).hexdigest()
        head |= {"X_Linked_ETag": f'"{sha256}"', "X_Linked_Size": str(len(content))}
        return self._send(302, b"", Location=f"{self.hub.cdn_url}/objects/{sha256}", **head)

    def stored(self, body: bytes, sha256: str) -> None:
        """The storage behind the Hub: objects by hash, at signed addresses that need no token."""
        if self.command == "PUT":
            self.hub.lfs[sha256] = body
            return self._send(200, b"", ETag=f'"{sha256}"')
        return self._content(self.hub.lfs[sha256], ETag=f'"{sha256}"')

    # writing
    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        if self.user is None or self.user[1] != "write":
            return self._error(
                401 if self.user is None else 403, "", "This token may not create repos"
            )
        repo_id = f"{wanted.get('organization') or self.user[0]}/{wanted['name']}"
        exists = repo_id in self.hub.repos
        self.hub.create(
            repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        return self._json(
            {"url": f"{self.hub.url}/{repo_id}", "error": "You already created this repo"},
            409 if exists else 200,
        )

    def validate_yaml(self, _: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo_id: str, _: str) -> None:
        if repo := self._repo(repo_id, write=True):
            here = repo.commits[-1][1]
            modes = {True: "lfs", False: "regular"}
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "shouldIgnore": False,
                            "uploadMode": modes[_is_lfs(file["path"], file["size"])],
                            "oid": (
                                _entry(file["path"], here[file["path"]])["oid"]
                                if file["path"] in here
                                else None
                            ),
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        if self._repo(repo_id, write=True):
            self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        (
                            {"oid": one["oid"], "size": one["size"]}
                            if one["oid"] in self.hub.lfs
                            else {
                                "oid": one["oid"],
                                "size": one["size"],
                                "actions": {
                                    "upload": {"href": f"{self.hub.cdn_url}/objects/{one['oid']}"},
                                    "verify": {
                                        "href": f"{self.hub.url}/{repo_id}.git/info/lfs/verify"
                                    },
                                },
                            }
                        )
                        for one in json.loads(body)["objects"]
                    ],
                }
            )

    def lfs_verify(self, body: bytes, repo_id: str) -> None:
        wanted = json.loads(body)
        content = self.hub.lfs.get(wanted["oid"])
        if (
            content is None
            or hashlib.sha256(content).hexdigest() != wanted["oid"]
            or len(content) != wanted["size"]
        ):
            self.hub.lfs.pop(wanted["oid"], None)
            return self._error(400, "", "the uploaded object has another hash")
        return self._json({})

    def commit(self, body: bytes, repo_id: str, revision: str) -> None:
        if not (repo := self._repo(repo_id, write=True)) or not self._commit(repo, revision):
            return None
        files = dict(repo.commits[-1][1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if (
                line["key"] == "header"
                and value.get("parentCommit", repo.commits[-1][0]) != repo.commits[-1][0]
            ):
                return self._error(
                    412, "", "A commit has happened since. Please refresh and try again."
                )
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    return self._error(400, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            if line["key"] == "deletedFile":
                files.pop(value["path"])
        sha = self.hub.commit(repo, files)
        return self._json(
            {
                "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}",
                "commitOid": sha,
                "hookOutput": "",
                "success": True,
            }
        )

    # answering
    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(
        self, status: int, content: bytes, break_after: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content_Type": "application/octet-stream",
            "Content_Length": str(len(content)),
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:break_after])
        if break_after is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        codes = {"X_Error_Code": code} if code else {}
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            X_Error_Message=message,
            **codes,
            **headers,
        )

    def _content(self, true_content: bytes, **headers: str) -> None:
        if self.command == "HEAD":
            return self._send(200, true_content, **headers)
        content, lost_after = self.hub.served(true_content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, content, lost_after, **headers)
        start = int(wanted[1])
        stop = int(wanted[2]) + 1 if wanted[2] else len(content)
        if start >= len(content):
            return self._send(416, b"", Content_Range=f"bytes */{len(content)}")
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], lost_after, **headers)


_ID = r"([^/]+/[^/]+?)"
ROUTES = (  # (path, method of the handler, on the storage's port?)
    (r"/api/whoami-v2", "whoami", False),
    (r"/api/validate-yaml", "validate_yaml", False),
    (r"/api/repos/create", "create", False),
    (rf"/api/models/{_ID}", "info", False),
    (rf"/api/models/{_ID}/revision/([^/]+)", "info", False),
    (rf"/api/models/{_ID}/tree/([^/]+)", "tree", False),
    (rf"/api/models/{_ID}/preupload/([^/]+)", "preupload", False),
    (rf"/api/models/{_ID}/commit/([^/]+)", "commit", False),
    (rf"/{_ID}\.git/info/lfs/objects/batch", "lfs_batch", False),
    (rf"/{_ID}\.git/info/lfs/verify", "lfs_verify", False),
    (rf"/{_ID}/resolve/([^/]+)/(.+)", "resolve", False),
    (r"/objects/([0-9a-f]{64})", "stored", True),
)


def _is_lfs(path: str, content: bytes | int) -> bool:
    return (
        path.endswith(".safetensors")
        or (content if isinstance(content, int) else len(content)) >= LFS_FROM_BYTES
    )


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if _is_lfs(path, content):
        entry["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return entry
