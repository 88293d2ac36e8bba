"""The console without a browser: who gets in, what each page says, and that nothing hostile gets through."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from functools import partial
from html import unescape
from urllib.parse import quote

import httpx
import pytest
import trio

from fastpush.gateway.console import devices, fanouts, notifications
from fastpush.gateway.console.charts import Line, chart, scale, shown
from fastpush.gateway.console.fanouts import tell
from fastpush.gateway.console.handles import KEY_OCTETS, Handles
from fastpush.gateway.console.sessions import IDLE, LONGEST, SAID_FOR, TICKET_FOR, Sessions
from fastpush.gateway.console.webhooks import expanded
from fastpush.gateway.devices import Device
from fastpush.gateway.outbox import Attempt, Audience, Entry, FanoutRecord, Passage
from fastpush.gateway.phone import card
from fastpush.gateway.storage import Limits, open_storage
from fastpush.simulator.faults import Answer
from tests.gateway.console_house import PAGES, csrf_of, open_house

OPMANAGER = (
    '{"alarmid":"7","entity":"sw-core-01_ping","displayName":"sw-core-01","category":"Switch",'
    '"stringseverity":"$stringseverity","message":"$message"}'
)
FORM = "application/x-www-form-urlencoded"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


# Getting in.


async def test_whoever_is_not_logged_in_is_sent_to_the_login(house):
    async with house.stranger() as stranger:
        for path in PAGES:
            answer = await stranger.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/login?next=")
        assert (await stranger.get("/live")).status_code == 303
        assert (await stranger.post("/alarms/x/acknowledge")).headers["location"] == "/login"


@pytest.mark.parametrize(
    ("key", "status"),
    [("", 422), ("wrong", 401), ("fpk_0000000000000000000000000000", 401), ("\udcff\n", 401)],
)
async def test_a_wrong_key_opens_nothing(house, key, status):
    async with house.stranger() as stranger:
        body = b"key=" + quote(key, errors="replace").encode()
        answer = await stranger.post("/login", content=body, headers={"Content-Type": FORM})
        assert answer.status_code == status
        assert "set-cookie" not in answer.headers
        assert 'role="alert"' in answer.text


async def test_a_key_for_webhooks_does_not_open_the_console(house):
    async with house.stranger() as stranger:
        answer = await stranger.post("/login", data={"key": house.keys["opmanager"]})
        assert answer.status_code == 403
        assert "lacks" in answer.text or "neither" in answer.text


async def test_a_key_for_one_app_does_not_show_the_others(house):
    made = await house.gateway.keys.create("tenant", ["console"], ["opm"])
    async with house.stranger() as tenant:
        answer = await tenant.post("/login", data={"key": made.secret})
        assert answer.status_code == 403
        assert "for some apps only" in answer.text
        ticket = house.gateway.sessions.ticket(made.key_id)
        await tenant.get("/login", params={"ticket": ticket})
        assert (await tenant.get("/")).headers["location"].startswith("/login")


async def test_the_cookie_is_out_of_scripts_reach(house):
    async with house.stranger() as client:
        answer = await client.post("/login", data={"key": house.keys["alice"]})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/" in cookie
        assert "Secure" not in cookie, "plain HTTP on loopback: a browser would drop it"


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("console.example", True),
        ("127.0.0.1.evil.example", True),
        ("[", True),
        ("localhost:8081", False),
        ("[::1]:8081", False),
    ],
)
async def test_a_cookie_behind_a_proxy_of_this_machine_is_bound_to_tls(house, host, bound):
    key = house.keys["alice"]
    async with house.stranger() as client:
        about = {"Host": host, "Origin": f"https://{host}", "Sec-Fetch-Site": "same-origin"}
        if host == "[":  # is no origin
            del about["Origin"], client.headers["Origin"]
        answer = await client.post("/login", data={"key": key}, headers=about)
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-fastpush=") is bound
        assert ("Secure" in cookie) is bound


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "javascript:1",
        "http://[",
        "//[",
        "/\t/e.example",
    ],
)
async def test_a_login_leads_to_our_own_pages_only(house, wanted):
    async with house.stranger() as client:
        answer = await client.post("/login", params={"next": wanted}, data={"key": house.keys["alice"]})
        assert answer.headers["location"] == "/"


async def test_logging_out_ends_the_session_and_not_only_the_cookie(house):
    client = await house.browser()
    stolen = dict(client.cookies)
    page = (await client.get("/")).text
    assert (await client.post("/logout", data={"csrf": csrf_of(page)})).status_code == 303
    async with house.stranger(cookies=stolen) as thief:
        assert (await thief.get("/")).status_code == 303


async def test_a_revoked_key_ends_its_sessions_at_once(house):
    client = await house.browser("nightwatch")
    assert (await client.get("/")).status_code == 200
    await house.gateway.keys.revoke(house.key_ids["nightwatch"])
    assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize("end", ["logout", "revoked"])
async def test_who_is_no_longer_logged_in_hears_no_more(house, end):
    client = await house.browser()
    csrf = csrf_of((await client.get("/")).text)
    with trio.fail_after(10):
        async with client.stream("GET", "/live") as live:
            assert live.headers["content-type"].startswith("text/event-stream")
            if end == "logout":
                await client.post("/logout", data={"csrf": csrf})
            else:
                await house.gateway.keys.revoke(house.key_ids["alice"])
            async for _ in live.aiter_bytes():
                pass


async def test_a_ticket_logs_in_once(house):
    ticket = house.gateway.sessions.ticket(house.key_ids["alice"])
    async with house.stranger(follow_redirects=True) as client:
        assert "Overview" in (await client.get("/login", params={"ticket": ticket})).text
    async with house.stranger() as client:
        answer = await client.get("/login", params={"ticket": ticket})
        assert answer.status_code == 403
        assert "used before" in answer.text
    (entry,) = [one for one in await house.gateway.keys.log.read(0, 100) if one.action == "console.login"]
    assert entry.name == "alice"


async def test_sessions_end_by_idleness_and_by_age_and_survive_a_restart(tmp_path):
    now = [1_000_000.0]
    limits = Limits(low_water_octets=0, low_water_share=0.0)
    async with open_storage(tmp_path / "gateway.db", limits) as storage:
        sessions = Sessions(storage, lambda: now[0])
        idle, _ = await sessions.begin("k1")
        kept, _ = await sessions.begin("k1")
        for _ in range(10):
            now[0] += IDLE / 2
            assert await sessions.find(kept) is not None
        assert await sessions.find(idle) is None
    async with open_storage(tmp_path / "gateway.db", limits) as storage:
        sessions = Sessions(storage, lambda: now[0])
        assert (await sessions.find(kept)).key_id == "k1"
        assert await sessions.find("made up") is None
        for _ in range(int(2 * LONGEST / IDLE) + 1):
            now[0] += IDLE / 2
            found = await sessions.find(kept)
        assert found is None
        late = sessions.ticket("k1")
        now[0] += TICKET_FOR
        assert sessions.take_ticket(late) is None


# Changing something.


async def test_a_form_of_another_site_is_refused(house):
    recorded = await house.critical()
    client = await house.browser()
    page = await client.get(f"/alarms/{recorded['id']}")
    form = {"csrf": csrf_of(page.text)}
    path = f"/alarms/{recorded['id']}/acknowledge"
    own = httpx.AsyncClient(base_url=house.console, cookies=client.cookies)  # without an Origin
    house.browsers.append(own)
    for headers in (
        {},  # all browsers say it, in one way or another
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "https://evil.example", "Referer": house.console},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Referer": "https://evil.example/"},
        {"Referer": f"https://evil.example/{house.console}"},
        {"Referer": "", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": house.console},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ):
        answer = await own.post(path, data=form, headers=headers)
        assert answer.status_code == 403
        assert "Foreign form" in answer.text
    for wrong in ({}, {"csrf": ""}, {"csrf": "0" * 32}):
        assert (await client.post(path, data=wrong)).status_code == 403
    history = await house.gateway.alarms.get(recorded["id"])
    assert history.row.acknowledged_by is None
    for headers in (
        {"Origin": house.console},
        {"Origin": house.console, "Sec-Fetch-Site": "same-origin", "Referer": f"{house.console}{path}"},
        {"Referer": f"{house.console}/alarms"},  # where something cuts the Origin off
        {"Sec-Fetch-Site": "same-origin"},
    ):
        answer = await own.post(path, data=form, headers=headers)
        assert answer.status_code == 303
    history = await house.gateway.alarms.get(recorded["id"])
    assert history.row.acknowledged_by == "alice"


async def test_a_login_by_a_form_of_another_site_is_refused(house):
    """Who is logged in without knowing by which key would upload a credential for others."""
    async with httpx.AsyncClient(base_url=house.console) as victim:
        for headers in ({}, {"Origin": "https://evil.example"}):
            answer = await victim.post("/login", data={"key": house.keys["alice"]}, headers=headers)
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers


async def test_what_was_done_is_said_once_and_only_by_the_gateway(house):
    """A link of others must not let a page say something, however well it is escaped."""
    recorded = await house.critical()
    client = await house.browser()
    path = f"/alarms/{recorded['id']}"
    form = {"csrf": csrf_of((await client.get(path)).text)}
    said = '<p class="said"'
    for words in ("All+alarms+are+cleared.+Go+home.", "Acknowledged.", "", "%00", "a" * 5_000):
        assert said not in (await client.get(f"{path}?said={words}")).text
    to = (await client.post(f"{path}/acknowledge", data=form)).headers["location"]
    assert "Acknowledged" not in to, "the address has a word that stands for it"
    other = await house.browser()
    assert said not in (await other.get(to)).text, "it is of this session"
    page = (await client.get(to)).text
    assert said in page
    assert "Acknowledged. The phones that were told show it" in page
    assert said not in (await client.get(to)).text, "nor is it said again by an address that was kept"


async def test_what_was_done_is_kept_for_a_moment_and_in_bounds(tmp_path):
    now = [1_800_000_000.0]
    async with open_storage(
        tmp_path / "gateway.db", Limits(low_water_octets=0, low_water_share=0.0)
    ) as storage:
        sessions = Sessions(storage, lambda: now[0])
        _, session = await sessions.begin("k1")
        words = [sessions.say(session, f"sentence {number}") for number in range(10)]
        assert [sessions.take_said(session, word) for word in words[:3]] == ["", "", "sentence 2"]
        now[0] += SAID_FOR
        assert not sessions.take_said(session, words[9])
        sessions.say(session, "late")
        await sessions.end(session)
        assert not sessions._said


async def test_a_key_of_scope_console_looks_and_changes_nothing(house):
    recorded = await house.critical()
    client = await house.browser("nightwatch")
    page = await client.get(f"/alarms/{recorded['id']}")
    assert page.status_code == 200
    assert "Acknowledge</button>" not in page.text
    answer = await client.post(f"/alarms/{recorded['id']}/acknowledge", data={"csrf": csrf_of(page.text)})
    assert answer.status_code == 403
    assert (await house.gateway.alarms.get(recorded["id"])).row.acknowledged_by is None


async def test_what_is_done_stands_in_the_audit_log_under_the_keys_name(house):
    recorded = await house.critical()
    client = await house.browser()
    page = await client.get(f"/alarms/{recorded['id']}")
    await client.post(f"/alarms/{recorded['id']}/acknowledge", data={"csrf": csrf_of(page.text)})
    found = [(record.name, record.action) for record in await house.gateway.keys.log.read(0, 100)]
    assert ("alice", "console.login") in found
    assert ("alice", "alarm.acknowledged") in found


async def test_a_test_push_reaches_the_phone(house):
    client = await house.browser()
    path = f"/devices/opm/{house.handle(house.tokens[0])}"
    page = await client.get(path)
    answer = await client.post(f"{path}/test", data={"csrf": csrf_of(page.text)})
    assert answer.status_code == 303
    await house.settled()
    story = await client.get(answer.headers["location"])
    assert "accepted" in story.text
    assert "Test of fastpush" in story.text


async def test_no_whole_device_token_is_in_an_address_or_a_page(house, monkeypatch):
    monkeypatch.setattr(devices, "PAGE", 2)
    monkeypatch.setattr(fanouts, "PAGE", 2)
    monkeypatch.setattr(fanouts, "NEWEST", 1)
    monkeypatch.setattr(notifications, "PAGE", 2)
    for number in range(3):
        await house.critical(f"sw-{number}", entity=f"e{number}")
    await house.settled()
    refused = [Answer(status=410, reason="Unregistered", device_token=token) for token in house.tokens[2:]]
    house.simulator.faults.add(*refused)
    entry = Entry(house.tokens[0], b'{"aps":{"alert":"hello"}}')
    await house.gateway.outbox.accept("opm", [entry] * 2 + [Entry(house.tokens[2], entry.payload)])
    await house.critical("sw-9", entity="e9")
    await house.settled()
    await house.gateway.devices.settle()
    await house.gateway.outbox.pause("opm")
    await house.gateway.outbox.accept("opm", [entry] * 3)
    await house.gateway.outbox.purge("opm")
    await house.gateway.outbox.resume("opm")
    await house.indexed()
    (fanout, *_) = (await house.gateway.outbox.fanouts()).rows
    client = await house.browser()
    whole, seen = house.tokens[0], set()
    left = [
        *PAGES,
        *(f"/notifications?device={token[-8:]}" for token in house.tokens),
        f"/notifications?device={whole}&app=opm",
        f"/batches/{fanout.batch}?device={whole.upper()}",
        f"/batches/{fanout.batch}?device={house.tokens[2][-8:]}",
        *(f"/devices/opm/{house.handle(token)}" for token in house.tokens),
    ]
    while left:
        path = left.pop()
        if path in seen or path.startswith(("/static/", "#")):
            continue
        seen.add(path)
        answer = await client.get(path)
        found = answer.text + answer.headers.get("location", "")
        assert not [token for token in house.tokens if token in found.lower()], path
        if answer.status_code == 303:
            left.append(answer.headers["location"])
        left += [unescape(link) for link in re.findall(r'href="(/[^"]*)"', answer.text)]
    assert any(path.startswith("/devices?app=opm&after=") for path in seen), "the list's second page"
    assert any(re.match(r"/batches\?app=opm&device=.*&below=", path) for path in seen), "older fan-outs"
    assert any("cursor=" in path for path in seen), "the search's second page"


@pytest.mark.parametrize("name", ["alice", "nightwatch"])
async def test_a_whole_device_token_that_was_typed_stays_in_the_form(house, name):
    await house.critical()
    await house.settled()
    (fanout,) = (await house.gateway.outbox.fanouts()).rows
    client, token = await house.browser(name), house.tokens[0]
    for path in ("/notifications", f"/batches/{fanout.batch}"):
        page = (await client.get(path)).text
        assert not re.search(r'method="get"[^<]*>(?:(?!</form>).)*name="device"', page, re.DOTALL)
        form = {"csrf": csrf_of(page), "device": f" {token.upper()} ", "app": "opm"}
        answer = await client.post(path, data=form)
        where = answer.headers["location"]
        assert answer.status_code == 303
        assert token[-16:].upper() in where
        assert token[-17:].upper() not in where
        assert "✓ accepted" in (await client.get(where)).text
    form = {"csrf": csrf_of((await client.get("/notifications")).text), "id": token}
    answer = await client.post("/notifications", data=form)
    assert answer.status_code == 422, "it is no apns-id"
    assert token not in answer.text
    async with house.stranger() as stranger:
        where = (await stranger.get("/notifications", params={"device": token})).headers["location"]
        assert token not in where, "before the login too"


async def test_a_handle_is_for_one_app_and_gateway():
    ours, others, token = Handles(b"a" * KEY_OCTETS), Handles(b"b" * KEY_OCTETS), "0123456789abcdef" * 4
    handle = ours.seal("opm", token)
    assert ours.seal("opm", token) == handle, "a bookmark stays good"
    assert re.fullmatch(r"[\w-]+", handle)
    assert ours.open("opm", handle) == token
    assert ours.open("other", handle) is None
    assert others.open("opm", handle) is None
    for odd in ("", "ab", token, handle[:-1], handle + "A", "ä", "=" * 9, "A" * 5_000):
        assert ours.open("opm", odd) is None, odd


async def test_an_enrolment_code_is_shown_once(house):
    client = await house.browser()
    page = await client.get("/devices")
    form = {"csrf": csrf_of(page.text), "app": "opm", "user": "bob", "tags": "network, oncall"}
    made = await client.post("/devices/codes", data=form)
    code = re.search(r'<div class="state" id="code"><strong>([^<]+)</strong>', made.text)[1]
    enrolled = await house.gateway.keys.phones.enrol(code)
    assert enrolled.user == "bob"
    assert code not in (await client.get("/devices")).text


# What the pages say.


@pytest.mark.parametrize("path", PAGES)
async def test_each_page_stands_with_and_without_data(house, path):
    client = await house.browser()
    empty = await client.get(path)
    assert empty.status_code == 200
    await house.critical()
    await house.post(alarmid="8", entity="x", displayName="x", stringseverity="Clear", message="ok")
    await house.settled()
    full = await client.get(path)
    assert full.status_code == 200
    for answer in (empty, full):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<[^>]+\s(style|on\w+)=", answer.text), "nothing inline"
        assert "<script>" not in answer.text


async def test_the_overview_says_what_is_wrong_first(house):
    client = await house.browser()
    assert "Pushes leave" in (await client.get("/")).text
    line = house.gateway.apps["opm"].line("production")
    line.stop("APNs refuses the certificate: it has expired", refused=True)
    page = (await client.get("/")).text
    assert "Pushes do not leave as they should" in page
    assert "it has expired" in page


async def test_days_left_are_shown(tmp_path):
    async with open_house(tmp_path, days=9) as house:
        client = await house.browser()
        assert "9 days left" in (await client.get("/")).text
        assert "9 days left" in (await client.get("/credentials")).text


async def test_an_alarms_page_tells_each_verdict_with_its_rule(house):
    recorded = await house.critical()
    await house.critical()
    await house.critical(stringseverity="Clear", message="all is well")
    client = await house.browser()
    page = (await client.get(f"/alarms/{recorded['id']}")).text
    for rule in ("first.new", "repeat.counted", "clear.open"):
        assert rule in page
    assert "recorded, not pushed" in page
    assert "pushed" in page


async def test_alarms_are_found_by_device_and_severity(house):
    await house.critical("sw-core-01")
    await house.critical("db-07", stringseverity="Attention")
    client = await house.browser()
    assert "db-07" in (await client.get("/alarms", params={"device": "DB"})).text
    assert "db-07" not in (await client.get("/alarms", params={"severity": "critical"})).text
    assert "No alarm fits" in (await client.get("/alarms", params={"device": "[*"})).text


async def test_webhooks_show_the_raw_body_and_what_it_became(house):
    await house.critical()
    async with httpx.AsyncClient() as sender:
        await sender.post(
            f"{house.ingest}/v1/opmanager", params={"token": house.keys["alice"]}, content=b"what is this?"
        )
    client = await house.browser()
    page = (await client.get("/webhooks")).text
    assert "what is this?" in page
    assert "unreadable" in page
    assert "first.new" in page
    assert "sw-core-01_ping" in page


async def test_a_preview_sends_and_stores_nothing(house):
    client = await house.browser()
    form = {
        "csrf": csrf_of((await client.get("/webhooks/preview")).text),
        "body": '{"entity": "e", "displayName": "db-07", "stringseverity": "Critical", "message": "down"}',
        "routes": '[[routes]]\nname = "db"\ntags = ["dba"]\ndevice = ["db-*"]',
        "kind": "application/json",
    }
    page = (await client.post("/webhooks/preview/result", data=form)).text
    assert "first.new" in page
    assert "Critical: db-07" in page
    assert "dba (0 now)" in page.replace("\n", " ")
    assert await house.gateway.alarms.list() == []
    assert house.gateway.outbox.waiting() == {} or not house.gateway.outbox.waiting()["opm"].fanouts
    form["routes"] = "[[routes]]\nname = 3"
    assert "The routes" in (await client.post("/webhooks/preview/result", data=form)).text
    reader = await house.browser("nightwatch")
    assert "Critical: db-07" in (await reader.get("/webhooks/preview", params={"body": form["body"]})).text


async def test_a_changed_template_shows_what_it_would_push(house):
    reader = await house.browser("nightwatch")
    page = (await reader.get("/webhooks/preview")).text
    assert "Critical: sw-core-01" in page
    assert "No answer for three polls" in page
    asked = {
        "body": '{"entity": "$entity", "displayName": "$displayName", "stringseverity": "$stringseverity"}'
    }
    asked |= {"displayName": "db-07", "stringseverity": "Clear", "message": "never asked for"}
    page = (await reader.get("/webhooks/preview", params=asked)).text
    assert "stale.clear_of_unknown" in page
    asked["stringseverity"] = "Attention"
    page = (await reader.get("/webhooks/preview", params=asked)).text
    assert "Attention: db-07" in page
    assert "never asked for" not in page.partition("What it becomes")[2]
    assert (
        expanded("$message $nobody $DeviceField(ipAddress)", {"message": "a", "ipAddress": "b"})
        == "a $nobody b"
    )


async def test_a_template_that_grows_without_end_is_refused(house):
    client = await house.browser()
    csrf = csrf_of((await client.get("/")).text)
    for template in ("$message" * 20_000, "$message" + "x" * 200_000):
        form = {"csrf": csrf, "body": template, "message": "m" * 4_000, "displayName": "db-07"}
        page = (await client.post("/webhooks/preview/result", data=form)).text
        assert ("The template becomes a body of 80,000,000 characters" in page) is (len(template) < 200_000)
    form["body"] = (
        '{"entity":"e","displayName":"db-07","stringseverity":"Critical","message":"$body $routes"}'
    )
    page = (await client.post("/webhooks/preview/result", data=form)).text
    assert "$body $routes" in page.partition("What it becomes")[2], "no variables of OpManager's"


async def test_an_acknowledgement_that_comes_too_late_says_so(house):
    name = (await house.critical())["id"]
    alice, csrf = await house.browser(), ""

    async def take(generation="1"):
        nonlocal csrf
        csrf = csrf or csrf_of((await alice.get("/")).text)
        form = {"csrf": csrf, "generation": generation}
        answer = await alice.post(f"/alarms/{name}/acknowledge", data=form)
        return (await alice.get(answer.headers["location"])).text

    await house.critical(stringseverity="Clear")
    assert "Nothing was done: it had cleared before." in await take()
    await house.critical()
    assert "had cleared, and opened again" in await take()
    await house.gateway.alarms.acknowledge(name, "bob")
    assert "bob had taken it before" in await take("2")
    assert (await house.gateway.alarms.get(name)).row.acknowledged_by == "bob"
    done = [record.action for record in await house.gateway.keys.log.read(0, 100)]
    assert "alarm.acknowledged" not in done


async def test_hostile_text_is_text_on_every_page(house):
    recorded = await house.critical(device=HOSTILE[:80], message=HOSTILE, category=HOSTILE)
    await house.settled()
    client = await house.browser()
    told = (await house.gateway.alarms.get(recorded["id"])).verdicts[0][2]
    for path in (*PAGES, f"/alarms/{recorded['id']}", f"/batches/{told.push}"):
        page = (await client.get(path)).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page


async def test_the_page_of_an_alarms_push_tells_its_story(house):
    recorded = await house.critical()
    await house.settled()
    told = (await house.gateway.alarms.get(recorded["id"])).verdicts[0][2]
    page = (await (await house.browser()).get(f"/batches/{told.push}")).text
    assert "judged <strong>first.new</strong>" in page
    assert f"/alarms/{recorded['id']}" in page
    assert 'class="phone banner"' in page
    assert "an earlier banner with the same one is replaced" in page
    assert "Body received" in page


async def test_the_banner_that_a_push_replaced_is_drawn(house):
    recorded = await house.critical()
    await house.settled()
    await house.critical(stringseverity="Trouble", message="one poll answered <again>")
    await house.settled()
    alarm = await house.gateway.alarms.get(recorded["id"])
    second, first = [told.push for *_, told in alarm.verdicts]
    client = await house.browser()
    page = (await client.get(f"/batches/{second}")).text
    _, _, drawn = page.partition('<figure class="phone replaced">')
    drawn, _, _ = drawn.partition("</figure>")
    assert "replaced by this one" in drawn
    assert "<del>No answer for three polls</del>" in drawn
    assert f'href="/batches/{first}"' in drawn
    page = (await client.get(f"/batches/{first}")).text
    assert "phone replaced" not in page
    assert "none is known of" in page
    form = {"csrf": csrf_of(page), "stringseverity": "Clear", "message": "well", "body": OPMANAGER}
    form["source"] = alarm.row.source
    page = (await client.post("/webhooks/preview/result", data=form)).text
    assert "<del>one poll answered &lt;again&gt;</del>" in page, "the preview draws what it would replace"


async def test_the_banner_is_that_of_the_same_collapse_id_and_device(house):
    async def push(text, number=0, collapse_id="score"):
        payload = b'{"aps":{"alert":"%s"}}' % text
        entry = Entry(house.tokens[number], payload, collapse_id=collapse_id)
        accepted = await house.gateway.outbox.accept("opm", [entry])
        await house.settled()
        return uuid.UUID(bytes=accepted.apns_id(0))

    await push(b"nil nil")
    await push(b"others", collapse_id="weather")
    await push(b"another phone", 1)
    await push(b"a background push, which shows nothing", collapse_id=None)
    last = await push(b"one nil")
    page = (await (await house.browser()).get(f"/notifications/{last}")).text
    _, _, drawn = page.partition('<figure class="phone replaced">')
    assert "<del>nil nil</del>" in drawn
    assert drawn.count("<del>") == 1


async def test_a_device_of_which_a_fan_out_keeps_no_row_is_told_of(house):
    await house.critical()
    await house.settled()
    (fanout,) = (await house.gateway.outbox.fanouts()).rows
    device = house.tokens[0]
    client = await house.browser()
    for path in (
        f"/notifications?device={device[-6:].upper()}",
        f"/notifications?device={device[-16:]}&app=opm&outcome=accepted",
        f"/batches/{fanout.batch}?device={device[-5:]}",
        f"/batches?app=opm&device={house.handle(device)}",
    ):
        page = (await client.get(path)).text
        assert "✓ accepted" in page, path
        assert "no other end of it was written down" in page, path
        assert f"/batches/{fanout.batch}" in page, path
    page = (await client.get("/batches")).text
    assert "network" in page
    assert f"/batches/{fanout.batch}" in page
    unlisted = uuid.UUID(
        bytes=(await house.gateway.outbox.passages([fanout.batch], device))[fanout.batch].apns_id
    )
    answer = await client.get(f"/notifications/{unlisted}")
    assert answer.status_code == 404
    assert f"fan-out {fanout.batch}" in answer.text
    page = (await client.get("/notifications?device=0123abcd")).text
    assert "nothing tells whether it was among those" in page
    assert "In fan-outs" not in (await client.get("/notifications?device=abc")).text, "any device ends so"
    assert (await client.get(f"/batches/{fanout.batch}?device=xyz")).text.count('role="alert"') == 1


@pytest.mark.parametrize(
    ("tags", "seen", "dead", "known", "outcome", "certain", "words"),
    [
        (("network",), 90, None, "accepted", "accepted", True, "no other end"),
        (("network",), 110, None, "accepted", "accepted", False, "registered again since"),
        (("network",), 90, 110, "accepted", "accepted", False, "before it was dropped: Unregistered"),
        (("network",), 80, 90, "accepted", "not meant", True, "dropped before: Unregistered"),
        (("storage",), 90, None, "accepted", "not meant", True, "does not bear"),
        (("storage",), 110, None, "accepted", "not meant", False, "may have had others"),
        (("network",), 90, None, None, None, True, "not reached yet"),
    ],
)
def test_what_is_said_of_a_device_is_no_more_than_what_is_known(
    tags, seen, dead, known, outcome, certain, words
):
    audience = Audience(any_of=("network",))
    fanout = FanoutRecord(7, "opm", "", 100.0, audience, 1, 0, False)
    device = Device(
        device_token="ab" * 32, app="opm", environment="production", user="", tags=tags, locale="",
        registered_at=seen, seen_at=seen, dead_at=dead, dead_reason=dead and "Unregistered",
    )  # fmt: skip
    told = tell(fanout, audience, device, Passage(7, bytes(16), known, None))
    assert (told.outcome, told.certain, told.has_page) == (outcome, certain, False)
    assert words in told.words
    attempt = Attempt(101.0, "rejected", 410, "Unregistered", 1)
    told = tell(fanout, audience, device, Passage(7, bytes(16), "rejected", attempt))
    assert (told.outcome, told.certain, told.has_page) == ("rejected", True, True), (
        "what is written down stands"
    )


async def test_what_is_not_there_is_said_in_a_page(house):
    client = await house.browser()
    for path in (
        "/alarms/none",
        "/notifications/none",
        "/batches/7",
        "/devices/opm/abcd",
        "/devices/none/abcd",
    ):
        answer = await client.get(path)
        assert answer.status_code == 404, path
        assert "no such" in answer.text.lower()


async def test_an_address_that_is_none_is_a_page_for_people_and_json_for_programs(house):
    async with httpx.AsyncClient(base_url=house.console) as stranger:
        answer = await stranger.get("/nowhere/<b>", headers={"Accept": "text/html,*/*;q=0.8"})
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "There is no such path." in answer.text
        assert "<b>" not in answer.text
        answer = await stranger.delete("/login", headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
        answer = await stranger.get("/nowhere")
        assert answer.headers["content-type"] == "application/problem+json"
        answer = await stranger.get("/v1/keys", headers={"Accept": "text/html"})
        assert answer.status_code == 401
        assert "www-authenticate" in answer.headers
    async with httpx.AsyncClient(base_url=house.ingest) as sender:
        answer = await sender.get("/nowhere", headers={"Accept": "text/html"})
        assert answer.headers["content-type"] == "application/problem+json", "no people come here"


async def test_static_files_are_addressed_by_their_content(house):
    client = await house.browser()
    page = (await client.get("/")).text
    found = re.findall(r'"(/static/[^"]+)"', page)
    assert len(found) == 3
    for path in found:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert (await client.get("/static/../pages.py")).status_code == 404


async def test_notifications_are_found_and_dead_letters_sent_again(house):
    token = house.tokens[0]
    accepted = await house.gateway.outbox.accept(
        "opm", [Entry(token, b'{"aps":{"alert":"hello"}}')], source="ops"
    )
    apns_id = str(uuid.UUID(bytes=accepted.apns_id(0)))
    await house.settled()
    await house.gateway.outbox.pause("opm")
    lost = await house.gateway.outbox.accept("opm", [Entry(token, b'{"aps":{"alert":"purged"}}')] * 3)
    await house.gateway.outbox.purge("opm")
    await house.gateway.outbox.resume("opm")
    await house.indexed()
    client = await house.browser()
    for query in (
        {"device": token[-6:].upper()},
        {"id": apns_id[:13]},
        {"source": "ops", "outcome": "accepted"},
    ):
        assert apns_id in (await client.get("/notifications", params=query)).text, query
    assert "No notification fits" in (await client.get("/notifications", params={"device": "00000000"})).text
    assert (await client.get("/notifications", params={"id": apns_id})).headers["location"].endswith(apns_id)
    for wrong in ({"device": "xyz"}, {"after": "yesterday"}, {"cursor": "made up"}):
        assert (await client.get("/notifications", params=wrong)).status_code == 422
    page = (await client.get("/failures")).text
    assert "Purged" in page
    one = str(uuid.UUID(bytes=lost.apns_id(0)))
    form = {"csrf": csrf_of(page), "apns_id": one}
    assert (await client.post("/failures/again", data=form)).status_code == 303
    assert (await client.post("/failures/again", data=form)).status_code == 409, "once is enough"
    answer = await client.post(
        "/failures/again", data={"csrf": csrf_of(page), "app": "opm", "reason": "Purged"}
    )
    assert "2 accepted once more" in (await client.get(answer.headers["location"])).text
    await house.settled()
    assert sum(one.fate == "accepted" for one in house.simulator.ledger.seen) == 1 + 3


async def test_a_dead_letter_sent_again_by_several_at_once_leaves_once(house):
    await house.gateway.outbox.pause("opm")
    entry = Entry(house.tokens[0], b'{"aps":{"alert":"purged"}}')
    lost = await house.gateway.outbox.accept("opm", [entry] * 2)
    await house.gateway.outbox.purge("opm")
    await house.gateway.outbox.resume("opm")
    await house.indexed()
    clients = [await house.browser() for _ in range(4)]
    found = []

    async def again(client, **chosen):
        csrf = csrf_of((await client.get("/failures")).text)
        answer = await client.post("/failures/again", data={"csrf": csrf, **chosen})
        found.append(answer.status_code)

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(partial(again, client, apns_id=str(uuid.UUID(bytes=lost.apns_id(0)))))
    assert sorted(found) == [303, 409, 409, 409]
    found.clear()
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(partial(again, client, app="opm", reason="Purged"))
    assert 303 in found
    assert set(found) <= {303, 409}
    await house.settled()
    assert sum(one.fate == "accepted" for one in house.simulator.ledger.seen) == 2


async def test_the_doctors_findings_are_a_page(house):
    client = await house.browser()
    page = (await client.get("/credentials")).text
    answer = await client.post("/credentials/opm/doctor", data={"csrf": csrf_of(page)}, timeout=20)
    assert answer.status_code == 200
    assert "APNs takes the credential and the topic" in answer.text
    (house.folder / "provider.p12").unlink()
    answer = await client.post("/credentials/opm/doctor", data={"csrf": csrf_of(page)}, timeout=20)
    assert "✗ failed" in answer.text


async def test_credentials_say_when_they_last_worked(house):
    await house.critical()
    await house.settled()
    client = await house.browser()
    assert "3 accepted since the start, last" in (await client.get("/credentials")).text


# What nobody means well.

ODD = (
    "9" * 10_000,
    "9" * 19,
    "9" * 25,
    "-1",
    "\0",
    "\u00b2",  # a digit to some, a decimal to nobody
    "\u0663",
    "1e9",
    "a" * 10_000,
    "../../etc/passwd",
    "\r\nX: y",
    "*",
    "ffff" * 2_000,
    "0001-01-01T00:00",
    "9999-12-31T23:59:59-14:00",
    "http://[",
    "a=" + "[" * 3_000,
)
QUERIES = {
    "/": ("span", "said"),
    "/alarms": ("state", "device", "severity", "after"),
    "/alarms/{alarm}": ("before",),
    "/notifications": ("id", "app", "outcome", "reason", "device", "source", "after", "before", "cursor"),
    "/batches": ("app", "device", "below"),
    "/batches?app=opm": ("device", "below"),
    "/batches/{fanout}": ("device",),
    "/webhooks": ("source", "before"),
    "/webhooks/preview": ("body", "routes", "kind", "source"),
    "/devices": ("app", "tag", "after"),
    "/login": ("ticket", "next"),
}
FORMS = {
    "/alarms/{alarm}/acknowledge": ("generation",),
    "/alarms/none/acknowledge": ("generation",),
    "/failures/again": ("apns_id", "app", "reason", "back"),
    "/notifications": ("id", "app", "outcome", "reason", "device", "source", "after", "before"),
    "/batches/7": ("device",),
    "/webhooks/preview/result": ("body", "routes", "kind", "source"),
    "/devices/codes": ("app", "user", "tags"),
    "/credentials/opm": ("file", "password", "key_id", "team_id"),
}


@pytest.mark.parametrize("path", QUERIES)
async def test_no_query_breaks_a_page(house, path):
    alarm = (await house.critical())["id"]
    (fanout,) = (await house.gateway.outbox.fanouts()).rows
    client = await house.browser()
    raw = [*(quote(odd) for odd in ODD), "%ff%fe", "%ED%A0%80"]
    for name in QUERIES[path]:
        for odd in raw:
            where = path.format(alarm=alarm, fanout=fanout.batch)
            answer = await client.get(f"{where}{'&' if '?' in where else '?'}{name}={odd}")
            assert answer.status_code < 500, (name, odd[:40])


@pytest.mark.parametrize(
    "path", ["/alarms/{}", "/notifications/{}", "/batches/{}", "/devices/opm/{}", "/devices/{}/ab"]
)
async def test_no_name_breaks_a_page(house, path):
    client = await house.browser()
    for odd in ODD:
        answer = await client.get(path.format(quote(odd, safe="")))
        assert answer.status_code in (303, 404, 422), odd[:40]


@pytest.mark.parametrize("path", FORMS)
async def test_no_field_breaks_a_form(house, path):
    alarm = (await house.critical())["id"]
    client = await house.browser()
    csrf = csrf_of((await client.get("/")).text)
    for name in FORMS[path]:
        for odd in ODD:
            form = {"app": "opm", "csrf": csrf, name: odd}
            answer = await client.post(path.format(alarm=alarm), data=form)
            assert answer.status_code < 500, (name, odd[:40])


class Chunked(httpx.AsyncByteStream):
    """A body whose length the request does not tell."""

    def __init__(self, body):
        self.left = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


@pytest.mark.parametrize("path", ["/login", "/logout", "/devices/codes"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FORM, b"a" * 300_000),
        ("multipart/form-data; boundary=x", b"a" * 300_000),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: nonsense\r\n\r\n"),
        (FORM, b"a=b&" * 5_000),
        ("application/json", b"{}"),
        (FORM + "; charset=nonsense", b"csrf=%ff"),
    ],
)
async def test_a_form_that_is_none_is_refused(house, path, kind, body):
    client = await house.browser()
    request = client.build_request("POST", path, headers={"Content-Type": kind})
    del request.headers["Content-Length"]
    request.headers["Transfer-Encoding"] = "chunked"
    request.stream = Chunked(body)
    answer = await client.send(request)
    assert 400 <= answer.status_code < 500
    assert "<html" in answer.text


async def test_a_cookie_from_before_the_login_is_worth_nothing(house):
    client = await house.browser()
    planted = "A" * 43
    async with house.stranger() as victim:
        answer = await victim.post(
            "/login", data={"key": house.keys["alice"]}, headers={"Cookie": f"fastpush={planted}"}
        )
        assert answer.status_code == 303
        assert answer.cookies["fastpush"] != planted
    client.cookies.clear()
    answer = await client.get("/", headers={"Cookie": f"fastpush={planted}"})
    assert answer.headers["location"].startswith("/login")


async def test_guesses_at_a_key_are_slowed_by_address(house):
    async with house.stranger() as thief:
        answers = [await thief.post("/login", data={"key": f"guess {n}"}) for n in range(30)]
        assert [answers[0].status_code, answers[-1].status_code] == [401, 429]
        assert int(answers[-1].headers["retry-after"]) > 0
        right = await thief.post("/login", data={"key": house.keys["alice"]})
    assert right.status_code in (303, 429)


# Charts and cards.


@pytest.mark.parametrize(
    ("largest", "axis"),
    [(0, (1, 1)), (1, (1, 0.5)), (3, (3, 1)), (4, (4, 2)), (7, (10, 5)), (99, (100, 50)), (101, (150, 50)),
     (25_000, (30_000, 10_000))],
)  # fmt: skip
def test_an_axis_ends_in_a_round_number_above(largest, axis):
    assert scale(largest) == axis


def test_a_chart_says_in_words_what_it_shows():
    at = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
    drawn = chart(
        "Pushes", [Line("accepted", [(at, 1.0), (at + 10, 250.0)])], unit="/s", begin=at, end=at + 3600
    )
    assert 'aria-label="Pushes: accepted 250 /s"' in drawn
    assert drawn.count("M54") >= 1
    empty = chart("<b>", [Line("a", [])], unit="/s", begin=at, end=at + 3600)
    assert "no data yet" in empty
    assert "<b>" not in empty.replace("<b>unknown</b>", "")


def test_the_last_time_of_an_axis_stays_within_the_chart():
    at = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
    drawn = chart("x", [Line("a", [])], unit="", begin=at - 86_400 + 600, end=at + 600)
    last = re.findall(r'<text class="([^"]*)" x="([^"]*)" [^>]*data-time', drawn)[-1]
    assert last == ("x last", "360")
    assert "x last" not in chart("x", [Line("a", [])], unit="", begin=at - 86_400, end=at + 7_200)


def test_a_line_is_broken_where_nothing_is_known():
    drawn = chart("x", [Line("a", [(0, 1.0), (10, None), (20, 1.0)])], unit="", begin=0, end=3600)
    assert len(re.findall("M", re.search(r'class="line a" d="([^"]*)"', drawn)[1])) == 2


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (0.25, "0.25"), (12, "12"), (1234, "1.23k"), (3.4e7, "34M")]
)
def test_numbers_are_short(value, words):
    assert shown(value) == words


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"aps":{"alert":"hello"}}', ("", "", "hello", "active")),
        (b'{"aps":{"alert":{"title":"t","subtitle":"s","body":"b"}}}', ("t", "s", "b", "active")),
        (b'{"aps":{"alert":{"title":7},"interruption-level":"critical"}}', ("", "", "", "critical")),
    ],
)
def test_a_card_shows_what_the_phone_would(payload, expected):
    found = card(payload)
    assert (found.title, found.subtitle, found.body, found.level) == expected


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"aps":3}', b"\xff", b"[" * 100_000])
def test_what_is_no_payload_has_no_card(payload):
    assert card(payload) is None
