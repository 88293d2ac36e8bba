"""Uploads of lines: stored in chunks as they arrive, each line for itself, never all in memory."""

from __future__ import annotations

import json
import os

import pytest
import trio

from fastpush.gateway.api.notifications import upload
from fastpush.gateway.app import ingest_app
from fastpush.gateway.storage import StorageFull
from tests.gateway.asgi import ask
from tests.gateway.gateways import Keys, Known, open_gateway, serving_gateway, waiting

LINES = {"Content-Type": "application/x-ndjson"}


def line(number, **more):
    return json.dumps({"device_token": f"{number:064x}", "alert": f"number {number}", **more}).encode()


def lines(first, last):
    """With a line feed each."""
    return b"".join(line(number) + b"\n" for number in range(first, last + 1))


async def post(app, body, path="/v1/notifications", **headers):
    named = {name.replace("_", "-"): each for name, each in headers.items()}
    return await ask(app, "POST", path, body=body, headers=LINES | named)


async def numbers(gateway):
    """Which lines wait to be sent."""
    return [int(entry.device_token, 16) for entry in await waiting(gateway)]


class Sender:
    """A POST of lines over a real socket, chunked, octet by octet under our control."""

    def __init__(self, stream):
        self.stream = stream

    @classmethod
    async def begin(cls, port, *, key=None, path="/v1/notifications"):
        self = cls(await trio.open_tcp_stream("127.0.0.1", port))
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
        if key is not None:
            head += f"Idempotency-Key: {key}\r\n"
        await self.stream.send_all(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        return self

    async def send(self, octets):
        await self.stream.send_all(b"%x\r\n%s\r\n" % (len(octets), octets))

    async def cut(self):
        await self.stream.aclose()

    async def end(self):
        """The answer: status and JSON."""
        await self.stream.send_all(b"0\r\n\r\n")
        return await self.answer()

    async def answer(self):
        got = b""
        with trio.fail_after(20):
            while b"\r\n\r\n" not in got:
                got += await self.stream.receive_some() or pytest.fail(f"no answer: {got!r}")
            head, _, body = got.partition(b"\r\n\r\n")
            fields = dict(each.lower().split(b": ", 1) for each in head.split(b"\r\n")[1:])
            while len(body) < int(fields[b"content-length"]):
                body += await self.stream.receive_some()
        await self.stream.aclose()
        return int(head.split()[1]), json.loads(body)


async def stored(gateway, count):
    """Wait until so many are accepted and on disk."""
    with trio.fail_after(10):
        while True:
            waiting = gateway.outbox.waiting().get("opm")
            if waiting is not None and waiting.count >= count:
                return waiting.count
            await trio.sleep(0.01)


# One body, of every form.


async def test_lines_are_accepted_and_their_ids_told(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), lines(1, 1_000))
        told = answer.json
        assert (answer.status, told["count"], told["lines"]) == (202, 1_000, 1_000)
        assert told["bad_lines"] == {"count": 0, "lines": []}
        assert len(set(told["ids"])) == 1_000
        assert answer.headers["location"] == f"/v1/batches/{told['batch']}"
        assert await numbers(gateway) == list(range(1, 1_001))
        assert gateway.counters.notifications == {"opm": 1_000}


@pytest.mark.parametrize(
    "body",
    [
        line(1) + b"\n" + line(2),
        line(1) + b"\r\n" + line(2) + b"\r\n",
        b"\n" + line(1) + b"\n\n\r\n" + line(2) + b"\n\n",
    ],
    ids=["last line without newline", "CRLF", "empty lines"],
)
async def test_line_ends(tmp_path, body):
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), body)
        assert (answer.status, answer.json["count"]) == (202, 2)
        assert answer.json["bad_lines"]["count"] == 0
        assert await numbers(gateway) == [1, 2]


async def test_a_bad_line_is_left_out_and_told_by_its_number(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        bad = [
            b'{"device_token":"xyz","alert":"a"}',
            b"not JSON",
            line(0, alert={"title": 3}),
            line(0, audience={"everyone": True}),
            line(0, colour="red"),
            b"\xff",
        ]
        body = b"\n".join([line(1), *bad, line(2), b""])
        answer = await post(ingest_app(gateway), body)
        assert (answer.status, answer.json["count"], answer.json["lines"]) == (202, 2, 8)
        found = answer.json["bad_lines"]
        assert found["count"] == 6
        assert [(each["line"], each["field"]) for each in found["lines"]] == [
            (2, "device_token"),
            (3, None),
            (4, "alert.title"),
            (5, "device_token"),
            (6, "colour"),
            (7, None),
        ]
        assert all(each["detail"].endswith(".") for each in found["lines"])
        assert await numbers(gateway) == [1, 2]


async def test_of_many_bad_lines_the_first_hundred_are_told(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), b"x\n" * 5_000 + line(1))
        assert answer.json["bad_lines"]["count"] == 5_000
        assert [each["line"] for each in answer.json["bad_lines"]["lines"]] == list(range(1, 101))
        assert await numbers(gateway) == [1]


async def test_a_body_without_any_good_line_is_refused(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        for body, count in [(b"x\ny", 2), (b"", 0), (b"\n\n", 0)]:
            for headers in ({}, {"idempotency_key": "k"}):
                answer = await post(app, body, **headers)
                assert (answer.status, answer.json["bad_lines"]["count"]) == (422, count)
                assert answer.json["stored"] is False


@pytest.mark.parametrize("octets", [upload.MAX_LINE_OCTETS + 1, 1_000_000])
@pytest.mark.parametrize("step", [1_000_000_000, 50_000])
async def test_a_line_that_is_too_long_is_not_kept(tmp_path, octets, step):
    """In one piece or in many; the lines before and after it are good, and a repetition finds them equal."""
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        body = line(1) + b"\n" + b'"' * octets + b"\n" + line(2) + b"\n"
        for _ in range(2):
            sender = await Sender.begin(port, key="k")
            for place in range(0, len(body), step):
                await sender.send(body[place : place + step])
            status, told = await sender.end()
            assert (status, told["count"], told["lines"]) == (202, 2, 3)
            assert [each["line"] for each in told["bad_lines"]["lines"]] == [2]
            step = 70_001
        assert await numbers(gateway) == [1, 2]


async def test_a_line_too_long_at_the_end_without_newline(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), line(1) + b"\n" + b"x" * 1_000_000)
        assert (answer.status, answer.json["lines"]) == (202, 2)
        assert [each["line"] for each in answer.json["bad_lines"]["lines"]] == [2]


async def test_one_line_for_many_devices(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        one = json.dumps({"device_tokens": [f"{n:064x}" for n in range(1, 1_001)], "alert": "a"}).encode()
        answer = await post(ingest_app(gateway), one + b"\n" + line(1_001))
        assert (answer.status, answer.json["count"], answer.json["lines"]) == (202, 1_001, 2)
        assert answer.json["ids"] is None
        assert await numbers(gateway) == list(range(1, 1_002))


async def test_the_app_of_an_upload_is_in_the_query(tmp_path):
    async with open_gateway(tmp_path, apps=("a", "b")) as gateway:
        app = ingest_app(gateway)
        assert (await post(app, line(1))).json["field"] == "app"
        body = line(1, app="b") + b"\n" + line(2) + b"\n" + line(3, app="a")
        answer = await post(app, body, "/v1/notifications?app=b")
        assert (answer.json["app"], answer.json["count"]) == ("b", 2)
        assert [(each["line"], each["field"]) for each in answer.json["bad_lines"]["lines"]] == [(3, "app")]


# Chunks.


async def test_more_than_a_chunk_is_a_stream_of_batches(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app, count = ingest_app(gateway), 2 * upload.CHUNK_ENTRIES + 7
        answer = await post(app, lines(1, count))
        assert (answer.status, answer.json["count"], answer.json["ids"]) == (202, count, None)
        assert await numbers(gateway) == list(range(1, count + 1))
        status = (await ask(app, "GET", answer.headers["location"])).json
        assert (status["kind"], status["count"], len(status["batches"])) == ("stream", count, 3)


async def test_at_most_two_chunks_are_in_memory(tmp_path, monkeypatch):
    """While the disk is at one, another is filled, and then nothing more is read."""
    monkeypatch.setattr(upload, "CHUNK_ENTRIES", 10)
    async with open_gateway(tmp_path) as gateway:
        released = trio.Event()
        accept, under_way, most = gateway.outbox.accept, 0, 0

        async def slow(*args, **options):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await released.wait()
            under_way -= 1
            return await accept(*args, **options)

        monkeypatch.setattr(gateway.outbox, "accept", slow)
        read = 0

        async def receive():
            nonlocal read
            await trio.lowlevel.checkpoint()
            read += 1
            return {"type": "http.request", "body": line(read) + b"\n", "more_body": read < 100}

        answer = []

        async def send(message):
            answer.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/notifications", "query_string": b"",
            "headers": [(b"content-type", b"application/x-ndjson")], "state": {}, "client": None,
        }  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ingest_app(gateway), scope, receive, send)
            await trio.sleep(0.3)
            assert read == 20
            released.set()
        assert answer[0]["status"] == 202
        assert most == 1
        assert await numbers(gateway) == list(range(1, 101))


async def test_lines_that_come_slowly_are_stored_all_the_same(tmp_path):
    """What has come is on disk within a second, however long the upload goes on."""
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port)
        for number in (1, 2, 3):
            await sender.send(line(number) + b"\n")
            with trio.fail_after(2):
                await stored(gateway, number)
        status, told = await sender.end()
        assert (status, told["count"]) == (202, 3)
        assert len(told["ids"]) == 3


# Cut, and repeated.


async def test_an_upload_cut_in_a_line_goes_on_where_it_ended(tmp_path):
    """No 202 for the first; what came in whole lines stays, and the repetition adds the rest once."""
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        whole = lines(1, 5_000)
        sender = await Sender.begin(port, key="k")
        await sender.send(whole[: len(whole) // 2 + 11])
        await stored(gateway, upload.CHUNK_ENTRIES)
        await sender.cut()
        await stored(gateway, 2_400)
        assert 2_400 < gateway.outbox.waiting()["opm"].count < 5_000
        sender = await Sender.begin(port, key="k")
        await sender.send(whole)
        status, told = await sender.end()
        assert (status, told["count"], told["lines"], told["ids"]) == (202, 5_000, 5_000, None)
        assert await numbers(gateway) == list(range(1, 5_001))


async def test_an_upload_cut_between_chunks_goes_on(tmp_path):
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port, key="k")
        await sender.send(lines(1, upload.CHUNK_ENTRIES))
        await stored(gateway, upload.CHUNK_ENTRIES)
        await sender.cut()
        sender = await Sender.begin(port, key="k")
        await sender.send(lines(1, upload.CHUNK_ENTRIES + 5))
        status, told = await sender.end()
        assert (status, told["count"]) == (202, upload.CHUNK_ENTRIES + 5)
        assert await numbers(gateway) == list(range(1, upload.CHUNK_ENTRIES + 6))


async def test_a_cut_upload_reports_bad_lines_of_its_first_part_again(tmp_path):
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        first = line(1) + b"\nbad\n" + line(3) + b"\n"
        sender = await Sender.begin(port, key="k")
        await sender.send(first)
        await stored(gateway, 2)
        await sender.cut()
        sender = await Sender.begin(port, key="k")
        await sender.send(first + b"bad too\n" + line(5))
        status, told = await sender.end()
        assert (status, told["count"]) == (202, 3)
        assert [each["line"] for each in told["bad_lines"]["lines"]] == [2, 4]
        assert await numbers(gateway) == [1, 3, 5]


async def test_a_cut_upload_without_a_key_keeps_what_was_stored(tmp_path):
    """And stores nothing more: nobody could tell that it is there."""
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port)
        await sender.send(lines(1, upload.CHUNK_ENTRIES + 3))
        await stored(gateway, upload.CHUNK_ENTRIES)
        await sender.cut()
        await trio.sleep(upload.CHUNK_AFTER + 0.2)
        assert await numbers(gateway) == list(range(1, upload.CHUNK_ENTRIES + 1))


async def test_a_finished_upload_is_answered_again(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        for count in (10, 5_000):
            body = lines(1, count) + b"bad\n"
            first = await post(app, body, idempotency_key=f"k{count}")
            again = await post(app, body, idempotency_key=f"k{count}")
            assert (again.status, again.json) == (202, first.json)
            assert again.headers["idempotency-replayed"] == "true"
            assert again.headers["location"] == first.headers["location"]
        assert len(await numbers(gateway)) == 5_010


@pytest.mark.parametrize(
    "other",
    [
        lines(2, 11),
        lines(1, 9),
        lines(1, 11),
        lines(1, 9) + line(10) + b" \n",
        b"\n" + lines(1, 10),
    ],
    ids=["first line", "shorter", "longer", "last line", "an empty line"],
)
async def test_a_repetition_with_other_lines_is_409(tmp_path, other):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        assert (await post(app, lines(1, 10), idempotency_key="k")).status == 202
        answer = await post(app, other, idempotency_key="k")
        assert (answer.status, answer.json["field"]) == (409, "Idempotency-Key")
        assert await numbers(gateway) == list(range(1, 11))


@pytest.mark.parametrize("change", ["a line", "fewer lines"])
async def test_a_cut_upload_repeated_with_other_lines_is_409(tmp_path, change):
    """And adds nothing, not even what would be new."""
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port, key="k")
        await sender.send(lines(1, 100))
        await stored(gateway, 100)
        await sender.cut()
        sender = await Sender.begin(port, key="k")
        await sender.send(lines(1, 50))
        if change == "a line":
            await sender.send(lines(52, 200))
        status, told = await sender.end()
        assert (status, told["field"]) == (409, "Idempotency-Key")
        assert await numbers(gateway) == list(range(1, 101))


async def test_two_uploads_at_once_under_one_key(tmp_path, monkeypatch):
    """The second waits for the first, and then is its repetition; it does not wait for ever."""
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        first = await Sender.begin(port, key="k")
        await first.send(lines(1, 10))
        await stored(gateway, 10)
        second = await Sender.begin(port, key="k")
        await second.send(lines(1, 20))
        await first.send(lines(11, 20))
        told = await first.end()
        assert told[0] == 202
        assert await second.end() == told
        monkeypatch.setattr("fastpush.gateway.api.notifications.intake.UPLOAD_WAITS", 0.2)
        third = await Sender.begin(port, key="l")
        await third.send(line(1) + b"\n")
        await stored(gateway, 21)
        fourth = await Sender.begin(port, key="l")
        status, refused = await fourth.answer()
        assert (status, refused["title"]) == (409, "upload under way")
        assert (await third.end())[0] == 202
        assert len(await numbers(gateway)) == 21


async def test_the_same_key_for_another_app_is_409(tmp_path):
    async with open_gateway(tmp_path, apps=("a", "b")) as gateway:
        app = ingest_app(gateway)
        assert (await post(app, line(1), "/v1/notifications?app=a", idempotency_key="k")).status == 202
        assert (await post(app, line(1), "/v1/notifications?app=b", idempotency_key="k")).status == 409


async def test_an_upload_survives_a_restart_in_between(tmp_path):
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port, key="k")
        await sender.send(lines(1, 30))
        await stored(gateway, 30)
        await sender.cut()
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), lines(1, 40), idempotency_key="k")
        assert (answer.status, answer.json["count"]) == (202, 40)
        assert sorted(await numbers(gateway)) == list(range(1, 41))


# When no more can be stored.


async def test_a_disk_that_fills_up_in_the_middle(tmp_path, monkeypatch):
    """The answer says how far it came; the repetition goes on from there."""
    async with open_gateway(tmp_path) as gateway:
        app, accept, calls = ingest_app(gateway), gateway.outbox.accept, 0

        async def filling(*args, **options):
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StorageFull("full")
            return await accept(*args, **options)

        monkeypatch.setattr(gateway.outbox, "accept", filling)
        body = lines(1, 5_000)
        answer = await post(app, body, idempotency_key="k")
        assert (answer.status, answer.json["stored"]) == (507, "partly")
        done = answer.json["stored_lines"]
        assert await numbers(gateway) == list(range(1, done + 1))
        assert (await ask(app, "GET", f"/v1/batches/{answer.json['batch']}")).json["count"] == done
        answer = await post(app, body, idempotency_key="k")
        assert (answer.status, answer.json["count"]) == (202, 5_000)
        assert await numbers(gateway) == list(range(done + 1, 5_001))


async def test_memory_of_all_uploads_is_bounded(tmp_path, monkeypatch):
    """Readers wait while others hold what there is, and go on when it is stored."""
    async with open_gateway(tmp_path) as gateway:
        room = upload.Room(1_000)
        room.take(1_000)
        with trio.move_on_after(0.05) as waited:
            await room.wait()
        assert waited.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(room.wait)
            await trio.testing.wait_all_tasks_blocked()
            room.give(1)
        app = ingest_app(gateway)
        intake = app._hot["/v1/notifications"]["POST"].__self__
        async with trio.open_nursery() as nursery:
            for start in range(0, 8_000, 2_000):
                nursery.start_soon(post, app, lines(start + 1, start + 2_000))
        assert intake._room.held == 0
        assert (await post(app, b"x\n" * 10)).status == 422
        assert await ask(app, "POST", "/v1/notifications", body=lines(1, 5), headers=LINES, cut=True) is None
        assert intake._room.held == 0


# A million.


@pytest.mark.slow
async def test_a_million_lines_are_never_in_memory(tmp_path):
    """Over a socket; the process that reads them grows by less than 64 MiB."""

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    million = 1_000_000
    async with open_gateway(tmp_path) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port, key="k")
        await sender.send(lines(1, 10_000))
        await stored(gateway, 8_000)
        before = most = resident()
        for start in range(10_000, million, 10_000):
            await sender.send(lines(start + 1, start + 10_000))
            most = max(most, resident())
        status, told = await sender.end()
        assert (status, told["count"], told["ids"]) == (202, million, None)
        assert gateway.outbox.waiting()["opm"].count == million
        assert most - before < 64 << 20


async def test_a_key_without_the_scope_is_refused_before_the_body(tmp_path):
    keys = Keys(k=Known(scopes=frozenset()))
    async with open_gateway(tmp_path, keys=keys) as gateway, serving_gateway(gateway) as port:
        sender = await Sender.begin(port)
        status, told = await sender.answer()
        assert (status, told["title"]) == (403, "not allowed")
