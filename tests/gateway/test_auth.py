"""Who is let in, with what, and what becomes of those who try."""

from base64 import b64encode

import pytest
import trio

from fastpush.gateway.auth import CONTROL, Principal
from fastpush.gateway.auth.secret import KEY, draw_secret, read_secret
from fastpush.gateway.auth.slowing import Slowing, neighbourhood
from fastpush.gateway.problems import Problem
from tests.gateway.registry_house import APP, OTHER, Clock, open_house, request


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


async def refused(house, *arguments, **fields):
    """The problem that the request meets."""
    with pytest.raises(Problem) as caught:
        await house.keys.authenticate(request(*arguments, **fields))
    return caught.value


async def test_a_key_lets_in_until_it_is_revoked(house):
    key_id, key = await house.keys.create("zabbix", ["notify"], [APP])
    principal = await house.keys.authenticate(request(key))
    assert (principal.name, principal.kind, principal.key_id) == ("zabbix", "key", key_id)
    assert (principal.scopes, principal.apps, principal.address) == ({"notify"}, {APP}, "192.0.2.1")
    assert (await house.keys.authenticate(request(key))) is principal, "proved once, remembered"
    await house.keys.revoke(key_id)
    problem = await refused(house, key)
    assert (problem.status, problem.detail) == (401, "This key was revoked.")
    assert problem.headers["WWW-Authenticate"].startswith("Bearer ")
    assert (await house.keys.revoke(key_id)).revoked_at == house.clock.now, "again: nothing more"


async def test_a_key_may_come_in_four_ways(house):
    _, key = await house.keys.create("opmanager", ["alarms"])
    basic = {"user": f"{key}:", "password": f"anything:{key}"}
    ways = [
        request(key),
        request(key, scheme="bearer"),
        request(b64encode(basic["user"].encode()).decode(), scheme="Basic"),
        request(b64encode(basic["password"].encode()).decode(), scheme="basic"),
        request(headers=[(b"x-api-key", key.encode())]),
    ]
    for scope in ways:
        assert (await house.keys.authenticate(scope)).name == "opmanager"
    in_query = request(query=b"source=a&token=" + key.encode())
    assert (await house.keys.authenticate(in_query, query_token=True)).name == "opmanager"
    with pytest.raises(Problem, match="Send a key"):
        await house.keys.authenticate(in_query)  # not a webhook's route: no keys in addresses


async def test_without_a_key_nobody_comes_in(house):
    problem = await refused(house)
    assert problem.status == 401
    assert "WWW-Authenticate" in problem.headers
    assert house.keys.list() == [], "there is no key that nobody made"


@pytest.mark.parametrize(
    "shown", ["", "x", "fpk_", "ä", "\0", "fpk_" + "a" * 8 + "_" + "b" * 49, "A" * 10_000]
)
async def test_what_is_no_key_is_refused(house, shown):
    problem = await refused(house, headers=[(b"authorization", b"Bearer " + shown.encode())])
    assert problem.status == 401
    assert shown == "" or len(shown) == 1 or shown not in problem.detail


async def test_basic_that_is_no_base64_is_refused(house):
    assert (await refused(house, "%%%", scheme="Basic")).status == 401
    assert (await refused(house, b64encode(b"\xff\xfe").decode(), scheme="Basic")).status == 401


async def test_nobody_learns_which_keys_there_are(house):
    """An id that is not known, and a known one with another secret, get the same octets."""
    key_id, _ = await house.keys.create("zabbix", ["notify"])
    other = draw_secret()
    wrong_secret = other._replace(id=key_id)
    found = await refused(house, wrong_secret.text())
    assert found.body() == (await refused(house, other.text())).body()
    assert found.headers == (await refused(house, other.text())).headers


async def test_a_mistyped_key_is_told_as_such(house):
    _, key = await house.keys.create("zabbix", ["notify"])
    swapped = key[:20] + key[21] + key[20] + key[22:]
    assert swapped == key or "mistyped" in (await refused(house, swapped)).detail


def test_keys_are_recognised_where_they_leaked():
    """The form and the checksum that scanners of repositories look for."""
    secret = draw_secret()
    leaked = f'{{"url": "https://push.example.com", "key": "{secret.text()}"}}'
    found = KEY.search(leaked)
    assert found is not None
    assert read_secret(found[0]) == secret
    last = found[0][:-1] + ("0" if found[0][-1] != "0" else "1")
    assert read_secret(last) is None
    assert secret.secret not in f"{secret!r} {secret}"


async def test_a_key_expires(house):
    _, key = await house.keys.create("visitor", ["notify"], None, house.clock.now + 60)
    await house.keys.authenticate(request(key))
    house.clock.now += 60
    assert (await refused(house, key)).detail == "This key has expired."
    with pytest.raises(Problem, match="expired already"):
        await house.keys.create("late", ["notify"], None, house.clock.now)


async def test_keys_outlive_the_process_and_only_as_hashes(tmp_path):
    clock = Clock()
    async with open_house(tmp_path, clock) as house:
        key_id, key = await house.keys.create("zabbix", ["notify", "alarms"], [APP])
        gone_id, gone = await house.keys.create("gone", ["notify"])
        await house.keys.revoke(gone_id)
        clock.now += 5
        await house.keys.authenticate(request(key))
        await house.keys.keep_house()
    secret = key.split("_")[2][:43].encode()
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes(), f"{file.name} holds the secret itself"
    async with open_house(tmp_path, clock) as house:
        assert (await house.keys.authenticate(request(key))).key_id == key_id
        assert (await refused(house, gone)).status == 401
        assert {record.key_id: record.last_used_at for record in house.keys.list()} == {
            key_id: clock.now,
            gone_id: None,
        }


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "line\nbreak"}, "name"),
        ({"name": "\u202eadmin"}, "name"),
        ({"name": " blank"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"apps": []}, "apps"),
        ({"apps": ["a b"]}, "apps[0]"),
        ({"apps": ["ok", "../x"]}, "apps[1]"),
    ],
)
async def test_a_key_is_made_of_good_parts(house, fields, field):
    with pytest.raises(Problem) as caught:
        await house.keys.create(**({"name": "zabbix", "scopes": ["notify"]} | fields))
    assert (caught.value.status, caught.value.field) == (422, field)
    assert house.keys.list() == []


async def test_names_are_kept_composed(house):
    await house.keys.create("Zu\u0308rich", ["notify"])
    assert [record.name for record in house.keys.list()] == ["Zürich"]


async def test_a_principal_may_what_its_key_says(house):
    _, key = await house.keys.create("zabbix", ["notify"], [APP])
    principal = await house.keys.authenticate(request(key))
    principal.require("notify", APP)
    for scope, app in (("admin", None), ("notify", OTHER), ("devices", APP)):
        assert not principal.may(scope, app)
        with pytest.raises(Problem) as caught:
            principal.require(scope, app)
        assert caught.value.status == 403
    assert principal.choose_app(None, [APP, OTHER]) == APP
    with pytest.raises(Problem, match="not for the app"):
        principal.choose_app(OTHER, [APP, OTHER])
    everything = Principal("root", "key", frozenset(("notify",)))
    assert everything.choose_app(OTHER, [APP, OTHER]) == OTHER
    with pytest.raises(Problem, match="say which one"):
        everything.choose_app(None, [APP, OTHER])
    with pytest.raises(Problem, match="No app"):
        everything.choose_app("nix", [APP])


async def test_the_control_socket_is_the_administrator(house):
    scope = request() | {"state": {"control": True}}
    assert await house.keys.authenticate(scope) is CONTROL
    pretending = request(headers=[(b"control", b"true"), (b"state", b"control")])
    with pytest.raises(Problem):
        await house.keys.authenticate(pretending)


async def test_what_needs_no_key_is_configured(tmp_path):
    async with open_house(tmp_path, open_scopes=("notify",)) as house:
        anybody = await house.keys.authenticate(request())
        assert (anybody.kind, anybody.scopes) == ("open", {"notify"})
        assert (await refused(house, "fpk_wrong")).status == 401, "who shows a key means it"


# Brute force.


async def test_ten_thousand_wrong_keys_from_one_address(house):
    """Twenty are answered; then all wrong ones wait a minute. The right one passes, and at once."""
    _, key = await house.keys.create("zabbix", ["notify"])
    statuses = []
    for _ in range(10_000):
        problem = await refused(house, draw_secret().text())
        statuses.append(problem.status)
    assert statuses == [401] * 20 + [429] * 9_980
    assert 0 < int(problem.headers["Retry-After"]) <= 60
    assert (await house.keys.authenticate(request(key))).name == "zabbix"
    assert (await refused(house, draw_secret().text(), address="192.0.2.2")).status == 401, "a neighbour's"
    house.clock.now += 60
    assert (await refused(house, draw_secret().text())).status == 401


async def test_made_up_secrets_of_phones_do_not_reach_the_disk(house, monkeypatch):
    """Their seal tells; else each would cost a look into a table of millions."""
    reads = []
    read = house.storage.read
    monkeypatch.setattr(house.storage, "read", lambda query: reads.append(query) or read(query))
    made_up = draw_secret()._replace(kind="fpd", id="fpd_" + "a" * 16)
    assert (await refused(house, made_up.text())).status == 401
    assert reads == []


def test_failures_are_counted_by_what_a_client_can_choose():
    assert neighbourhood("2001:db8:1:2:3:4:5:6") == neighbourhood("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert neighbourhood("2001:db8:1:3::1") != neighbourhood("2001:db8:1:2::1")
    assert neighbourhood("::ffff:192.0.2.1") == neighbourhood("192.0.2.1") == "192.0.2.1"
    assert neighbourhood("fe80::1%eth0") == "fe80::/64"
    assert neighbourhood("") == ""


def test_slowing_forgets_old_failures_and_is_bounded():
    clock = Clock()
    slow = Slowing(clock, failures=3, within=10.0, wait_for=30.0, addresses=100)
    assert [slow.refusal("a", "no").status for _ in range(2)] == [401, 401]
    clock.now += 10
    assert [slow.refusal("a", "no").status for _ in range(4)] == [401, 401, 401, 429]
    clock.now += 29
    with pytest.raises(Problem, match="wait"):
        slow.check("a")
    clock.now += 1
    slow.check("a")
    for number in range(1_000):
        slow.refusal(f"10.0.{number // 250}.{number % 250}", "no")
    assert len(slow) == 100


# While others do something.


async def test_a_phone_that_is_revoked_while_it_proves_itself_stays_out(house, monkeypatch):
    """Read before the revocation, answered after it: what was read is not believed."""
    phone = await house.keys.phones.enrol_for(APP, by=CONTROL)
    read, waiting, go = house.storage.read, trio.Event(), trio.Event()

    async def slow_read(query):
        found = await read(query)
        if not waiting.is_set():
            waiting.set()
            await go.wait()
        return found

    monkeypatch.setattr(house.storage, "read", slow_read)
    async with trio.open_nursery() as nursery:

        async def prove():
            assert (await refused(house, phone.device_secret)).status == 401

        nursery.start_soon(prove)
        await waiting.wait()
        await house.keys.phones.revoke(phone.enrolment_id, apps=None, by=CONTROL)
        go.set()


# The audit log.


async def test_the_audit_log_says_who_did_what(house):
    _, key = await house.keys.create("root", ["admin"])
    root = await house.keys.authenticate(request(key, address="2001:db8::7"))
    made, secret = await house.keys.create("zabbix", ["notify"], [APP], by=root)
    await house.keys.revoke(made, by=root)
    await house.keys.audit(root, "outbox.pause", APP, "x" * 10_000)
    log = await house.keys.log.read()
    assert [(record.name, record.action, record.target) for record in log] == [
        ("control", "key.created", root.key_id),
        ("root", "key.created", made),
        ("root", "key.revoked", made),
        ("root", "outbox.pause", APP),
    ]
    assert (log[1].address, log[1].at, log[1].detail) == (
        "2001:db8::7",
        house.clock.now,
        f"zabbix: notify; {APP}",
    )
    assert len(log[3].detail) == 500
    assert await house.keys.log.read(after=log[2].id, limit=5) == log[3:]
    assert secret.split("_")[2] not in repr(log)


@pytest.mark.parametrize("tampering", ["UPDATE audit SET name = 'nobody'", "DELETE FROM audit"])
async def test_the_audit_log_only_grows(house, tampering):
    await house.keys.create("zabbix", ["notify"])
    with pytest.raises(Exception, match="audit log is"):
        await house.storage.write(lambda connection: connection.execute(tampering) and None)
    assert len(await house.keys.log.read()) == 1
