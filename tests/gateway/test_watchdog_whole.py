"""The watchdog in a whole gateway, over real TLS: told in time, cured by dropping in a file, nothing lost."""

import base64
import email.utils
import json
import time
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from fastpush.cli import main
from fastpush.gateway.outbox import Entry
from fastpush.simulator import open_simulator
from fastpush.simulator.faults import Answer
from tests.gateway.test_channels import fake_opmanager
from tests.gateway.watch_house import TOPIC, drop, open_house, pem

DAY = 86_400.0
NOBODY = "0" * 64


@pytest.fixture
async def apns():
    async with open_simulator(topics=[TOPIC]) as simulator:
        yield simulator


def dated(seconds=0.0):
    """Let the server tell its date, so far from ours, when it is asked about nobody's device token."""
    date = email.utils.formatdate(time.time() + seconds, usegmt=True).encode()
    return Answer(status=400, reason="BadDeviceToken", device_token=NOBODY, fields=((b"date", date),))


async def test_nine_days_left_is_told_everywhere_and_withdrawn_by_a_new_file(apns, tmp_path):
    """The story of the product: warning on the phone, in the list and inside OpManager; `cp`; all well."""
    apns.faults.add(dated())
    async with fake_opmanager(tmp_path) as (settings, requests, _):
        more = f'[notices.opmanager]\nurl = "{settings.url}"\napi_key_file = "opmanager.key"'
        async with open_house(apns, tmp_path, ends=time.time() + 9.2 * DAY, more=more) as house:
            await house.until_told(1)
            (notice,) = (await house.ask("GET", "/v1/notices")).json()["notices"]
            assert notice["title"] == f"Push certificate {TOPIC} expires in 9 days"
            assert notice["category"] == "OPM_CERT"
            told = {one["channel"]: one for one in notice["told"]}
            assert {one["state"] for one in told.values()} == {"told"}
            assert told["push"]["detail"] == "APNs took it for 1 of 1 devices of opm tagged admin"
            assert len(house.pushes(house.phones[0])) == 1, "the administrator's phone"
            assert not house.pushes(house.phones[1])
        # The next process repeats nothing.
        async with open_house(apns, tmp_path, more=more) as house:
            await house.until_told(1)
            assert len(house.pushes()) == 1
            drop(house.file, pem(apns.issue_provider_certificate(TOPIC)))
            await house.until_told(0)
            await house.settled()
            assert not (await house.ask("GET", "/v1/notices")).json()["notices"]
            assert len(house.pushes()) == 2, "the card on the phone is taken back"
        forms = [one["form"] for one in requests()]
        assert [(one["entity"], one["severity"]) for one in forms] == [
            (f"apns-cert-{TOPIC}", "3"),
            (f"apns-cert-{TOPIC}", "5"),
        ]


async def test_a_bad_file_is_told_and_the_next_good_one_ends_it(apns, tmp_path):
    apns.faults.add(dated())
    async with open_house(apns, tmp_path) as house:
        before = house.app.credential().fingerprint
        drop(house.file, pem(apns.issue_provider_certificate("org.other")))
        await house.until_told(1, "file_refused")
        (notice,) = house.gateway.notices.standing()
        assert "does not cover the topic" in notice.body
        assert house.app.credential().fingerprint == before
        drop(house.file, pem(apns.issue_provider_certificate(TOPIC)))
        await house.until_told(0, "file_refused")
        assert house.app.credential().fingerprint != before


# Who is right about the time.


async def test_a_clock_a_year_ahead_tells_of_itself_and_pauses_nothing(apns, tmp_path):
    """Our clock takes the certificate for expired; APNs says what time it is."""
    year = 365 * DAY
    apns.faults.add(dated())
    ends = time.time() + 200 * DAY
    async with open_house(apns, tmp_path, ends=ends, clock=lambda: time.time() + year) as house:
        await house.until_told(1, "clock")
        (notice,) = house.gateway.notices.standing()
        assert notice.kind == "clock", "and nothing is told of the certificate"
        assert "365 days ahead of APNs' clock" in notice.body
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.settled()
        assert len(house.pushes(house.phones[1])) == 1
        assert house.app.state == "running"


async def test_with_nobody_to_ask_a_wrong_clock_pauses_nothing_either(apns, tmp_path):
    """APNs gives no date: for a quarter of an hour nothing that hangs on the clock is told."""
    ends = time.time() + 200 * DAY
    async with open_house(apns, tmp_path, ends=ends, clock=lambda: time.time() + 365 * DAY) as house:
        await house.until(lambda: any(one.device_token == NOBODY for one in apns.ledger.seen))
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.settled()
        assert len(house.pushes(house.phones[1])) == 1
        assert not house.gateway.notices.standing()
        assert house.app.state == "running"


# After the end.


@pytest.mark.slow
async def test_expiry_in_full_flow_keeps_all_that_is_accepted_until_the_new_certificate(apns, tmp_path):
    """The alert is understood, dispatch pauses, 10,000 are accepted meanwhile, and all go out at the cure."""
    apns.faults.add(dated())
    ends = time.time() + 4
    async with open_house(apns, tmp_path, ends=ends, phones=1) as house:
        outbox = house.gateway.outbox

        async def accept(first, count, **fields):
            entries = [
                Entry(f"{number:064x}", b'{"aps":{"alert":"x"}}', **fields)
                for number in range(first, first + count)
            ]
            await outbox.accept("opm", entries)

        await accept(1_000, 1_000)
        await house.settled()
        await trio.sleep(max(0.0, ends - time.time()) + 1.1)
        apns.send_goaway()  # as APNs does with long connections; the new ones are refused
        await house.until(lambda: house.app.state == "refused")
        assert "certificate expired" in house.app.reason
        for first in range(10_000, 20_000, 1_000):
            await accept(first, 1_000)
        stale = [
            Entry("f" * 64, b'{"aps":{"alert":"%d"}}' % number, collapse_id="sw-core-01")
            for number in range(5)
        ]
        for one in stale:
            await outbox.accept("opm", [one])
        await house.until_stands("credential_refused")
        refused = next(one for one in house.gateway.notices.standing() if one.kind == "credential_refused")
        assert "Make a new certificate" in refused.cure
        assert outbox.waiting()["opm"].count == 10_005
        push = await house.how_told(refused.id, "push")
        assert push.state == "waiting"
        assert "not reached: 1 device of opm (APNs refuses certificate" in push.detail

        drop(house.file, pem(apns.issue_provider_certificate(TOPIC)))
        await house.until(lambda: house.app.state == "running")
        await house.settled(within=120)
        got = {}
        for one in apns.ledger.seen:
            if one.delivered:
                got[one.device_token] = got.get(one.device_token, 0) + 1
        lost = [number for number in range(10_000, 20_000) if got.get(f"{number:064x}") != 1]
        assert not lost
        assert got["f" * 64] == 1, "only the newest of one collapse id"
        await house.until_told(0, "credential_refused")
        await house.until_told(0)


async def test_a_revoked_key_is_told_at_once_and_cured_by_put(apns, tmp_path):
    issued = apns.issue_signing_key()
    drop(tmp_path / "push.p8", issued.p8)
    credential = f'key_file = "push.p8"\nkey_id = "{issued.key_id}"\nteam_id = "{issued.team_id}"'
    async with open_house(apns, tmp_path, credential=credential) as house:
        (watched,) = [one for one in house.gateway.watchdog.status() if one.what == "credential"]
        assert watched.kind == "key"
        assert watched.expires_at is None
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.settled()
        apns.revoke_key(issued.key_id)
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"y"}}')])
        await house.until_stands("credential_refused")
        (notice,) = house.gateway.notices.standing()
        assert "InvalidProviderToken" in notice.body
        assert "revoked" in notice.cure

        bad = apns.issue_provider_certificate("org.other")
        answer = await house.ask("PUT", "/v1/apps/opm/credential", json={"certificate": pem(bad).decode()})
        assert answer.status_code == 422
        assert "does not cover the topic" in answer.json()["detail"]
        new = apns.issue_provider_certificate(TOPIC)
        body = {"certificate": base64.b64encode(new.to_pkcs12("secret")).decode(), "password": "secret"}
        answer = await house.ask("PUT", "/v1/apps/opm/credential", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["proved"] is True
        await house.until_told(0, "credential_refused")
        await house.settled()
        assert house.gateway.watchdog.status()[0].kind == "certificate"
        answers = [
            (await house.ask("PUT", f"/v1/apps/{path}/credential", json={"key": "x"})).status_code
            for path in ("none", "opm")
        ]
        assert answers == [404, 422]
    async with open_house(apns, tmp_path, credential=credential) as house:
        assert house.app.credential().kind == "certificate", "it survives a restart"


# The command.


async def test_the_command_tries_every_channel_of_the_gateway_that_runs(apns, tmp_path):
    async with fake_opmanager(tmp_path) as (settings, requests, mode):
        more = f'[notices.opmanager]\nurl = "{settings.url}"\napi_key_file = "opmanager.key"'
        async with open_house(apns, tmp_path, more=more) as house:

            async def command(*arguments):
                return await trio.to_thread.run_sync(
                    lambda: CliRunner().invoke(
                        main, ["notices", *arguments, "--database", str(Path(tmp_path, "gateway.db"))]
                    )
                )

            well = await command("test")
            assert well.exit_code == 0, well.output
            assert (
                "ok      push       APNs   APNs took it for 1 of 1 devices of opm tagged admin" in well.output
            )
            assert "ok      opmanager  HTTP   " in well.output
            (trial,) = requests()
            assert trial["form"]["message"].startswith("fastpush: Trial of fastpush's notices")
            mode.write_text("unauthorized")
            bad = await command("test", "--json")
            assert bad.exit_code == 1
            told = {one["channel"]: one["told"] for one in json.loads(bad.output)["trials"]}
            assert told == {"log": True, "push": True, "opmanager": False}
            assert not house.gateway.notices.standing()
            listed = await command("list")
            assert listed.output == "Nothing to tell.\n"
    assert trial["form"]["severity"] == "5", "of a trial nothing stays"


async def test_while_apns_refuses_the_certificate_the_standby_tells_of_it(apns, tmp_path):
    """An expired certificate at the start, and a key that stands by: it takes over, and carries the push."""
    issued = apns.issue_signing_key()
    drop(tmp_path / "standby.p8", issued.p8)
    more = (
        '[apps.opm.standby]\nkey_file = "standby.p8"\n'
        f'key_id = "{issued.key_id}"\nteam_id = "{issued.team_id}"'
    )
    async with open_house(apns, tmp_path, ends=time.time() + 99 * DAY):
        pass  # the phones register
    drop(tmp_path / "push.pem", pem(apns.issue_provider_certificate(TOPIC, valid_until=time.time() - DAY)))
    async with open_house(apns, tmp_path, more=more) as house:
        await house.until_told(1, "credential_refused")
        refused = next(one for one in house.gateway.notices.standing() if one.kind == "credential_refused")
        assert "The standby has taken over" in refused.body
        push = await house.how_told(refused.id, "push")
        assert push.detail == "APNs took it for 1 of 1 devices of opm tagged admin"
        assert house.app.state == "running"
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.settled()
        assert len(house.pushes(house.phones[1])) == 1


async def test_silence_and_the_canary_are_told(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.watchdog.watch.LOOK_EVERY", 0.05)
    drop(tmp_path / "canary", b"ca" * 32)
    more = (
        "[watchdog]\nsilence_minutes = 0.01\ncanary_minutes = 0.01\n"
        'canary_device_token_file = "canary"\nsource_silence_minutes = { opm1 = 0.005 }'
    )
    async with open_house(apns, tmp_path, more=more) as house:
        apns.faults.add(bad := Answer(status=400, reason="BadDeviceToken", device_token="ca" * 32))
        await house.until_stands("canary")
        (canary,) = [one for one in house.gateway.notices.standing() if one.kind == "canary"]
        assert "400 BadDeviceToken" in canary.body
        apns.faults.remove(bad)
        await house.until(lambda: not any(one.kind == "canary" for one in house.gateway.notices.standing()))
        house.gateway.watchdog.heard("opm1")
        await house.until_stands("source_silence")
        house.gateway.watchdog.heard("opm1")
        apns.faults.add(down := Answer(status=503, reason="ServiceUnavailable"))
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.until_stands("silence")
        apns.faults.remove(down)
        await house.until(
            lambda: not any(one.kind == "silence" for one in house.gateway.notices.standing()), within=60
        )
