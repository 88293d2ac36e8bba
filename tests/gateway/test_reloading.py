"""Another configuration for the watchdog of a gateway that runs: where it tells, and of which topic."""

from datetime import UTC, datetime, timedelta

import pytest

from fastpush.gateway.config import SmtpSettings, WebhookSettings
from fastpush.gateway.devices import Registration
from fastpush.gateway.notices.channels import why_unusable
from fastpush.gateway.outbox import Entry
from fastpush.simulator import open_simulator
from tests.gateway.test_channels import fake_opmanager, secret
from tests.gateway.test_watchdog_whole import dated
from tests.gateway.watch_house import TOPIC, drop, open_house, pem, write_config

OTHER = "org.example.renamed"


@pytest.fixture
async def apns():
    async with open_simulator(topics=[TOPIC, OTHER]) as simulator:
        simulator.faults.add(dated())
        yield simulator


def certificate(apns, days, topics=(TOPIC, OTHER)):
    """One for several topics and none of them its own, so that its name is that of the app's topic."""
    ends = datetime.now(UTC) + timedelta(days=days)
    return pem(apns.authority.issue_provider_certificate(None, topics=topics, not_after=ends))


async def push_through(house):
    """One push; the topics under which it came out."""
    topics = []
    house.simulator.on_delivery("f" * 64, lambda delivery: topics.append(delivery.topic))
    await house.gateway.outbox.accept("opm", [Entry("f" * 64, b'{"aps":{"alert":"x"}}')])
    await house.settled()
    return topics


def said(changes):
    return {change.key: change.result for change in changes}


def webhook(url, secret_file):
    return f'[notices.webhook]\nurl = "{url}"\nsecret_file = "{secret_file}"\n'


async def test_a_reload_takes_notices_and_topic_and_tells_nothing_again(apns, tmp_path):
    drop(tmp_path / "push.pem", certificate(apns, 9.2))
    async with fake_opmanager(tmp_path) as (settings, requests, _), open_house(apns, tmp_path) as house:
        await house.until_told(1)
        told = len(house.pushes())
        # Its key is asked for from now on, and the topic is another one; of what stands nobody hears again.
        opmanager = f'[notices.opmanager]\nurl = "{settings.url}"\napi_key_file = "opmanager.key"\n'
        changes = await house.service.reload(write_config(apns, tmp_path, topic=OTHER, more=opmanager))
        assert said(changes) == {"apps.opm.topic": "changed", "notices.opmanager": "changed"}
        await house.until(lambda: house.gateway.notices.standing()[0].topic == OTHER)
        await house.gateway.notices.wait_told()
        (notice,) = (await house.ask("GET", "/v1/notices")).json()["notices"]
        assert notice["title"] == f"Push certificate {OTHER} expires in 9 days"
        assert len(house.pushes()) == told
        assert not [one for one in requests() if one.get("form")]
        # Nothing differs from what holds.
        assert not await house.service.reload(write_config(apns, tmp_path, topic=OTHER, more=opmanager))
        # What comes now is told by the new section, of the new topic.
        drop(house.file, certificate(apns, 2.5))
        await house.until(lambda: any(one.stage == 3 for one in house.gateway.notices.standing()))
        await house.gateway.notices.wait_told()
        forms = [one["form"] for one in requests() if one.get("form")]
        assert [(one["entity"], one["severity"]) for one in forms] in (
            [(f"apns-cert-{OTHER}", "2"), (f"apns-cert-{TOPIC}", "5")],
            [(f"apns-cert-{TOPIC}", "5"), (f"apns-cert-{OTHER}", "2")],
        ), "raised under the new name; the old one is cleared where it would have been raised"
        assert await push_through(house) == [OTHER]


async def test_a_new_administrators_tag_is_the_watchdogs_too(apns, tmp_path):
    drop(tmp_path / "push.pem", certificate(apns, 20))
    async with open_house(apns, tmp_path) as house:
        await house.until_told(1)
        device = await house.gateway.devices.get("opm", house.phones[1])
        assert device.tags == ()
        await house.gateway.devices.register(
            "opm", Registration(device_token=house.phones[1], tags=("night",), user="alice")
        )
        more = '[alarms]\nadmin_tag = "night"\n'
        assert said(await house.service.reload(write_config(apns, tmp_path, more=more))) == {
            "routes": "changed"
        }
        drop(house.file, certificate(apns, 2.5))
        await house.until(lambda: any(one.stage == 3 for one in house.gateway.notices.standing()))
        await house.gateway.notices.wait_told()
        assert {one.device_token for one in house.pushes()} == {house.phones[1]}


async def test_what_is_no_good_is_refused_table_by_table_and_the_old_stays(apns, tmp_path):
    secret(tmp_path / "good", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    secret(tmp_path / "bad", "no signing secret")
    (tmp_path / "nothing.pem").write_text("no certificate")
    secret(tmp_path / "smtp", "password")
    old = webhook("https://one.example/", "good")
    smtp = (
        '[notices.smtp]\nhost = "mail.example"\nsender = "a@b.example"\nrecipients = ["c@d.example"]\n'
        'user = "a"\npassword_file = "smtp"\n'
    )
    drop(tmp_path / "push.pem", certificate(apns, 200, topics=(TOPIC,)))
    async with open_house(apns, tmp_path, more=old) as house:
        new = webhook("https://two.example/", "bad") + smtp
        changes = await house.service.reload(write_config(apns, tmp_path, topic=OTHER, more=new))
        assert said(changes) == {
            "apps.opm.topic": "refused", "notices.webhook": "refused", "notices.smtp": "changed",
        }  # fmt: skip
        reasons = {change.key: str(change) for change in changes}
        assert "does not cover the topic 'org.example.renamed'" in reasons["apps.opm.topic"]
        assert "refused, and the old one stays" in reasons["notices.webhook"]
        assert str(tmp_path / "bad") in reasons["notices.webhook"]
        assert "no signing secret" not in reasons["notices.webhook"]
        kept = house.service.config
        assert str(kept.notices.webhook.url) == "https://one.example/"
        assert kept.notices.smtp.host == "mail.example"
        assert kept.apps["opm"].topic == TOPIC == house.app.settings.topic
        assert house.gateway.notices.channels == ("console", "log", "email", "app", "push", "webhook")
        assert await push_through(house) == [TOPIC]
        # A table that is gone tells no more; an authority that is none is refused.
        changes = await house.service.reload(
            write_config(apns, tmp_path, more=smtp + f'ca_file = "{tmp_path / "nothing.pem"}"\n')
        )
        assert said(changes) == {"notices.smtp": "refused", "notices.webhook": "changed"}
        assert "no certificate" in str(changes)
        assert house.gateway.notices.channels == ("console", "log", "email", "app", "push")


async def test_certificate_and_topic_change_together(apns, tmp_path):
    """The file was put in its place first, and refused, since it is for the topic that comes after it."""
    drop(tmp_path / "push.pem", certificate(apns, 200, topics=(TOPIC,)))
    async with open_house(apns, tmp_path) as house:
        drop(house.file, certificate(apns, 200, topics=(OTHER,)))
        await house.until_told(1, "file_refused")
        changes = await house.service.reload(write_config(apns, tmp_path, topic=OTHER))
        assert said(changes) == {"apps.opm.topic": "changed", "apps.opm.credential": "changed"}
        await house.until_told(0, "file_refused")
        assert await push_through(house) == [OTHER]


def test_files_that_are_not_there_are_named(tmp_path):
    smtp = SmtpSettings(host="h", sender="a@b", recipients=("c@d",), ca_file=tmp_path / "no.pem")
    assert why_unusable(smtp) == f"{tmp_path / 'no.pem'}: No such file or directory"
    hook = WebhookSettings(url="https://x.example/", secret_file=tmp_path / "no")
    assert why_unusable(hook) == f"{tmp_path / 'no'}: No such file or directory"
    assert why_unusable(SmtpSettings(host="h", sender="a@b", recipients=("c@d",))) is None
