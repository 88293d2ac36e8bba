"""Signed webhooks, as Standard Webhooks spells them: those that come in, and what replays meet."""

import pytest

from fastpush.gateway import signatures
from fastpush.gateway.auth import signed
from fastpush.gateway.problems import Problem
from fastpush.gateway.signatures import read_signing_secret, sign, verify, write_signing_secret
from tests.gateway.registry_house import Clock, open_house, request

BODY = b'{"alarm":"down"}'


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


def test_the_specifications_own_example():
    """The vector that the libraries of Standard Webhooks are tested with."""
    secret = read_signing_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert read_signing_secret(write_signing_secret(secret)) == secret


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_***", "whsec_c2hvcnQ=", "whsec_" + "A" * 100, "x" * 40]
)
def test_a_secret_that_is_none_is_told_without_it(text):
    with pytest.raises(ValueError, match="a signing secret") as caught:
        read_signing_secret(text)
    assert len(text) < 10 or text not in str(caught.value)


def test_any_of_several_signatures_counts():
    """While one secret is exchanged for another; other versions are passed over, ten are read."""
    old, new = b"o" * 32, b"n" * 32
    both = f"v1a,xyz {sign(old, 'm', 1, BODY)} {sign(new, 'm', 1, BODY)}"
    assert verify([new], both, "m", 1, BODY)
    assert verify([b"x" * 32, old], both, "m", 1, BODY)
    assert not verify([b"x" * 32], both, "m", 1, BODY)
    assert not verify([new], "v1, " * 10 + sign(new, "m", 1, BODY), "m", 1, BODY)
    for change in (("m2", 1, BODY), ("m", 2, BODY), ("m", 1, BODY + b" ")):
        assert not verify([new], both, *change)


class Sender:
    """Whoever has the signing secret."""

    def __init__(self, house, key_id, secret):
        self.house, self.key_id, self.secret = house, key_id, read_signing_secret(secret)

    def headers(self, message_id="msg_1", body=BODY, at=None, **other):
        at = int(self.house.clock.now) if at is None else at
        found = {
            signatures.ID: message_id,
            signatures.TIMESTAMP: str(at),
            signatures.SIGNATURE: sign(self.secret, message_id, at, body),
        } | {name.encode(): value for name, value in other.items()}
        return [(name, value.encode()) for name, value in found.items()]

    async def send(self, headers, body=BODY, house=None):
        scope = request(self.key_id, headers=headers)
        assert (house or self.house).keys.is_signed(scope)
        return await (house or self.house).keys.authenticate(scope, body=body)

    async def refused(self, headers, body=BODY, house=None):
        with pytest.raises(Problem) as caught:
            await self.send(headers, body, house)
        return caught.value


async def sender_of(house, *scopes):
    return Sender(house, *await house.keys.create("opmanager", scopes or ["alarms"], signed=True))


async def test_a_signature_proves_who_sent_the_body(house):
    sender = await sender_of(house)
    assert (await sender.send(sender.headers())).name == "opmanager"
    assert house.keys.list()[0].signed
    assert house.keys.list()[0].last_used_at == house.clock.now


async def test_the_id_of_a_signing_key_alone_proves_nothing(house):
    sender = await sender_of(house)
    with pytest.raises(Problem) as caught:
        await house.keys.authenticate(request(sender.key_id), body=BODY)
    assert caught.value.status == 401


async def test_another_body_id_or_time_is_refused(house):
    sender = await sender_of(house)
    assert (await sender.refused(sender.headers(), b"{}")).status == 401
    assert (await sender.refused([*sender.headers()[1:], (signatures.ID, b"msg_2")])).status == 401
    later = str(int(house.clock.now) + 1).encode()
    assert (await sender.refused([*sender.headers()[::2], (signatures.TIMESTAMP, later)])).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(signatures.ID, b"m"), (signatures.SIGNATURE, b"v1,x")],
        [(signatures.ID, b"m"), (signatures.TIMESTAMP, b"now"), (signatures.SIGNATURE, b"v1,x")],
        [(signatures.ID, b"m"), (signatures.TIMESTAMP, "\u0661".encode()), (signatures.SIGNATURE, b"v1,x")],
        [(signatures.ID, b"m" * 300), (signatures.TIMESTAMP, b"1"), (signatures.SIGNATURE, b"v1,x")],
        [(signatures.ID, b"\xff"), (signatures.TIMESTAMP, b"1"), (signatures.SIGNATURE, b"v1,x")],
        [(signatures.ID, b"a"), (signatures.ID, b"b"), (signatures.TIMESTAMP, b"1"),
         (signatures.SIGNATURE, b"v1,x")],
    ],
)  # fmt: skip
async def test_headers_that_are_no_signature_are_refused(house, headers):
    sender = await sender_of(house)
    with pytest.raises(Problem) as caught:
        await house.keys.authenticate(request(sender.key_id, headers=headers), body=BODY)
    assert caught.value.status == 401


async def test_a_body_that_is_not_read_cannot_be_signed(house):
    sender = await sender_of(house)
    assert "not read as a whole" in (await sender.refused(sender.headers(), None)).detail


async def test_a_signature_is_good_for_five_minutes_either_way(house):
    sender = await sender_of(house)
    now = int(house.clock.now)
    for number, at in enumerate((now - 300, now + 300)):
        assert await sender.send(sender.headers(f"msg_{number}", at=at))
    for at in (now - 301, now + 301):
        assert "clock" in (await sender.refused(sender.headers("late", at=at))).detail


async def test_a_signature_is_good_once_also_after_a_restart(tmp_path):
    clock = Clock()
    async with open_house(tmp_path, clock) as house:
        sender = await sender_of(house)
        headers = sender.headers()
        await sender.send(headers)
        assert (await sender.refused(headers)).status == 409
        clock.now += 10
        assert await sender.send(sender.headers()), "the same message, signed anew, is a retry and no replay"
    async with open_house(tmp_path, clock) as house:
        clock.now += 289
        assert (await sender.refused(headers, house=house)).status == 409
        clock.now += 2
        assert (await sender.refused(headers, house=house)).status == 401, "too old by now"
        await house.keys.keep_house()
        rows = await house.storage.read(
            lambda connection: connection.execute("SELECT count(*) FROM signature").fetchone()[0]
        )
        assert rows == 1, "what is too old to be repeated is not kept"


async def test_the_same_message_of_two_keys_is_no_replay(house):
    first, second = await sender_of(house), await sender_of(house)
    assert await first.send(first.headers())
    assert await second.send(second.headers())


async def test_what_is_remembered_is_bounded(house, monkeypatch):
    """Full, it refuses; it does not forget what could still be repeated."""
    monkeypatch.setattr(signed, "MAX_REMEMBERED", 3)
    sender = await sender_of(house)
    for number in range(3):
        await sender.send(sender.headers(f"msg_{number}"))
    problem = await sender.refused(sender.headers("msg_3"))
    assert (problem.status, problem.headers["Retry-After"]) == (503, "300")
    assert (await sender.refused(sender.headers("msg_0"))).status == 409
    house.clock.now += 301
    assert await sender.send(sender.headers("msg_4"))


async def test_a_signing_key_is_revoked_like_others(house):
    sender = await sender_of(house)
    await sender.send(sender.headers())
    await house.keys.revoke(sender.key_id)
    assert (await sender.refused(sender.headers("msg_2"))).detail == "This key was revoked."
