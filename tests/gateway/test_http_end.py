"""The end, by a real SIGTERM to a real process; and applications that do not come to theirs."""

from __future__ import annotations

import json
import ssl

import pytest
import trio
import trustme

from fastpush.gateway.http import BodyRule, Limits

from .http_child import child
from .http_peers import Application, open_h2, read_to_end, serving, soon, status

GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path):
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    return tmp_path / "server.pem", tmp_path / "server.key"


@pytest.fixture
def trusting(authority):
    made = ssl.create_default_context()
    authority.configure_trust(made)
    return made


async def test_a_process_ends_though_a_client_has_stopped_reading():
    """Of plain hypercorn 0.18 such a client makes one that never exits."""
    async with child() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(GET % b"stream")
        await stream.receive_some(1_000)
        await trio.sleep(0.3)  # until all buffers between the two are full
        code, took = await server.end(within=15)
        assert code == 0
        assert took < 14
        await stream.aclose()


async def test_a_process_ends_well_though_a_client_said_goaway_and_left(files, trusting):
    """Of plain hypercorn the exit status is 1."""
    async with child(*files) as server:
        for _ in range(3):
            client = await open_h2(server.port, trusting)
            for _ in range(3):
                client.request("/held")
            await client.flush()
            client.h2.close_connection()
            await client.flush()
            await trio.aclose_forcefully(client.stream)
        await trio.sleep(0.1)
        code, took = await server.end(within=15)
        assert code == 0
        assert took < 5


async def test_a_process_finishes_what_it_has_begun():
    async with child() as server, trio.open_nursery() as nursery:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
        await trio.sleep(0.1)
        ended = []

        async def end():
            ended.append(await server.end(within=10))

        nursery.start_soon(end)
        await trio.sleep(0.3)
        await stream.send_all(b"lo")
        answer = await read_to_end(stream)
        assert status(answer) == 200
        assert b'"size": 5' in answer
        await stream.aclose()
    assert ended[0][0] == 0


# Applications.

SHORT = Limits(body=BodyRule(answer_seconds=0.3, patience=5))


class Slow(Application):
    """/slow thinks for ever, /thinks after its answer has begun, all else answers."""

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/slow":
            try:
                await trio.sleep_forever()
            finally:
                self.seen.append("given up")
        if scope["type"] == "http" and scope["path"] == "/thinks":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"wait", "more_body": True})
            await trio.sleep(0.6)
            await send({"type": "http.response.body", "body": b"done"})
            return
        await super().__call__(scope, receive, send)


async def test_an_application_that_does_not_answer_is_given_up():
    """And is told to end, as by a cancellation; the client gets an answer."""
    async with serving(Slow(), limits=SHORT) as served:
        began = trio.current_time()
        answer = await served.exchange(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert 0.25 < trio.current_time() - began < 3
        assert status(answer) == 503
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 503
        assert served.app.seen == ["given up"]
        assert served.refused["application too slow"] == 1


async def test_the_time_of_a_slow_client_is_not_the_applications():
    async with serving(Slow(), limits=SHORT) as served:
        stream = await served.connect()
        await stream.send_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        for _ in range(5):
            await trio.sleep(0.15)
            await stream.send_all(b"x")
        assert status(await stream.receive_some(10_000)) == 200
        await stream.aclose()


async def test_an_answer_that_has_begun_may_take_its_time():
    async with serving(Slow(), limits=SHORT) as served:
        stream = await served.connect()
        await stream.send_all(GET % b"thinks")
        await trio.sleep(0.8)
        answer = await stream.receive_some(10_000)
        assert b"wait" in answer
        assert b"done" in answer
        await stream.aclose()


# Owners.


class Owned(Application):
    """Every path is an owner's name; 429 if that one has too many."""

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            within = scope["state"]["owned_by"](scope["path"])
            await self.answer(send, 200 if within else 429, b"")
            return
        await super().__call__(scope, receive, send)


async def test_connections_of_one_owner_are_counted():
    """Each connection once, however many requests; it makes room when it ends or serves another."""
    async with serving(Owned(), limits=Limits(connections_per_owner=2)) as served:

        async def ask(stream, name):
            await stream.send_all(GET % name)
            return status(await stream.receive_some(10_000))

        one, two, three = [await served.connect() for _ in range(3)]
        assert [await ask(stream, b"a") for stream in (one, two, one, two)] == [200] * 4
        assert await ask(three, b"a") == 429
        assert await ask(three, b"b") == 200
        assert served.refused["connections of an owner"] == 1
        assert await ask(two, b"b") == 200
        assert await ask(three, b"a") == 200
        await one.aclose()
        await soon(lambda: served.server.statistics.open == 2)
        assert await ask(two, b"a") == 200
        for stream in (two, three):
            await stream.aclose()


async def test_the_reason_of_a_status_is_told():
    """h2load, and other old clients, cannot do without."""
    async with serving() as served:
        answer = await served.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (await served.exchange(b"GET x HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(
            b"HTTP/1.1 400 Bad Request\r\n"
        )
