"""A stand-in for OpManager's REST interface, a process of its own: `python -m tests.gateway.fake_opmanager`.

It prints its port, takes `events/addEvent` with the right `apiKey` header, and appends each request to a file
of JSON lines: path, status, form. It answers as OpManager does, 200 with an error in the body included.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

NEEDED = ("source", "severity", "message", "alarmCode", "entity", "eventType")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        octets = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(dict(parse_qsl(octets.decode(), keep_blank_values=True)))

    def answer(self, form):
        url = urlsplit(self.path)
        mode = Path(self.server.book.with_suffix(".mode"))
        mode = mode.read_text() if mode.exists() else ""
        status, body = 200, {"result": {"message": "Event added successfully"}}
        if self.headers.get("apiKey") != self.server.key or "apiKey" in url.query or mode == "unauthorized":
            status, body = 401, {"error": {"code": 401, "message": f"bad key {self.headers.get('apiKey')}"}}
        elif mode == "error":
            body = {"error": {"code": 4001, "message": "internal"}}
        elif mode == "down":
            status, body = 503, {}
        elif url.path.endswith("/events/addEvent"):
            missing = [name for name in NEEDED if not form.get(name)]
            if missing:
                body = {"error": {"code": 4002, "message": f"missing {missing}"}}
        with self.server.book.open("a") as book:
            book.write(json.dumps({"path": self.path, "status": status, "form": form}) + "\n")
        octets = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, *parts):
        pass


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.book, server.key = Path(sys.argv[1]), sys.argv[2]
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
