"""Floods and slowness: what many octets, frames or connections of one kind can do, and cannot."""

from __future__ import annotations

import gzip
import socket
import ssl
import statistics
import struct
import zlib
from contextlib import suppress

import pytest
import trio
import trustme

from fastpush.gateway.app import ingest_app
from fastpush.gateway.http import BodyRule, Limits, ServerTLS
from fastpush.gateway.http._server import _Reception

from .asgi import ask
from .gateways import open_gateway
from .http_child import child
from .http_peers import open_h2, read_to_end, serving, soon, status


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    issued.private_key_pem.write_to_path(folder / "server.key")
    return folder / "server.pem", folder / "server.key"


@pytest.fixture
def tls(files):
    return ServerTLS(*files)


@pytest.fixture
def trusting(authority):
    made = ssl.create_default_context()
    authority.configure_trust(made)
    return made


def frame(kind, flags, stream_id, payload=b""):
    """Of RFC 9113 §4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


async def flood(client, octets, *, seconds):
    """Send and never read. Whether the server ended it in this time."""
    with trio.move_on_after(seconds):
        try:
            while True:
                await client.stream.send_all(octets)
        except (trio.BrokenResourceError, ssl.SSLError):
            return True
    return False


# HTTP/2.


PINGS = frame(6, 0, 0, bytes(8)) * 1_000


async def test_a_flood_of_pings_unread_is_stopped_by_back_pressure(files, trusting):
    """What is not read of our answers stops our reading: no memory, and service for others."""
    async with child(*files) as server:
        client = await open_h2(server.port, trusting)
        before = server.resident()
        await flood(client, PINGS, seconds=3)
        assert server.resident() - before < 16 << 20
        other = await open_h2(server.port, trusting)
        stream_id = other.request("/x", "GET", end=True)
        await other.flush()
        assert await other.until(lambda c: stream_id in c.ended)
        for each in (client, other):
            await trio.aclose_forcefully(each.stream)
        assert (await server.end(within=15))[0] == 0


async def test_a_flood_of_pings_unread_ends_the_connection(tls, trusting):
    async with serving(tls=tls, limits=Limits(write_seconds=0.3)) as served:
        client = await open_h2(served.port, trusting)
        assert await flood(client, PINGS, seconds=20)
        assert served.refused["reads too slowly"] == 1
        await soon(lambda: not served.server.statistics.open)
        await trio.aclose_forcefully(client.stream)


async def test_a_flood_of_continuation_ends_the_connection(files, trusting):
    """CVE-2024-27316: a header block without end is not kept."""
    async with child(*files) as server:
        client = await open_h2(server.port, trusting)
        before = server.resident()
        await client.stream.send_all(frame(1, 0x1, 1, b"\x82"))
        assert await flood(client, frame(9, 0, 1, b"\x00\x01a\x7f\x80\x3e" + bytes(16_000)), seconds=5)
        assert server.resident() - before < 16 << 20
        await trio.aclose_forcefully(client.stream)
        assert (await server.end(within=15))[0] == 0


async def test_a_client_that_makes_us_reset_counts_as_one_that_resets(tls, trusting):
    """CVE-2025-8671, "MadeYouReset": DATA behind the end of a stream is an error of that stream alone."""
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting)
        with suppress(trio.BrokenResourceError, ssl.SSLError):
            for _ in range(1_000):
                stream_id = client.request("/x", "GET", end=True)
                octets = client.h2.data_to_send() + frame(0, 0, stream_id, b"x")
                await client.stream.send_all(octets)
        await soon(lambda: served.refused["resets"] == 1)
        await soon(lambda: not served.server.statistics.open)
        assert len(served.app.seen) < 2 * Limits().resets
        await trio.aclose_forcefully(client.stream)


async def test_the_window_of_a_connection_is_opened_as_bodies_are_read(tls, trusting):
    """20 MiB over 5 streams go through a window of 4 MiB, whoever reads last."""
    rule = BodyRule(octets=None, seconds=None)
    async with serving(tls=tls, body_rules=lambda scope: rule) as served:
        client = await open_h2(served.port, trusting)
        left = {client.request(f"/{number}"): 4 << 20 for number in range(5)}
        await client.flush()
        with trio.fail_after(20):
            while left:
                for stream_id in list(left):
                    size = min(
                        client.h2.local_flow_control_window(stream_id), 65_536, left[stream_id], 16_384
                    )
                    if size:
                        left[stream_id] -= size
                        client.h2.send_data(stream_id, bytes(size), end_stream=not left[stream_id])
                        await client.flush()
                        if not left[stream_id]:
                            del left[stream_id]
                            break
                if left and not any(client.h2.local_flow_control_window(each) for each in left):
                    await client.read()
        assert await client.until(lambda c: len(c.ended) == 5)
        assert sorted(size for _, _, size in served.app.seen) == [4 << 20] * 5
        await trio.aclose_forcefully(client.stream)


async def test_refusals_of_a_stream_leave_the_others(tls, trusting):
    """408, 413 and 431 are answers on their stream; the connection goes on."""
    limits = Limits(head_fields=10, body=BodyRule(octets=1_000, seconds=0.4))
    async with serving(tls=tls, limits=limits) as served:
        client = await open_h2(served.port, trusting)
        declared = client.request("/x", extra=[("content-length", "1001")])
        sent = client.request("/x")
        slow = client.request("/x")
        fields = client.request("/x", extra=[(f"x-{number}", "1") for number in range(11)])
        client.h2.send_data(sent, bytes(1_001))
        await client.flush()
        assert await client.until(lambda c: {declared, sent, slow, fields} <= c.ended | c.resets.keys())
        assert [client.answers[each] for each in (declared, sent, slow, fields)] == [413, 413, 408, 431]
        good = client.request("/good", "GET", end=True)
        await client.flush()
        assert await client.until(lambda c: good in c.ended)
        assert client.answers[good] == 200
        assert [path for _, path, _ in served.app.seen] == ["/good"]
        await trio.aclose_forcefully(client.stream)


# Connections.


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_an_ipv6_client_is_its_network(one, other, same):
    """Who has one address of a /64 has all of them (RFC 4291 §2.5.1)."""

    class Peer:
        family = socket.AF_INET6

        def __init__(self, address):
            self.address = address

        def getpeername(self):
            return self.address, 1, 0, 0

    class Guarding:
        class proxies:
            trusts = staticmethod(lambda peer: False)

    reception = _Reception(Guarding, None, None, None, None)
    assert (reception._who(Peer(one)) == reception._who(Peer(other))) is same


async def test_octets_unread_at_the_close_do_not_take_the_answer_with_them():
    """RFC 9112 §9.6: a close with octets unread is a reset, and the client may lose what it had not read."""
    limits = Limits(body=BodyRule(octets=1_000))
    async with serving(limits=limits) as served:
        for _ in range(5):
            stream = await served.connect()
            await stream.send_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            await soon(lambda: served.refused["body too large"])
            await trio.sleep(0.02)
            served.refused.clear()
            for _ in range(10):  # as a client does that reads its answer later
                await stream.send_all(bytes(50_000))
            await trio.sleep(0.05)
            answer = await read_to_end(stream)
            assert status(answer) == 413
            assert b"<reset>" not in answer
            await stream.aclose()


async def test_lingering_has_an_end_in_time_and_in_octets():
    limits = Limits(body=BodyRule(octets=1_000), linger_seconds=0.3, linger_octets=100_000)
    async with serving(limits=limits) as served:
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"
        quiet = await served.connect()
        await quiet.send_all(head)
        await soon(lambda: not served.server.statistics.open, within=2)
        await quiet.aclose()
        loud = await served.connect()
        await loud.send_all(head)
        with trio.fail_after(3), suppress(trio.BrokenResourceError):
            while True:
                await loud.send_all(bytes(65_536))
        await loud.aclose()


# Compressed bodies (S7).

ZEROS = bytes(10_000_000)
BOMBS = {
    "gzip": gzip.compress(ZEROS),
    "deflate": zlib.compress(ZEROS),
    "br": b"\x1b" * 1_000,
    "gzip, gzip": gzip.compress(gzip.compress(ZEROS)),
    "x-gzip": gzip.compress(ZEROS)[:50],
    "zstd": b"\x28\xb5\x2f\xfd" * 100,
}


@pytest.mark.parametrize("coding", BOMBS)
async def test_compressed_bodies_are_refused_unread_on_every_route(tmp_path, coding):
    """None is inflated, so that none can be a bomb."""
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        for path in app._hot:
            for method in app._hot[path]:
                for content_type in ("application/json", "application/x-ndjson"):
                    headers = {"Content-Type": content_type, "Content-Encoding": coding}
                    answer = await ask(app, method, path, body=BOMBS[coding], headers=headers)
                    assert (answer.status, answer.json["field"]) == (415, "Content-Encoding")
                    assert answer.headers["accept-encoding"] == "identity"


# Slow clients beside honest ones (S9).


@pytest.mark.slow
async def test_a_thousand_slow_connections_hardly_touch_the_honest(files, trusting):
    """Heads, bodies and answers that drip, handshakes that stall: gone in 15 s, 32 MiB at most."""
    async with child() as server:

        async def connect(number):
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            await sock.bind((f"127.0.1.{number % 200 + 1}", 0))
            await sock.connect(("127.0.0.1", server.port))
            return trio.SocketStream(sock)

        async def honest(waits, until):
            async with await connect(199) as stream:
                while trio.current_time() < until:
                    began = trio.current_time()
                    await stream.send_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
                    assert status(await stream.receive_some(4_096)) == 200
                    waits.append(trio.current_time() - began)
                    await trio.sleep(max(0, 0.01 - waits[-1]))

        async def load(seconds):
            waits = []
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(honest, waits, trio.current_time() + seconds)
            return [1e3 * wait for wait in statistics.quantiles(waits, n=100)]

        gone = []

        async def slow(number, began):
            head, body, answer, nothing = range(4)
            kind = answer if number % 10 == 0 else nothing if number % 10 < 3 else number % 2
            octets = {
                head: b"GET / HTTP/1.1\r\nX: ",
                body: b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
                answer: b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n",
                nothing: b"",
            }
            await trio.sleep(number / 1_000)
            async with await connect(number) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(octets[kind])
                    while kind in (head, body):
                        await trio.sleep(1)
                        await stream.send_all(b"x")
                    if kind == answer:
                        await trio.sleep(14)
                    await read_to_end(stream)
                gone.append(trio.current_time() - began)

        quiet = await load(3)
        before = server.resident()
        with trio.fail_after(25):
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                for number in range(1_000):
                    nursery.start_soon(slow, number, began)
                await trio.sleep(1)
                beset = await load(4)
                grown = server.resident() - before
        print(
            f"p50 {quiet[49]:.1f} -> {beset[49]:.1f} ms, p99 {quiet[98]:.1f} -> {beset[98]:.1f} ms;"
            f" {grown >> 20} MiB; the last gone after {max(gone):.1f} s"
        )
        assert grown < 32 << 20
        assert max(gone) < 16
        assert beset[49] < 2 * quiet[49] + 5
        assert beset[98] < 2 * quiet[98] + 50  # what a busy machine adds
        assert (await server.end(within=15))[0] == 0
