"""Many devices in and out: as streams, told line by line, and nothing lost on the way."""

import csv
import io
import json
import tracemalloc
from contextlib import aclosing

import pytest

from fastpush.gateway.devices import transfer
from fastpush.gateway.devices.transfer import Export, import_devices
from fastpush.gateway.outbox import Audience
from fastpush.gateway.problems import Problem
from tests.gateway.registry_house import APP, NOW, open_house, token


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


async def take(house, text, form="ndjson", pieces=None):
    """Import a text, in pieces of so many octets."""
    octets = text.encode() if isinstance(text, str) else text

    async def chunks():
        size = pieces or max(1, len(octets))
        for first in range(0, len(octets), size):
            yield octets[first : first + size]

    async with aclosing(chunks()) as body:
        return await import_devices(house.devices, APP, body, form)


async def give(house, form):
    return b"".join([part async for part in Export(house.devices, APP, form)])


def told(imported):
    return [(problem.line, problem.field, problem.detail) for problem in imported.problems]


@pytest.mark.parametrize("pieces", [1, 7, None])
async def test_ndjson_is_taken_line_by_line(house, pieces):
    lines = [
        json.dumps({"device_token": token(1), "user": "alice", "tags": ["network", "night"]}),
        "",
        '{"device_token": "abc"}',
        "nonsense",
        json.dumps({"device_token": token(2), "environment": "sandbox"}),
        json.dumps({"device_token": token(3), "colour": "red"}),
        json.dumps({"device_token": token(4), "app": "other"}),
        '{"device_token": "\xff"}',
        json.dumps({"device_token": token(5), "tags": ["a;b"]}),
        "[" * 5_000,
        json.dumps({"device_token": token(6).upper(), "environment": "development", "locale": "de"}) + "\r",
    ]
    imported = await take(house, "\n".join(lines).encode("latin-1"), pieces=pieces)
    assert (imported.imported, imported.refused) == (2, 8)
    assert [(line, field) for line, field, _ in told(imported)] == [
        (3, "device_token"), (4, None), (5, "environment"), (6, None), (7, "app"), (8, None),
        (9, "tags[0]"), (10, None),
    ]  # fmt: skip
    assert "colour" in told(imported)[3][2]
    assert (await house.devices.get(APP, token(1))).tags == ("network", "night")
    last = await house.devices.get(APP, token(6))
    assert (last.environment, last.locale) == ("development", "de")
    again = await take(house, "\n".join(lines).encode("latin-1"))
    assert again.imported == 2, "repeating it does no harm"
    assert await house.devices.count(APP) == 2


@pytest.mark.parametrize("pieces", [1, 5, None])
async def test_csv_is_taken_with_quotes_and_ends_of_lines(house, pieces):
    text = (
        "\ufeffdevice_token,User,tags\r\n"
        f'{token(1)},"Meier, ""Bob""",network;night\r\n'
        f'{token(2)},"two\nlines",x\r\n'
        f"{token(3)},carol\r\n"
        "\r\n"
        f"{token(4)},,\r\n"
        f'{token(5)},"never closed,x\r\n'
    )
    imported = await take(house, text, "csv", pieces)
    assert (imported.imported, imported.refused) == (2, 3)
    assert [(line, field) for line, field, _ in told(imported)] == [(3, "user"), (5, None), (8, None)]
    assert "2 cells" in told(imported)[1][2]
    assert "not closed" in told(imported)[2][2]
    assert (await house.devices.get(APP, token(1))).user == 'Meier, "Bob"'


@pytest.mark.parametrize("header", ["user,tags", "device_token,colour", "device_token,device_token"])
async def test_csv_without_its_header_is_refused_as_a_whole(house, header):
    with pytest.raises(Problem, match="The first line has") as caught:
        await take(house, f"{header}\n{token(1)},x\n", "csv")
    assert caught.value.status == 422
    assert await house.devices.count(APP) == 0


async def test_a_cell_that_is_empty_says_none_of_tags_and_user(house):
    await house.register(1, "network", user="alice", locale="de")
    await take(house, f"device_token,user,tags,locale\n{token(1)},,,\n", "csv")
    device = await house.devices.get(APP, token(1))
    assert (device.user, device.tags, device.locale) == ("", (), "de")
    await house.register(2, "network", user="alice")
    await take(house, f"device_token\n{token(2)}\n", "csv")
    device = await house.devices.get(APP, token(2))
    assert (device.user, device.tags) == ("alice", ("network",))


NASTY = ["=1+1", "+41 44", "-1", "@SUM(A1)", "'quoted", "'=x", "''", "plain", 'say "hi", you', "ünï", "😀"]


@pytest.mark.parametrize("form", ["csv", "ndjson"])
async def test_what_goes_out_comes_in_again(tmp_path, form):
    """And a spreadsheet finds no formula in it."""
    async with open_house(tmp_path) as house:
        for number, user in enumerate(NASTY, 1):
            house.clock.now = NOW + number / 8
            environment = "development" if number % 2 else "production"
            await house.register(
                number, user.replace(",", ""), "x", user=user, environment=environment, locale="de"
            )
        await house.register(99)
        before = await house.devices.list(APP)
        text = await give(house, form)
    if form == "csv":
        for row in csv.reader(io.StringIO(text.decode(), newline="")):
            assert not [cell for cell in row if cell[:1] in tuple("=+-@\t\r")]
    (tmp_path / "other").mkdir()
    async with open_house(tmp_path / "other") as house:
        house.clock.now = NOW + 1_000
        imported = await take(house, text, form, 100)
        assert (imported.imported, imported.refused) == (len(NASTY) + 1, 0)
        after = await house.devices.list(APP)
        assert [
            (d.device_token, d.user, d.tags, d.environment, d.locale, d.registered_at) for d in after
        ] == [(d.device_token, d.user, d.tags, d.environment, d.locale, d.registered_at) for d in before]


async def test_the_dead_do_not_go_out_and_come_in_dead(house):
    """An export from before its death does not revive a device; one that says it registered since does."""
    await house.register(1, "x")
    old = await give(house, "ndjson")
    house.clock.now += 60
    house.devices.report(APP, [(token(1), 410, "Unregistered", int(NOW * 1_000) + 1, NOW)])
    await house.devices.settle()
    assert await give(house, "ndjson") == b""
    house.clock.now += 60
    await take(house, old)
    assert (await house.devices.get(APP, token(1))).dead_reason == "Unregistered"
    assert await house.devices.count(APP, Audience(any_of=("x",))) == 0
    await take(house, old.replace(b"1800000000.0", b"1800000061.0"))
    assert (await house.devices.get(APP, token(1))).dead_reason is None
    assert await house.devices.count(APP, Audience(any_of=("x",))) == 1


async def test_nobody_registers_in_the_time_to_come(house):
    """Else no 410 would ever count."""
    await take(house, json.dumps({"device_token": token(1), "registered_at": NOW * 2}))
    assert (await house.devices.get(APP, token(1))).registered_at == NOW


async def test_endless_lines_and_quotes_are_bounded(house):
    """In memory and in time: nothing grows with what has no end."""
    tracemalloc.start()
    imported = await take(house, b"x" * 3_000_000, pieces=65_536)
    assert told(imported) == [(1, None, transfer.TOO_LONG)]
    header = b"device_token,user\n"
    imported = await take(house, header + b'"' + b"\n" * 300_000 + b"x,y\n", "csv", 65_536)
    assert imported.refused == 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


async def test_problems_are_told_up_to_a_thousand(house):
    imported = await take(house, "x\n" * 5_000)
    assert (imported.refused, len(imported.problems)) == (5_000, 1_000)
