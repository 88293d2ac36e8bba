"""Who is registered, who is meant by tags, and what a phone may say of itself."""

import os
import random

import pytest

from fastpush.gateway.auth import CONTROL
from fastpush.gateway.devices import Registration, Verdict, audiences
from fastpush.gateway.outbox import Audience
from fastpush.gateway.problems import Problem
from tests.gateway.registry_house import APP, OTHER, open_house, request, token


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


async def members(house, app=APP, **audience):
    page = await house.devices.page(app, Audience(**audience))
    assert page.last
    assert len(page.environments) == len(page.device_tokens)
    return [int(one, 16) for one in page.device_tokens]


# Audiences.


async def test_audiences_are_chosen_by_tags(house):
    await house.register(1, "network", "night")
    await house.register(2, "network")
    await house.register(3, "storage", "night")
    await house.register(4)
    await house.register(1, "network", app=OTHER)
    assert await members(house) == [1, 2, 3, 4]
    assert await members(house, any_of=("network",)) == [1, 2]
    assert await members(house, any_of=("storage", "network")) == [1, 2, 3]
    assert await members(house, all_of=("network", "night")) == [1]
    assert await members(house, any_of=("network", "storage"), all_of=("night",)) == [1, 3]
    assert await members(house, none_of=("night",)) == [2, 4]
    assert await members(house, any_of=("network",), none_of=("night",)) == [2]
    assert await members(house, any_of=("nobody",)) == []
    assert await members(house, all_of=("network", "nobody")) == []
    assert await house.devices.count(APP) == 4
    assert await house.devices.count(APP, Audience(any_of=("network",), none_of=("night",))) == 1
    await house.register(1, "storage")
    assert await members(house, any_of=("network",)) == [2]
    assert await members(house, any_of=("storage",)) == [1, 3]


async def test_an_app_that_has_no_device_has_no_audience(house):
    assert await house.devices.page("nix", Audience()) == ([], "", True)
    assert await house.devices.count("nix") == 0
    assert await house.devices.get("nix", token(1)) is None
    assert not await house.devices.remove("nix", token(1))
    assert list(await house.devices.list("nix")) == []


async def test_pages_follow_each_other(house):
    batch = house.devices.open_batch(APP)
    for number in range(1, 26):
        environment = "development" if number % 5 == 0 else "production"
        batch.add(Registration(device_token=token(number), tags=("all",), environment=environment))
    await batch.write()
    seen, letters, after = [], "", ""
    while True:
        page = await house.devices.page(APP, Audience(any_of=("all",)), after, 10)
        seen += page.device_tokens
        letters += page.environments
        if page.last:
            break
        after = page.device_tokens[-1]
    assert seen == [token(number) for number in range(1, 26)]
    assert letters == "ppppd" * 5


@pytest.mark.parametrize("few", [4_096, 3, 0])
async def test_any_audience_is_what_sets_say(house, monkeypatch, few):
    """Against Python's sets, by the merge and by looking the few up; pages of any size."""
    monkeypatch.setattr(audiences, "FEW", few)
    seed = int(os.environ.get("FASTPUSH_SEED") or random.SystemRandom().getrandbits(32))
    print(f"FASTPUSH_SEED={seed}")
    chance = random.Random(seed)
    tags = ["a", "b", "c", "d", "e"]
    model = {}
    batch = house.devices.open_batch(APP)
    for number in chance.sample(range(10_000), 200):
        model[number] = {tag for tag in tags if chance.random() < 0.1 * (1 + tags.index(tag) ** 2 / 2)}
        batch.add(Registration(device_token=token(number), tags=tuple(model[number])))
    await batch.write()
    for number in chance.sample(sorted(model), 20):
        await house.devices.remove(APP, token(number))
        del model[number]
    for number in chance.sample(sorted(model), 20):
        model[number] = set(chance.sample(tags, 2))
        await house.register(number, *model[number])
    for _ in range(100):
        any_of, all_of, none_of = (chance.sample(tags, chance.choice([0, 0, 1, 2])) for _ in range(3))
        audience = Audience(any_of=tuple(any_of), all_of=tuple(all_of), none_of=tuple(none_of))
        wanted = sorted(
            number
            for number, has in model.items()
            if (not any_of or has.intersection(any_of))
            and has.issuperset(all_of)
            and not has.intersection(none_of)
        )
        found, after, limit = [], "", chance.choice([1, 7, 1_000])
        while True:
            page = await house.devices.page(APP, audience, after, limit)
            found += page.device_tokens
            if page.last:
                break
            after = page.device_tokens[-1]
        assert found == [token(number) for number in wanted], audience
        assert await house.devices.count(APP, audience) == len(wanted)


# What is kept of a device.


async def test_what_is_left_out_stays_as_it_was(house):
    first = await house.register(1, "network", user="alice", locale="de-CH", environment="development")
    assert (first.user, first.tags, first.locale) == ("alice", ("network",), "de-CH")
    house.clock.now += 5.25
    found = await house.devices.register(APP, Registration(device_token=token(1)))
    assert (found.user, found.tags, found.locale) == ("alice", ("network",), "de-CH")
    assert (found.environment, found.registered_at) == ("production", house.clock.now)
    assert (await house.devices.page(APP, Audience(any_of=("network",)))).environments == "p"
    nobody = await house.devices.register(
        APP, Registration(device_token=token(1), user="", tags=(), locale="")
    )
    assert (nobody.user, nobody.tags, nobody.locale) == ("", (), "")
    assert await members(house, any_of=("network",)) == []


async def test_devices_are_listed(house):
    for number in range(1, 6):
        await house.register(number, "odd" if number % 2 else "even", user="alice" if number < 4 else "")
    listed = house.devices.list
    assert [device.device_token for device in await listed(APP, limit=2)] == [token(1), token(2)]
    assert [device.device_token for device in await listed(APP, after=token(4))] == [token(5)]
    assert len(await listed(APP, user="alice")) == 3
    assert len(await listed(APP, user="")) == 0
    assert [device.device_token for device in await listed(APP, tag="even")] == [token(2), token(4)]
    assert len(await listed(APP, tag="odd", user="alice")) == 2


async def test_environments_are_told_of_many_at_once(house):
    for number in range(1, 6):
        await house.register(number, environment="development" if number % 2 else "production")
    asked = [token(number) for number in range(600)]
    found = await house.devices.environments(APP, asked)
    assert found == {token(number): "development" if number % 2 else "production" for number in range(1, 6)}
    assert await house.devices.environments(APP, []) == {}
    assert await house.devices.environments("nix", asked) == {}


@pytest.mark.parametrize("shown", [token(0xAB).upper(), "00" * 31 + "aB"])
async def test_a_device_token_may_come_in_any_case(house, shown):
    device = await house.devices.register(APP, Registration(device_token=shown))
    assert device.device_token == token(0xAB)
    assert await house.devices.get(APP, shown) == device


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "a",
        "abc",
        "x" * 64,
        " " * 64,
        "ab cd ",
        "ab\n\n",
        "\0" * 64,
        "ａｂ" * 32,
        "a" * 402,
        "١٢" * 32,
        "<" + "a" * 62 + ">",
    ],
)
async def test_what_is_no_device_token_is_told_without_it(house, shown):
    with pytest.raises(Problem) as caught:
        await house.devices.register(APP, Registration(device_token=shown))
    assert (caught.value.status, caught.value.field) == (422, "device_token")
    assert len(shown) < 6 or shown not in caught.value.detail


async def test_device_tokens_of_other_lengths_are_kept(house):
    """Apple: do not assume a length."""
    for digits in (2, 100, 400):
        device = await house.devices.register(APP, Registration(device_token="a" * digits))
        assert device.device_token == "a" * digits
    assert (await house.devices.page(APP, Audience())).device_tokens == ["aa", "a" * 100, "a" * 400]


# Phones.


class Phone:
    """A phone that has enrolled."""

    def __init__(self, house, enrolled):
        self.house, self.secret, self.id = house, enrolled.device_secret, enrolled.enrolment_id

    async def principal(self):
        return await self.house.keys.authenticate(request(self.secret))

    async def register(self, number, app=APP, **fields):
        registration = Registration(device_token=token(number), **fields)
        return await self.house.devices.register(app, registration, by=await self.principal())

    async def refused(self, number, **fields):
        with pytest.raises(Problem) as caught:
            await self.register(number, **fields)
        assert caught.value.status == 403
        return caught.value


async def phone_of(house, user, *tags):
    return Phone(house, await house.keys.phones.enrol_for(APP, user, tags, by=CONTROL))


async def test_a_phone_registers_under_its_own_user_with_what_it_was_granted(house):
    phone = await phone_of(house, "alice", "network", "night")
    device = await phone.register(1, user="mallory")
    assert (device.user, device.tags) == ("alice", ("network", "night"))
    assert (await phone.principal()).device_token == token(1)


async def test_a_phone_cannot_grant_itself_a_tag(house):
    phone = await phone_of(house, "alice", "network", "night")
    assert (await phone.refused(1, tags=("network", "admin"))).field == "tags"
    assert await members(house) == []
    assert (await phone.register(1, tags=("night",))).tags == ("night",), "fewer it may have"
    assert (await phone.register(1)).tags == ("night",), "and keeps its choice"
    assert (await phone.register(1, tags=("network", "night"))).tags == ("network", "night")


async def test_what_a_key_says_of_the_tags_binds_the_phone(house):
    """Taken from it, a tag does not come back by the phone's word."""
    phone = await phone_of(house, "alice", "admin", "network")
    await phone.register(1)
    await house.register(1, "network")
    assert (await phone.refused(1, tags=("admin", "network"))).field == "tags"
    assert (await phone.register(1)).tags == ("network",)
    await house.register(1, "storage", user="bob")
    assert (await phone.register(1)).tags == ("storage",)
    assert (await phone.principal()).user == "bob"


async def test_a_new_device_token_takes_the_place_of_the_old(house):
    phone = await phone_of(house, "alice", "network", "night")
    await phone.register(1, tags=("night",))
    assert (await phone.register(2)).tags == ("night",)
    assert await members(house) == await members(house, any_of=("night",)) == [2]
    assert await house.devices.get(APP, token(1)) is None
    assert (await phone.principal()).device_token == token(2)


async def test_a_phone_cannot_take_another_phones_device_token(house):
    alice, mallory = await phone_of(house, "alice", "network"), await phone_of(house, "mallory")
    await alice.register(1)
    await mallory.register(2)
    assert (await mallory.refused(1)).field == "device_token"
    assert (await house.devices.get(APP, token(1))).user == "alice"
    assert await members(house) == [1, 2]


async def test_a_phone_that_changes_hands_goes_with_its_newest_enrolment(house):
    """Whoever enrols anew on the same phone has its device token; the former secret loses it at once."""
    alice = await phone_of(house, "alice", "network")
    await alice.register(1)
    bob = await phone_of(house, "bob", "storage")
    device = await bob.register(1)
    assert (device.user, device.tags) == ("bob", ("storage",))
    assert (await alice.principal()).device_token is None
    assert (await bob.principal()).device_token == token(1)


async def test_a_phone_takes_over_what_a_backend_had_registered(house):
    """Its tags are those that it was granted, and not what somebody else's device had."""
    await house.register(1, "admin", user="root")
    phone = await phone_of(house, "alice", "network")
    device = await phone.register(1)
    assert (device.user, device.tags) == ("alice", ("network",))


async def test_a_phones_secret_is_for_its_app_and_while_it_is_good(house):
    phone = await phone_of(house, "alice")
    principal = await phone.principal()
    with pytest.raises(Problem, match="not for this app"):
        await house.devices.register(OTHER, Registration(device_token=token(1)), by=principal)
    await house.keys.phones.revoke(phone.id, apps=None, by=CONTROL)
    with pytest.raises(Problem, match="revoked"):  # that was let in a moment before
        await house.devices.register(APP, Registration(device_token=token(1)), by=principal)


async def test_a_device_that_is_taken_out_takes_its_secret_along(house):
    phone = await phone_of(house, "alice")
    await phone.register(1)
    assert await house.devices.remove(APP, token(1), by=CONTROL)
    assert not await house.devices.remove(APP, token(1), by=CONTROL)
    with pytest.raises(Problem, match="revoked"):
        await phone.principal()
    assert (await house.keys.log.read())[-1].action == "device.removed"
    assert (await house.keys.log.read())[-1].target == "0000…0001"


async def test_devices_outlive_the_process(tmp_path):
    async with open_house(tmp_path) as house:
        await house.register(1, "network", user="alice")
    async with open_house(tmp_path) as house:
        assert house.devices.apps() == [APP]
        assert await members(house, any_of=("network",)) == [1]


async def test_devices_are_found_by_the_end_of_their_tokens(house):
    for number in (0x1A2B3C, 0xFFA2B3C, 0x2B3D, 0x9A2B3C):
        await house.register(number, "network")
    await house.register(0x1A2B3C, app=OTHER)

    async def found(digits, **options):
        return [int(one.device_token, 16) for one in await house.devices.ending(APP, digits, **options)]

    assert await found("2B3C") == [0x1A2B3C, 0x9A2B3C, 0xFFA2B3C]
    assert await found("a2b3c") == [0x1A2B3C, 0x9A2B3C, 0xFFA2B3C], "half an octet counts too"
    assert await found("1a2b3c") == [0x1A2B3C]
    assert await found("fa2b3c") == [0xFFA2B3C]
    assert await found("0a2b3c") == []
    assert await found(token(0x2B3D)) == [0x2B3D]
    assert await found("2b3c", limit=2) == [0x1A2B3C, 0x9A2B3C]
    assert await found("b3c") == [], "three digits are any device's"
    assert await found("00" * 200) == []
    assert await house.devices.ending("nix", "2b3c") == []
    house.devices.report(APP, [Verdict(token(0x1A2B3C), 410, "Unregistered", None, house.clock.now + 9)])
    await house.devices.settle()
    (dead,) = await house.devices.ending(APP, "1a2b3c")
    assert dead.dead_reason == "Unregistered"
