"""As much of the Hugging Face Hub as a download needs, and what a process sees of it: its address is read only once."""

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen: dict[str, Any] = {"first": look("someone/model")}
    started = time.monotonic()
    description = json.loads((folder / "config.json").read_text())
    description["skindist"]["threshold"] = 0.4
    (folder / "config.json").write_text(json.dumps(description))
    Hub.revision = "1" * 40
    seen |= {"changed there": look("someone/model"), "another": look("someone/else")}
    server.shutdown()
    server.server_close()
    seen |= {"nobody answers": look("someone/model"), "another, nobody answers": look("someone/else")}
    return seen | {"seconds": time.monotonic() - started}


if __name__ == "__main__":
    os.environ["HF_HOME"] = sys.argv[2]
    print(json.dumps(visit(Path(sys.argv[1]))))
