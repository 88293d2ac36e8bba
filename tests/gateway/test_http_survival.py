"""What ends hypercorn 0.18's trio worker, or keeps it from ending, and does nothing to ours."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
from contextlib import suppress

import pytest
import trio
import trustme

from fastpush.gateway.http import Limits, ServerTLS

from .http_peers import Application, open_h2, read_to_end, serving, soon, status


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(directory / "server.pem")
    issued.private_key_pem.write_to_path(directory / "server.key")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return directory


@pytest.fixture
def tls(files):
    return ServerTLS(files / "server.pem", files / "server.key")


@pytest.fixture
def trusting(authority):
    def context():
        made = ssl.create_default_context()
        authority.configure_trust(made)
        return made

    return context


async def alive(served, trusting):
    client = await open_h2(served.port, trusting())
    stream_id = client.request("/alive", "GET", end=True)
    await client.flush()
    assert await client.until(lambda c: stream_id in c.ended)
    assert client.answers[stream_id] == 200
    await trio.aclose_forcefully(client.stream)


async def test_clients_that_go_away_while_they_are_answered(tls, trusting):
    async with serving(tls=tls) as served:
        for _ in range(10):
            client = await open_h2(served.port, trusting())
            for _ in range(20):
                client.request("/large", "GET", end=True)
            await client.flush()
            await client.read()
            await trio.aclose_forcefully(client.stream)
        await soon(lambda: not served.server.statistics.open)
        await alive(served, trusting)


async def test_data_after_an_early_answer(tls, trusting):
    """Plain hypercorn: KeyError, and the process ends."""
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        stream_id = client.request("/early")
        await client.flush()
        assert await client.until(lambda c: stream_id in c.ended)
        assert client.answers[stream_id] == 401
        for _ in range(4):
            client.h2.send_data(stream_id, bytes(10_000))
        client.h2.end_stream(stream_id)
        other = client.request("/other", "GET", end=True)
        await client.flush()
        assert await client.until(lambda c: other in c.ended)
        await trio.aclose_forcefully(client.stream)
        assert not served.refused["error"]


async def test_a_mebioctet_after_an_early_answer_is_enough(tls, trusting):
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        stream_id = client.request("/early")
        await client.flush()
        assert await client.until(lambda c: stream_id in c.ended)
        with trio.fail_after(8):
            while stream_id not in client.resets:
                while stream_id not in client.resets and (
                    size := min(client.h2.local_flow_control_window(stream_id), 16_384)
                ):
                    client.h2.send_data(stream_id, bytes(size))
                    await client.flush()
                await client.read()
        assert client.resets[stream_id] == 0  # NO_ERROR: the answer stands
        await trio.aclose_forcefully(client.stream)


async def test_a_post_that_comes_as_the_server_ends(tls, trusting):
    """What has begun is answered; a stream beyond GOAWAY is refused so that it may be repeated elsewhere."""
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        held = client.request("/held", "POST", end=True)
        await client.flush()
        await soon(lambda: served.app.scopes)
        served.stop.set()
        assert await client.until(lambda c: c.goaway is not None)
        # h2 itself sends nothing after GOAWAY; a client that has not read it yet does.
        headers = client.h2.encoder.encode(
            [(":method", "POST"), (":path", "/late"), (":scheme", "https"), (":authority", "localhost")]
        )
        await client.stream.send_all(
            len(headers).to_bytes(3, "big") + b"\x01\x05" + (held + 2).to_bytes(4, "big") + headers
        )
        served.app.release.set()
        octets = b""
        with trio.fail_after(5):
            octets = await read_to_end(client.stream)
        await trio.aclose_forcefully(client.stream)
        assert (held + 2).to_bytes(4, "big") + (7).to_bytes(4, "big") in octets  # RST_STREAM, REFUSED_STREAM
        assert ("POST", "/held", 0) in served.app.seen
        assert not [path for _, path, _ in served.app.seen if path == "/late"]
        assert not served.refused["error"]


async def test_1200_requests_on_one_connection(tls, trusting):
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        for _ in range(24):
            wanted = [client.request("/x", "GET", end=True) for _ in range(50)]
            await client.flush()
            assert await client.until(lambda c, wanted=wanted: c.ended.issuperset(wanted))
        assert len(client.ended) == 1200
        await trio.aclose_forcefully(client.stream)


async def test_a_client_that_stops_reading_does_not_keep_the_server():
    async with serving(limits=Limits(write_seconds=0.3)) as served:
        stream = await served.connect()
        await stream.send_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await stream.receive_some(1)
        await soon(lambda: served.refused["reads too slowly"])
        await stream.aclose()


async def test_an_answer_without_end_is_cut_when_the_grace_is_over():
    async with serving(graceful_timeout=0.3) as served:
        stream = await served.connect()
        await stream.send_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await stream.receive_some(1)
        served.stop.set()
        with trio.fail_after(3):
            await served.ended.wait()
        await stream.aclose()


async def test_a_client_that_says_goaway_and_leaves(tls, trusting):
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        client.request("/held", "GET", end=True)
        await client.flush()
        await soon(lambda: served.app.scopes)
        client.h2.close_connection()
        await client.flush()
        await trio.aclose_forcefully(client.stream)
        served.app.release.set()
        await soon(lambda: not served.server.statistics.open)
        assert not served.refused["error"]


async def test_priorities_and_connect_are_harmless(tls, trusting):
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        for stream_id in range(1001, 5001, 2):
            await client.stream.send_all(b"\0\0\5\2\0" + stream_id.to_bytes(4, "big") + b"\0\0\0\0\1")
        stream_id = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream_id, [(":method", "CONNECT"), (":authority", "a:1")], end_stream=True)
        await client.flush()
        assert await client.until(lambda c: stream_id in c.ended)
        assert client.answers[stream_id] == 405
        await trio.aclose_forcefully(client.stream)
        assert not served.refused["error"]


async def test_rapid_reset_ends_the_connection_at_200(tls, trusting):
    async with serving(tls=tls) as served:
        client = await open_h2(served.port, trusting())
        with suppress(trio.BrokenResourceError):
            for _ in range(2_000):
                stream_id = client.request("/x")
                client.h2.reset_stream(stream_id)
                await client.flush()
        assert await client.until(lambda c: c.goaway is not None or c.closed)
        assert served.refused["resets"] == 1
        assert len(served.app.scopes) <= 201
        await trio.aclose_forcefully(client.stream)
        await alive(served, trusting)


async def test_an_unread_body_holds_up_its_own_stream_only(tls, trusting):
    class Lazy(Application):
        async def __call__(self, scope, receive, send):
            if scope.get("path") == "/lazy":
                await self.release.wait()
            await super().__call__(scope, receive, send)

    async with serving(Lazy(), tls=tls) as served:
        client = await open_h2(served.port, trusting())
        await client.read()
        lazy = client.request("/lazy")
        left = 2_000_000
        with trio.fail_after(5):
            while size := min(client.h2.local_flow_control_window(lazy), 16_384, left):
                client.h2.send_data(lazy, bytes(size))
                left -= size
                await client.flush()
        assert left == 2_000_000 - (1 << 20)  # the stream's window
        other = client.request("/other", "GET", end=True)
        await client.flush()
        assert await client.until(lambda c: other in c.ended)
        served.app.release.set()
        with trio.fail_after(5):
            while left:
                while size := min(client.h2.local_flow_control_window(lazy), 16_384, left):
                    client.h2.send_data(lazy, bytes(size))
                    left -= size
                    await client.flush()
                if left:
                    await client.read()
        client.h2.end_stream(lazy)
        await client.flush()
        assert await client.until(lambda c: lazy in c.ended)
        assert ("POST", "/lazy", 2_000_000) in served.app.seen
        await trio.aclose_forcefully(client.stream)


async def test_an_application_that_fails_is_a_500_and_no_more(caplog):
    async with serving() as served:
        answer = await served.exchange(b"GET /broken HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert status(answer) == 500
        assert b"application/problem+json" in answer
        assert b"ZeroDivision" not in answer
    assert "the application failed" in caplog.text


PLAIN = """
import sys, trio
from hypercorn.config import Config
from hypercorn.trio import serve
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    else:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})
config = Config()
config.bind = ["127.0.0.1:0"]
config.certfile, config.keyfile = sys.argv[1:]
async def main():
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(serve, app, config)
        print(binds[0].rpartition(":")[2], flush=True)
trio.run(main)
"""


async def test_plain_hypercorn_dies_of_data_after_an_early_answer(files, trusting):
    """Why there is a guard; when this fails, hypercorn has been cured and the guard may shrink."""
    command = [sys.executable, "-c", PLAIN, files / "server.pem", files / "server.key"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: ASYNC220
    try:
        with trio.fail_after(10):
            port = int(await trio.to_thread.run_sync(process.stdout.readline))
            client = await open_h2(port, trusting())
            stream_id = client.request("/")
            await client.flush()
            assert await client.until(lambda c: stream_id in c.ended)
            client.h2.send_data(stream_id, bytes(1_000))
            await client.flush()
            assert await trio.to_thread.run_sync(process.wait) == 1
        await trio.aclose_forcefully(client.stream)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
