"""What a watchdog must stand: no answers, restarts without a date, swaps in full flow, a clock behind."""

import datetime
import os
import time

import pytest
import trio
import trustme

from fastpush.gateway.apps import Apps
from fastpush.gateway.config import CredentialSettings
from fastpush.gateway.outbox import Entry
from fastpush.gateway.renewal import Renewal
from fastpush.gateway.uploads import Offer
from fastpush.notification import Notification, Payload
from fastpush.simulator import open_simulator
from fastpush.simulator.faults import Answer, Swallow
from tests.gateway.test_channels import fake_opmanager
from tests.gateway.test_renewal import House
from tests.gateway.test_watchdog_whole import DAY, NOBODY, dated
from tests.gateway.watch_house import TOPIC, drop, open_house, pem


@pytest.fixture
async def apns():
    async with open_simulator(topics=[TOPIC]) as simulator:
        yield simulator


async def test_a_put_outlasts_an_apns_that_never_answers(apns, tmp_path):
    """No answer to the request: taken on the local checks, unproved, and the sender is told so."""
    async with open_house(apns, tmp_path) as house:
        apns.faults.add(Swallow(device_token=NOBODY))
        new = apns.issue_provider_certificate(TOPIC)
        await house.until(lambda: house.app.client is not None)
        answer = await house.ask("PUT", "/v1/apps/opm/credential", json={"certificate": pem(new).decode()})
        assert answer.status_code == 200, answer.text
        assert answer.json()["proved"] is False


async def test_a_standing_notice_shows_at_once_after_a_restart_without_a_date(apns, tmp_path):
    """APNs tells no date the second time: what stands is shown from the first moment, and stays."""
    fault = dated()
    apns.faults.add(fault)
    async with open_house(apns, tmp_path, ends=time.time() + 9.2 * DAY) as house:
        await house.until_told(1)
    apns.faults.remove(fault)
    async with open_house(apns, tmp_path) as house:
        (shown,) = (await house.ask("GET", "/v1/notices")).json()["notices"]
        assert shown["title"] == f"Push certificate {TOPIC} expires in 9 days"
        await house.gateway.watchdog.look()
        assert len(house.gateway.notices.standing()) == 1
        # What is cured while nobody tells the time is withdrawn all the same.
        drop(house.file, pem(apns.issue_provider_certificate(TOPIC)))
        await house.until_told(0)


async def test_silence_stands_over_a_restart(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.watchdog.watch.LOOK_EVERY", 0.05)
    more = "[watchdog]\nsilence_minutes = 0.01"
    apns.faults.add(down := Answer(status=503, reason="ServiceUnavailable"))
    async with open_house(apns, tmp_path, more=more) as house:
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.until_stands("silence")
    async with open_house(apns, tmp_path, more="[watchdog]\nsilence_minutes = 60") as house:
        for _ in range(5):
            await house.gateway.watchdog.look()
        assert [one.kind for one in house.gateway.notices.standing()] == ["silence"]
        apns.faults.remove(down)
        await house.until_told(0, "silence")
        assert [told.change for _, told in await house.gateway.notices.history()].count("withdrawn") >= 1


async def test_an_own_certificate_that_is_refused_hides_nothing_of_the_one_in_use(apns, tmp_path):
    authority = trustme.CA()

    def put(name, certificate, key):
        drop(tmp_path / f"{name}.key", key.private_key_pem.bytes())
        drop(tmp_path / f"{name}.pem", b"".join(part.bytes() for part in certificate.cert_chain_pems))

    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=5)
    begins = ends - datetime.timedelta(days=90)
    old = authority.issue_cert("localhost", not_before=begins, not_after=ends)
    put("own", old, old)
    apns.faults.add(dated())
    config = '\n[ingest.tls]\ncertificate_file = "own.pem"\nkey_file = "own.key"\n'
    async with open_house(apns, tmp_path, more=config) as house:
        await house.until_told(1, "ingest_certificate")
        new = authority.issue_cert("localhost")
        put("own", new, old)  # the key of another
        await house.until_told(1, "file_refused")
        house.gateway.watchdog._read_due = 0.0
        await house.gateway.watchdog.look()
        kinds = sorted(one.kind for one in house.gateway.notices.standing())
        assert kinds == ["file_refused", "ingest_certificate"], "the old one is still served"
        put("own", new, new)
        await house.until_told(0, "file_refused")
        await house.until_told(0, "ingest_certificate")


async def test_a_clock_an_hour_behind_does_not_make_the_first_failure_the_last(apns, tmp_path):
    apns.faults.add(dated(3_600))
    async with fake_opmanager(tmp_path) as (settings, _, mode):
        mode.write_text("down")
        more = f'[notices.opmanager]\nurl = "{settings.url}"\napi_key_file = "opmanager.key"'
        ends = time.time() + 9.2 * DAY
        async with open_house(apns, tmp_path, ends=ends, more=more) as house:
            await house.until_stands("clock")
            told = await house.how_told("clock:", "opmanager")
            assert told.state == "waiting"
            assert "503" in told.detail


async def test_kubernetes_swaps_while_pushes_flow(apns, tmp_path):
    mount = tmp_path / "secret"

    def version(name):
        new = pem(apns.issue_provider_certificate(TOPIC))
        (mount / name).mkdir(parents=True)
        (mount / name / "tls.pem").write_bytes(new)
        (mount / name / "tls.pem").chmod(0o600)
        before = os.readlink(mount / "..data") if (mount / "..data").exists() else None
        (mount / "..data_tmp").symlink_to(name)
        os.replace(mount / "..data_tmp", mount / "..data")
        if before:
            (mount / before / "tls.pem").unlink()
            (mount / before).rmdir()

    version("..0")
    (mount / "tls.pem").symlink_to("..data/tls.pem")
    responses = []
    ended = trio.Event()
    async with House(
        apns, tmp_path, credential=CredentialSettings(certificate_file=mount / "tls.pem"), topic=TOPIC
    ).open() as house:

        async def flow():
            number = 0
            while not ended.is_set():

                async def some():
                    nonlocal number
                    for _ in range(200):
                        number += 1
                        yield Notification(f"{number:064x}", Payload(alert="x"), topic=TOPIC)

                async with house.app.client.send_many(some()) as answers:
                    async for response in answers:
                        responses.append(response)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow)
            for number in range(1, 6):
                await trio.sleep(0.3)
                version(f"..{number}")
                assert (await house.verdict()).taken
            ended.set()
    assert responses
    assert all(one.accepted for one in responses)
    seen = [one.device_token for one in apns.ledger.seen if one.delivered and int(one.device_token, 16)]
    assert len(seen) == len(set(seen)) == len(responses)


async def test_a_standby_takes_over_and_gives_back_with_its_notices(apns, tmp_path):
    issued = apns.issue_signing_key()
    drop(tmp_path / "standby.p8", issued.p8)
    more = (
        '[apps.opm.standby]\nkey_file = "standby.p8"\n'
        f'key_id = "{issued.key_id}"\nteam_id = "{issued.team_id}"'
    )
    async with open_house(apns, tmp_path, ends=time.time() - DAY, more=more) as house:
        await house.until_stands("credential_refused")
        drop(house.file, pem(apns.issue_provider_certificate(TOPIC)))
        await house.until_told(0, "credential_refused")
        assert house.app.best_line("production").role == "main"
        await house.gateway.outbox.accept("opm", [Entry(house.phones[1], b'{"aps":{"alert":"x"}}')])
        await house.settled()
        assert len(house.pushes(house.phones[1])) == 1


async def test_what_nobody_proved_is_not_called_proved(apns, tmp_path):
    """The configured file is missing at the start: there is no connection, and so nobody is asked."""
    revoked = apns.issue_provider_certificate(TOPIC)
    apns.revoke_certificate(revoked)
    house = House(apns, tmp_path, topic=TOPIC)
    house.path.write_bytes(b"rubbish")
    async with trio.open_nursery() as nursery:
        running = await nursery.start(Apps([house.settings]).run)
        renewal = Renewal(running, house.state)
        await nursery.start(renewal.run)
        verdict = await renewal.offer("opmanager", "main", Offer(certificate=pem(revoked)))
        assert not verdict.taken
        assert "certificate revoked" in verdict.reason
        good = pem(apns.issue_provider_certificate(TOPIC))
        verdict = await renewal.offer("opmanager", "main", Offer(certificate=good))
        assert verdict.taken
        assert verdict.proved
        nursery.cancel_scope.cancel()
