"""How a phone comes to a secret of its own, and what it is good for."""

import pytest
import trio

from fastpush.gateway.auth import CONTROL, Enrolled
from fastpush.gateway.auth.secret import CODE_DIGITS, read_code
from fastpush.gateway.problems import Problem
from tests.gateway.registry_house import APP, open_house, request


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


async def made(house, *tags, **fields):
    return await house.keys.phones.create_code(APP, "alice", tags, by=CONTROL, **fields)


async def refused(house, code, **fields):
    with pytest.raises(Problem) as caught:
        await house.keys.phones.enrol(code, **fields)
    return caught.value.status


async def test_a_phone_enrols_with_a_code(house):
    code = await made(house, "network", "night")
    enrolled = await house.keys.phones.enrol(code.code, address="192.0.2.9")
    assert (enrolled.app, enrolled.user, enrolled.tags) == (APP, "alice", ("network", "night"))
    phone = await house.keys.authenticate(request(enrolled.device_secret))
    assert (phone.kind, phone.user, phone.app, phone.key_id) == (
        "device",
        "alice",
        APP,
        enrolled.enrolment_id,
    )
    assert phone.scopes == frozenset()
    assert phone.device_token is None
    assert phone.name == "alice"
    created, used = await house.keys.log.read()
    assert (created.action, used.action, used.key_id, used.address) == (
        "code.created", "phone.enrolled", enrolled.enrolment_id, "192.0.2.9",
    )  # fmt: skip


async def test_codes_are_read_as_people_type_them(house):
    assert not set(CODE_DIGITS) & set("01OILUoilu")
    for typed in (str.lower, lambda code: code.replace("-", " "), lambda code: f" {code} ", "-".join):
        code = (await made(house)).code
        assert isinstance(await house.keys.phones.enrol(typed(code)), Enrolled)
    for wrong in (
        "",
        "K7QM",
        "K7QM-3XPD9RR",
        "K7QM-3XPD0R",
        "K7QM-3XPD9R" + " " * 50,
        "\0" * 10,
        "Ｋ7QM3XPD9R",
    ):
        assert read_code(wrong) is None
        assert await refused(house, wrong, address=wrong) == 401


async def test_a_code_is_good_once(house):
    code = await made(house)
    await house.keys.phones.enrol(code.code)
    assert await refused(house, code.code) == 401


async def test_two_phones_with_one_code_at_once(house):
    """One of them gets in, whichever: the code is taken in the transaction that adds the phone."""
    code = await made(house)
    got, lost = [], []

    async def enrol(address):
        try:
            got.append(await house.keys.phones.enrol(code.code, address=address))
        except Problem as problem:
            lost.append(problem.status)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(enrol, f"192.0.2.{number}")
    assert len(got) == 1
    assert lost == [401] * 3
    count = await house.storage.read(
        lambda connection: connection.execute("SELECT count(*) FROM enrolment").fetchone()[0]
    )
    assert count == 1


async def test_a_code_expires(house):
    code = await made(house, valid_for=600.0)
    assert code.expires_at == house.clock.now + 600
    house.clock.now += 600
    assert await refused(house, code.code) == 401
    for wrong in (0.0, -1.0, 31 * 86_400.0, float("nan")):
        with pytest.raises(Problem) as caught:
            await made(house, valid_for=wrong)
        assert caught.value.field == "valid_for"


async def test_guesses_at_a_code_are_bounded(house):
    """After five wrong secrets from wherever the code is void, and the right one too."""
    code = await made(house)
    wrong = code.code[:-1] + ("2" if code.code[-1] != "2" else "3")
    for number in range(5):
        assert await refused(house, wrong, address=f"198.51.100.{number}") == 401
    assert await refused(house, code.code, address="192.0.2.1") == 401


async def test_who_guesses_codes_waits_even_with_the_right_one(house):
    """Codes are short: an address that tried twenty wrong ones gets no answer for a minute."""
    code = await made(house)
    for _ in range(20):
        assert await refused(house, "2222-222222", address="192.0.2.1") == 401
    assert await refused(house, code.code, address="192.0.2.1") == 429
    house.clock.now += 60
    assert isinstance(await house.keys.phones.enrol(code.code, address="192.0.2.1"), Enrolled)


async def test_codes_are_kept_as_slow_hashes(house, tmp_path):
    code = await made(house)
    secret = code.code.split("-")[1].encode()
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes()
    [listed] = await house.keys.phones.codes()
    assert (listed.code_id, listed.user, listed.attempts) == (code.code[:4], "alice", 0)


async def test_a_code_is_withdrawn(house):
    code = await made(house)
    with pytest.raises(Problem, match="no code"):
        await house.keys.phones.withdraw_code(code.code[:4], apps=frozenset(("weather",)), by=CONTROL)
    await house.keys.phones.withdraw_code(code.code[:4], apps=None, by=CONTROL)
    assert await refused(house, code.code) == 401
    assert await house.keys.phones.codes() == []


async def test_a_backend_enrols_for_its_user(house):
    _, key = await house.keys.create("backend", ["devices"], [APP])
    backend = await house.keys.authenticate(request(key))
    enrolled = await house.keys.phones.enrol_for(APP, "bob", ["network"], by=backend)
    phone = await house.keys.authenticate(request(enrolled.device_secret))
    assert (phone.user, phone.app) == ("bob", APP)
    assert (await house.keys.log.read())[-1].name == "backend"


async def test_a_phones_secret_is_revoked_at_once(house):
    enrolled = await house.keys.phones.enrol_for(APP, by=CONTROL)
    await house.keys.authenticate(request(enrolled.device_secret))
    with pytest.raises(Problem, match="no enrolment"):
        await house.keys.phones.revoke(enrolled.enrolment_id, apps=frozenset(("weather",)), by=CONTROL)
    await house.keys.phones.revoke(enrolled.enrolment_id, apps=None, by=CONTROL)
    with pytest.raises(Problem, match="Enrol again"):
        await house.keys.authenticate(request(enrolled.device_secret))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user": "a\0b"}, "user"),
        ({"user": "x" * 129}, "user"),
        ({"tags": ["a;b"]}, "tags[0]"),
        ({"tags": ["ok", "a\nb"]}, "tags[1]"),
        ({"tags": [""]}, "tags[0]"),
        ({"tags": ["x" * 65]}, "tags[0]"),
        ({"tags": [str(number) for number in range(33)]}, "tags"),
    ],
)
async def test_names_of_users_and_tags_are_checked(house, fields, field):
    with pytest.raises(Problem) as caught:
        await house.keys.phones.enrol_for(APP, **fields, by=CONTROL)
    assert (caught.value.status, caught.value.field) == (422, field)
