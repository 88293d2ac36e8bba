"""An application that answers anything, a server around it, and clients that write raw octets."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.events
import trio

from fastpush.gateway.http import open_listener, serve


class Application:
    """Reads the whole body and echoes its size; keeps what it saw."""

    def __init__(self):
        self.seen = []  # (method, path, size)
        self.cut = []  # paths of bodies that ended with a disconnect
        self.scopes = []
        self.release = trio.Event()  # for /held

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.scopes.append(scope)
        path = scope["path"]
        if path == "/early":
            await self.answer(send, 401, b"no")
            return
        if path == "/broken":
            raise ZeroDivisionError
        if path == "/stream":  # until somebody stops it
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(16_384), "more_body": True})
                await trio.lowlevel.checkpoint()
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.cut.append(path)
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        if path == "/held":
            await self.release.wait()
        self.seen.append((scope["method"], path, size))
        if path == "/empty":
            await self.answer(send, 204, b"")
        elif path == "/large":
            await self.answer(send, 200, bytes(3_000_000))
        else:
            await self.answer(send, 200, json.dumps({"path": path, "size": size}).encode())

    async def answer(self, send, status, body):
        headers = [(b"content-length", b"%d" % len(body))] if status != 204 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Served:
    def __init__(self, app, listener, server):
        self.app, self.listener, self.server = app, listener, server
        self.port = listener.port
        self.stop = trio.Event()
        self.ended = trio.Event()

    @property
    def refused(self):
        return self.server.statistics.refused

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, octets, *, within=8):
        """Send, and read to the end of the connection."""
        stream = await self.connect()
        async with stream:
            with trio.fail_after(within):
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(octets)
                return await read_to_end(stream)


async def soon(condition, *, within=5):
    """Wait until something of another task shows."""
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - counters have no events
            await trio.sleep(0.002)


async def read_to_end(stream):
    got = b""
    try:
        while octets := await stream.receive_some(65_536):
            got += octets
    except trio.BrokenResourceError:
        return got + b"<reset>"
    return got


@asynccontextmanager
async def serving(app=None, *, address="127.0.0.1:0", tls=None, **options):
    app = app or Application()
    listener = open_listener(address, tls=tls)
    async with trio.open_nursery() as nursery:
        served = Served(app, listener, None)

        async def run(task_status):
            await serve(
                app, [listener], shutdown_trigger=served.stop.wait, task_status=task_status, **options
            )
            served.ended.set()

        served.server = await nursery.start(run)
        yield served
        served.stop.set()
        app.release.set()
        with trio.fail_after(15):
            await served.ended.wait()


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


class H2Client:
    """An HTTP/2 client that does what it is told and nothing by itself."""

    def __init__(self, stream):
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.answers = {}
        self.ended = set()
        self.resets = {}
        self.goaway = None
        self.closed = False

    async def flush(self):
        octets = self.h2.data_to_send()
        if octets:
            await self.stream.send_all(octets)

    def request(self, path="/", method="POST", *, end=False, extra=()):
        stream_id = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.h2.send_headers(stream_id, head + list(extra), end_stream=end)
        return stream_id

    async def read(self):
        """One read from the network."""
        try:
            octets = await self.stream.receive_some(65_536)
        except (trio.BrokenResourceError, ssl.SSLError):
            octets = b""
        if not octets:
            self.closed = True
            return
        for event in self.h2.receive_data(octets):
            if isinstance(event, h2.events.ResponseReceived):
                self.answers[event.stream_id] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event.error_code
        await self.flush()

    async def until(self, condition, *, within=8):
        with trio.fail_after(within):
            while not condition(self) and not self.closed:
                await self.read()
        return condition(self)


async def open_h2(port, context):
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == "h2"
    client = H2Client(stream)
    await client.flush()
    return client
