"""Who is let in, with what, and how fast the others are slowed."""

import pytest

from fastpush.gateway.auth import CONTROL, open_authenticator
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Limits, open_storage

ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


def request(key=None, *, address="192.0.2.1", headers=(), query=b"", scheme="Bearer"):
    found = [(b"host", b"push.example.com"), (b"accept", b"*/*"), *headers]
    if key is not None:
        found.append((b"authorization", f"{scheme} {key}".encode()))
    return {
        "type": "http",
        "headers": found,
        "query_string": query,
        "client": (address, 50_000) if address else None,
        "state": {},
    }


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def storage(tmp_path):
    async with open_storage(tmp_path / "gateway.db", ROOMY) as storage:
        yield storage


@pytest.fixture
async def keys(storage, clock):
    return await open_authenticator(storage, clock=clock)


async def refused(keys, scope, **how):
    with pytest.raises(Problem) as caught:
        await keys.authenticate(scope, **how)
    return caught.value


async def test_a_key_lets_in_until_it_is_revoked(keys):
    key_id, key = await keys.create("zabbix", ["notify"], ["com.example.app"])
    principal = await keys.authenticate(request(key))
    assert (principal.name, principal.kind, principal.key_id) == ("zabbix", "key", key_id)
    assert principal.scopes == {"notify"}
    assert principal.apps == {"com.example.app"}
    assert (await keys.authenticate(request(key))) is principal, "proved once, remembered"
    await keys.revoke(key_id)
    problem = await refused(keys, request(key))
    assert problem.status == 401
    assert "WWW-Authenticate" in problem.headers
    assert "revoked" in problem.detail


async def test_a_phone_enrols_once_with_a_code(keys):
    code = await keys.phones.create_code("com.example.app", "alice", ["network"], by=CONTROL)
    enrolled = await keys.phones.enrol(code.code.lower())
    phone = await keys.authenticate(request(enrolled.device_secret))
    assert (phone.kind, phone.user, phone.app, phone.scopes) == (
        "device",
        "alice",
        "com.example.app",
        frozenset(),
    )
    with pytest.raises(Problem, match="not valid"):
        await keys.phones.enrol(code.code)
