"""As much of the Hugging Face Hub as a download and an upload need, and what a process sees of it: its address is read
only once."""

import base64
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch


class Hub(BaseHTTPRequestHandler):
    """One repository, someone/model, served from a folder."""

    folder: Path
    revision = "0" * 40

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Describe the repository, list its files, or send one."""
        names, headers = [path.name for path in self.folder.iterdir()], {}
        if self.path.startswith("/api/models/someone/model/tree/"):
            files = [{"path": name, "size": (self.folder / name).stat().st_size} for name in names]
            body = json.dumps([file | {"type": "file", "oid": "0" * 40} for file in files]).encode()
        elif self.path.startswith("/api/models/someone/model"):
            siblings = [{"rfilename": name} for name in names]
            body = json.dumps({"id": "someone/model", "sha": self.revision, "siblings": siblings}).encode()
        elif self.path.startswith("/someone/model/resolve/"):
            body = (self.folder / self.path.rpartition("/")[2]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": self.revision}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Shelf(BaseHTTPRequestHandler):
    """A Hub for one account, someone, whose token is hf_good; it keeps one repository, someone/new, and its files."""

    asked: ClassVar[list[str]] = []
    visibility: ClassVar[str] = ""
    files: ClassVar[dict[str, bytes]] = {}
    objects: ClassVar[dict[str, bytes]] = {}
    read_only: ClassVar[bool] = False

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/whoami-v2":
            self.answer(200, {"name": "someone", "type": "user"})
        elif self.path.startswith("/api/models/someone/new") and self.visibility:
            self.answer(200, {"id": "someone/new", "private": self.visibility == "private", "siblings": []})
        else:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            wanted = json.loads(content)
            private = wanted.get("private", wanted.get("visibility") == "private")
            Shelf.visibility = "private" if private else "public"
            self.answer(200, {"url": f"{self.address}/someone/new", "name": "someone/new"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/someone/new/preupload/main":
            names = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            said = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.answer(200, {"files": said})
        elif self.path == "/someone/new.git/info/lfs/objects/batch":
            objects = json.loads(content)["objects"]
            upload = [{"upload": {"href": f"{self.address}/objects/{object['oid']}"}} for object in objects]
            pairs = zip(objects, upload, strict=True)
            self.answer(200, {"transfer": "basic", "objects": [object | {"actions": to} for object, to in pairs]})
        elif self.path == "/api/models/someone/new/commit/main" and self.read_only:
            self.answer(403, {"error": "You don't have the rights"})
        elif self.path == "/api/models/someone/new/commit/main":
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
            url = f"{self.address}/someone/new/commit/1"
            self.answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
        else:
            self.answer(404, {})

    def do_PUT(self) -> None:
        self.asked.append("PUT")
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            content = b"".join(parts)
        else:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        self.objects[self.path.rpartition("/")[2]] = content
        self.answer(200, {})

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[None]:
    """A server that this process takes for the Hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def look(model: str) -> str:
    """The threshold of a model, or why there is none."""
    from skindist.errors import UserError
    from skindist.inference.sources import load_model

    try:
        return str(load_model(model).description.frozen.threshold.value)
    except UserError as error:
        return str(error)


def visit(folder: Path) -> dict[str, Any]:
    """What is seen of the repository before and after it changes, and when the Hub is gone."""
    Hub.folder = folder
    with served(Hub):
        seen: dict[str, Any] = {"first": look("someone/model")}
        started = time.monotonic()
        description = json.loads((folder / "config.json").read_text())
        description["skindist"]["threshold"] = 0.4
        (folder / "config.json").write_text(json.dumps(description))
        Hub.revision = "1" * 40
        seen |= {"changed there": look("someone/model"), "another": look("someone/else")}
    seen |= {"nobody answers": look("someone/model"), "another, nobody answers": look("someone/else")}
    return seen | {"seconds": time.monotonic() - started}


def send(folder: Path) -> dict[str, Any]:
    """What `skindist push` says in turn, and what has arrived then."""
    os.environ["HF_HUB_DISABLE_XET"] = "1"  # the older protocol, which is an open one
    seen: dict[str, Any] = {}

    def push(name: str, *flags: str, token: str = "hf_good", to: str = "someone/new") -> None:
        from skindist.errors import UserError
        from skindist.inference.push import push_model

        Shelf.asked.clear()
        os.environ["HF_TOKEN"] = token
        try:
            push_model(str(folder), to, public="--public" in flags, yes="--yes" in flags)
            said = "sent"
        except UserError as error:
            said = str(error)
        arrived = {path: hashlib.sha256(content).hexdigest() for path, content in Shelf.files.items()}
        wrote = [line for line in Shelf.asked if not line.startswith("GET")]
        seen[name] = {"said": said, "visibility": Shelf.visibility, "files": arrived, "wrote": len(wrote)}

    with served(Shelf):
        push("no name", "--yes", to="new")
        push("no token", "--yes", token="")
        push("another token", "--yes", token="hf_bad")
        push("no terminal")
        with patch("sys.stdin.isatty", lambda: True), patch("builtins.input", lambda question: "n"):
            push("no")
        with patch("sys.stdin.isatty", lambda: True), patch("builtins.input", lambda question: "y"):
            push("yes")
        Shelf.files.clear()
        push("public, where it is private", "--yes", "--public")
        push("again", "--yes")
        Shelf.files.clear()
        Shelf.read_only = True
        push("read only", "--yes")
        Shelf.visibility = "public"
        push("private, where it is public", "--yes")
        Shelf.visibility, Shelf.read_only = "", False
        push("public", "--yes", "--public")
    push("nobody answers", "--yes")
    return seen


if __name__ == "__main__":
    os.environ["HF_HOME"] = sys.argv[2]
    print(json.dumps({"visit": visit, "send": send}[sys.argv[3]](Path(sys.argv[1]))))
