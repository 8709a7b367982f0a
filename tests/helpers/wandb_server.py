"""A Weights & Biases server on the loopback interface: it records all that it receives, and fails when told to.

It answers what the installed wandb asks for, as a healthy server does, so that `wandb.init`, logging, uploads, resuming
and `wandb sync` run as they would. Point them at it with the environment variables in `env`.
"""

import gzip
import json
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

Fault = Literal["dies", "errors", "refuses", "hangs"]
STATUS = {"errors": 500, "refuses": 403}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@dataclass
class Run:
    """What the server knows of a W&B run. History holds its rows by line number."""

    name: str = ""
    sweep: str | None = None
    config: str = "{}"
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history in order."""
        return [row for _, row in sorted(self.history.items())]


class WandbServer:
    """Serves while it is entered; healthy until `fail` is called."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.received: list[bytes] = []  # every request: first line, headers and the body, decompressed
        self.unknown: list[str] = []  # what it was asked and has no answer to
        self.runs: dict[str, Run] = {}  # by id
        self.http = QuietServer(("127.0.0.1", 0), type("Handler", (Handler,), {"wandb": self}))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that send wandb here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def fail(self, fault: Fault) -> None:
        """From now on: closed socket and connections ("dies"), 500 ("errors") or 403 ("refuses") to everything, or no
        answer to requests that are taken ("hangs")."""
        self.fault = fault
        if fault == "dies":
            self.http.shutdown()
            self.http.server_close()

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """The healthy server's answer, as JSON."""
        parts = path.split("/")
        if path == "/graphql":
            asked = json.loads(body)
            return {"data": self.graphql(asked["query"], asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            stream(self.runs.setdefault(parts[-2], Run()), json.loads(body))
        elif path.startswith("/upload/"):
            self.runs[parts[2]].files["/".join(parts[3:])] = body
        else:
            self.unknown.append(path)
        return {}

    def graphql(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        name = query.split("(")[0].split("{")[0].split()[-1]
        entity = {"id": "tester", "name": "tester"}
        match name:
            case "Viewer":
                return {"viewer": {**entity, "entity": "tester", "username": "tester", "email": "", "flags": "{}"}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                known = self.runs.get(values["name"])
                return {"model": {"name": "project", "entity": entity, "bucket": known and bucket(known)}}
            case "UpsertBucket":
                inserted = values["name"] not in self.runs
                run = self.runs.setdefault(values["name"], Run())
                run.name, run.config = values["displayName"] or run.name, values["config"] or run.config
                run.sweep = values.get("sweep") or run.sweep
                project = {"id": "project", "name": values["project"], "entity": entity}
                shown = {**bucket(run), "name": values["name"], "project": project}
                return {"upsertBucket": {"bucket": shown, "inserted": inserted}}
            case "CreateRunFiles":
                run_id = values["run"]
                files = [{"name": file, "uploadUrl": f"{self.url}/upload/{run_id}/{file}"} for file in values["files"]]
                return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}
        self.unknown.append(name)
        return {}


def stream(run: Run, sent: dict[str, Any]) -> None:
    """Take what a run streams: lines of its files, each with the number of the first."""
    for name, part in (sent.get("files") or {}).items():
        lines = [json.loads(line) for line in part["content"]]
        if name == "wandb-history.jsonl":
            run.history.update(enumerate(lines, part["offset"]))
        elif name == "wandb-summary.json":
            run.summary.update(lines[-1])
    if sent.get("complete"):
        run.exit_code = sent["exitcode"]


def bucket(run: Run) -> dict[str, Any]:
    """A run as GraphQL shows it."""
    return {
        "name": run.name, "displayName": run.name, "description": "", "sweepName": None, "tags": [], "notes": "",
        "config": run.config, "wandbConfig": '{"t": 1}', "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.history), "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
        "eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0,
    }  # fmt: skip


class QuietServer(ThreadingHTTPServer):
    """Says nothing about clients that hang up, and waits for none at the end."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request whole, records it, and answers, or fails as the server was told."""

    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        server = self.wandb
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = DECOMPRESS.get(self.headers.get("Content-Encoding", ""), bytes)(body)
        with server.lock:
            server.received.append(f"{self.requestline}\n{self.headers}".encode() + body)
            answer = {} if server.fault else server.answer(self.path.split("?")[0], body)
        if server.fault == "hangs":
            server.closing.wait()
        if server.fault in ("hangs", "dies"):
            self.close_connection = True
            return
        content = json.dumps(answer).encode()
        self.send_response(STATUS.get(server.fault or "", 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
