"""Who is registered, who is meant by tags, and whose device token is dead."""

import pytest

from fastpush.gateway.devices import Registration, open_devices
from fastpush.gateway.outbox import Audience
from fastpush.gateway.storage import Limits, open_storage

ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
APP = "com.example.app"


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def storage(tmp_path):
    async with open_storage(tmp_path / "gateway.db", ROOMY) as storage:
        yield storage


@pytest.fixture
async def devices(storage, clock):
    return await open_devices(storage, clock=clock)


def token(number):
    return f"{number:064x}"


async def register(devices, number, *tags, **fields):
    return await devices.register(APP, Registration(device_token=token(number), tags=tags, **fields))


async def members(devices, **audience):
    page = await devices.page(APP, Audience(**audience))
    assert page.last
    return [int(one, 16) for one in page.device_tokens]


async def test_audiences_are_chosen_by_tags(devices):
    await register(devices, 1, "network", "night")
    await register(devices, 2, "network")
    await register(devices, 3, "storage", "night")
    await register(devices, 4)
    assert await members(devices) == [1, 2, 3, 4]
    assert await members(devices, any_of=("network",)) == [1, 2]
    assert await members(devices, any_of=("storage", "network")) == [1, 2, 3]
    assert await members(devices, all_of=("network", "night")) == [1]
    assert await members(devices, any_of=("network", "storage"), all_of=("night",)) == [1, 3]
    assert await members(devices, none_of=("night",)) == [2, 4]
    assert await members(devices, any_of=("network",), none_of=("night",)) == [2]
    assert await members(devices, any_of=("nobody",)) == []
    await register(devices, 1, "storage")
    assert await members(devices, any_of=("network",)) == [2]
    assert await members(devices, any_of=("storage",)) == [1, 3]


async def test_a_410_is_believed_unless_the_device_registered_since(devices, clock):
    await register(devices, 1)
    await register(devices, 2)
    at = int(clock.now * 1_000)
    devices.report(
        APP,
        [
            (token(1), 410, "Unregistered", at, clock.now),
            (token(2), 410, "Unregistered", at - 1, clock.now),
        ],
    )
    await devices.settle()
    assert await members(devices) == [2]
    assert (await devices.get(APP, token(1))).dead_reason == "Unregistered"
    [event] = await devices.events()
    assert event.device_token == token(1)
    await register(devices, 1)
    assert await members(devices) == [1, 2]
