"""A real HTTP server on loopback that answers as a script says, and notes what arrives."""

import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Reply(NamedTuple):
    status: int = 200
    text: str = "Yes"  # what the judge says; for other statuses, the body
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0  # before it answers
    cut: bool = False  # the connection ends in mid-answer
    body: str | None = None  # in place of a well-formed answer
    finish: str = "stop"
    usage: tuple[int, int] = (10, 2)  # tokens in and out


Script = Callable[[dict[str, Any], int], Reply]  # from a request's body, and how often its text has come before


class Arrival(NamedTuple):
    path: str
    text: str
    headers: dict[str, str]
    time: float


def said(body: dict[str, Any]) -> str:
    """The text of a chat's message, with or without images before it."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class Scripted:
    """``with Scripted(script) as server``: its ``url``, what ``arrived``, and the ``most`` requests at one time."""

    def __init__(self, script: Script):
        self.arrived: list[Arrival] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._script = script
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer._answer(self, body)

            def do_GET(self):
                outer._send(self, 200, json.dumps({"object": "list", "data": [{"id": "there", "object": "model"}]}))

            def log_message(self, format, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # a client that has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def times(self, text: str) -> int:
        """How many requests had this in their text."""
        return sum(text in arrival.text for arrival in self.arrived)

    def wait_for(self, count: int) -> None:
        """Returns when so many requests have arrived."""
        end = time.monotonic() + 100
        while len(self.arrived) < count:
            assert time.monotonic() < end, f"{len(self.arrived)} of {count} requests arrived"
            time.sleep(0.01)

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        typed = "state" in body
        text = body["state"] if typed else said(body)
        with self._lock:
            before = sum(arrival.text == text for arrival in self.arrived)
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.arrived.append(Arrival(handler.path, text, headers, time.monotonic()))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            reply = self._script(body, before)
            time.sleep(reply.seconds)
        finally:
            with self._lock:
                self._now -= 1
        usage = {"prompt_tokens": reply.usage[0], "completion_tokens": reply.usage[1], "total_tokens": 12}
        choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish}
        whole = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})
        if typed and reply.status == 200:
            whole = json.dumps({"answers": json.loads(reply.text), "usage": {"input_tokens": 10, "output_tokens": 0}})
        if reply.status != 200:
            whole = json.dumps({"error": {"message": reply.text}})
        self._send(handler, reply.status, whole if reply.body is None else reply.body, reply.headers, reply.cut)

    def _send(self, handler, status, text, headers=(), cut=False):
        data = text.encode()
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            handler.wfile.flush()
            handler.close_connection = True
