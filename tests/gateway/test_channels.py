"""The channels, each against a real peer: SMTP with STARTTLS, OpManager's REST, a signed webhook, push."""

import email
import email.policy
import json
import logging
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trustme

from fastpush.gateway import signatures
from fastpush.gateway.config import RestSettings, SmtpSettings, WebhookSettings
from fastpush.gateway.notices import LogCarrier, NotTold, open_notices
from fastpush.gateway.notices.email import EmailCarrier
from fastpush.gateway.notices.outgoing import OpManagerCarrier, WebhookCarrier
from fastpush.gateway.notices.push import PushCarrier, entry_of
from fastpush.gateway.notices.store import Telling
from fastpush.gateway.notices.values import EVERY_CHANNEL, Judgement, Notice
from fastpush.gateway.outbox import Audience
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.storage import Limits, open_storage
from tests.clocks import story_clock
from tests.gateway.smtp_peer import Mailbox

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
NOW = 1_800_000_000.0
DAY = 86_400.0


def notice(**fields):
    return Notice(
        **{
            "id": "certificate:0123456789abcdef", "kind": "certificate", "severity": 3,
            "apps": ("opmanager",),
            "title": "Push certificate com.example.app expires in 9 days", "body": "Till 2027-01-24.",
            "cure": "Make a new one.", "entity": "apns-cert-com.example.app", "channels": EVERY_CHANNEL,
            "stage": 10, "topic": "com.example.app", "name": "com.example.app", "expires_at": NOW + 9.2 * DAY,
        } | fields
    )  # fmt: skip


def telling(change="raised", number=1, **fields):
    return Telling(number, notice(**fields), "email", change, NOW)


def secret(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


# E-mail.


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    directory = tmp_path_factory.mktemp("authority")
    found = trustme.CA()
    found.ca_file = directory / "ca.pem"
    found.ca_file.write_bytes(found.cert_pem.bytes())
    found.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.issue_cert("localhost").configure_cert(found.context)
    return found


def smtp(mailbox, authority, **fields):
    return SmtpSettings(
        **{
            "host": "localhost", "port": mailbox.port, "sender": "fastpush@example.com",
            "recipients": ("noc@example.com",), "ca_file": authority.ca_file,
        } | fields
    )  # fmt: skip


async def test_a_mail_goes_over_tls_and_says_who_took_it(authority, nursery):
    mailbox = await Mailbox(authority.context).serve(nursery)
    took = await EmailCarrier(smtp(mailbox, authority)).tell(telling())
    assert took == "localhost: 250 2.0.0 queued as 4711"
    ((sender, recipients, octets, tls),) = mailbox.mails
    assert tls
    assert (sender, recipients) == ("fastpush@example.com", ["noc@example.com"])
    mail = email.message_from_bytes(octets, policy=email.policy.default)
    assert mail["Subject"] == "[fastpush] Push certificate com.example.app expires in 9 days"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "What to do: Make a new one." in mail.get_content()
    assert all("." in hello for hello in mailbox.hellos), "EHLO names a domain, or an address in brackets"
    nursery.cancel_scope.cancel()


async def test_no_mail_leaves_without_tls(authority, nursery):
    plain = await Mailbox(None).serve(nursery)
    with pytest.raises(NotTold, match="offers no STARTTLS"):
        await EmailCarrier(smtp(plain, authority)).tell(telling())
    stranger = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.issue_cert("localhost").configure_cert(context)
    other = await Mailbox(context).serve(nursery)
    with pytest.raises(NotTold, match="its certificate does not verify"):
        await EmailCarrier(smtp(other, authority)).tell(telling())
    assert not plain.mails
    assert not other.mails
    nursery.cancel_scope.cancel()


async def test_no_text_becomes_a_header(authority, nursery):
    mailbox = await Mailbox(authority.context).serve(nursery)
    evil = "a\r\nBcc: all@example.com\r\n\r\nhello\x00\x1b[31m" + "ü" * 300
    await EmailCarrier(smtp(mailbox, authority)).tell(telling(title=evil))
    ((_, recipients, octets, _),) = mailbox.mails
    assert recipients == ["noc@example.com"]
    mail = email.message_from_bytes(octets, policy=email.policy.default)
    assert "Bcc" not in mail
    assert mail["Subject"].startswith("[fastpush] a Bcc: all@example.com hello [31m")
    assert len(mail["Subject"]) <= 200
    nursery.cancel_scope.cancel()


async def test_a_refused_recipient_does_not_keep_it_from_the_others(authority, nursery):
    mailbox = await Mailbox(authority.context, refuses=("gone@example.com",)).serve(nursery)
    settings = smtp(mailbox, authority, recipients=("gone@example.com", "noc@example.com"))
    took = await EmailCarrier(settings).tell(telling())
    assert "refused: gone@example.com (550 no such user)" in took
    assert mailbox.mails[0][1] == ["noc@example.com"]
    with pytest.raises(NotTold, match="takes no recipient"):
        await EmailCarrier(smtp(mailbox, authority, recipients=("gone@example.com",))).tell(telling())
    nursery.cancel_scope.cancel()


async def test_a_server_that_says_no_or_nothing_is_named(authority, nursery):
    busy = await Mailbox(authority.context, greets="421 too busy").serve(nursery)
    with pytest.raises(NotTold, match="421 too busy"):
        await EmailCarrier(smtp(busy, authority)).tell(telling())
    gone = smtp(busy, authority, port=1)
    with pytest.raises(NotTold, match="localhost port 1"):
        await EmailCarrier(gone).tell(telling())
    nursery.cancel_scope.cancel()


# OpManager.


@asynccontextmanager
async def fake_opmanager(directory, key="rest-key-4711"):
    """Its own process; gives settings and a function that reads what it got."""
    book = directory / "opmanager.ndjson"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.gateway.fake_opmanager", book, key], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        port = int(await process.stdout.receive_some())
        settings = RestSettings(
            url=f"http://127.0.0.1:{port}", api_key_file=secret(directory / "opmanager.key", f"{key}\n")
        )

        def requests(call="events/addEvent"):
            lines = book.read_text().splitlines() if book.exists() else []
            return [one for one in map(json.loads, lines) if one["path"].endswith(call)]

        yield settings, requests, book.with_suffix(".mode")
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()


async def test_opmanager_sees_the_alarm_raised_and_cleared_once_each(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    async with fake_opmanager(tmp_path) as (settings, requests, _):
        for _ in range(2):  # a second process repeats nothing
            async with open_storage(tmp_path / "gateway.db", ROOMY) as storage:
                notices = await open_notices(
                    storage, [OpManagerCarrier(settings), LogCarrier()], clock=lambda: NOW
                )
                async with trio.open_nursery() as nursery:
                    await nursery.start(notices.run)
                    if not notices.told:
                        await notices.apply(Judgement(tell=(notice(),)), NOW)
                        await notices.wait_told()
                        await notices.apply(Judgement(withdraw=(notice().id,)), NOW)
                        await notices.wait_told()
                    nursery.cancel_scope.cancel()
        raised, cleared = (one["form"] for one in requests())
    assert raised == {
        "source": "fastpush", "severity": "3", "alarmCode": "fastpush certificate", "eventType": "fastpush",
        "entity": "apns-cert-com.example.app",
        "message": f"fastpush: {notice().title}. Till 2027-01-24. Make a new one.",
    }  # fmt: skip
    assert cleared == raised | {
        "severity": "5", "message": "fastpush: Over: Push certificate com.example.app expires in 9 days"
    }  # fmt: skip
    assert "rest-key-4711" not in caplog.text


async def test_opmanagers_ways_to_say_no(tmp_path):
    async with fake_opmanager(tmp_path) as (settings, requests, mode):
        carrier = OpManagerCarrier(settings)
        await carrier.check_key()
        assert requests("admin/listDownTimeSchedules")
        mode.write_text("error")
        with pytest.raises(NotTold, match="OpManager answered internal") as caught:
            await carrier.tell(telling())
        assert not caught.value.lasting
        mode.write_text("down")
        with pytest.raises(NotTold, match="503"):
            await carrier.tell(telling())
        mode.write_text("unauthorized")
        with pytest.raises(NotTold, match="REST access is off") as caught:
            await carrier.tell(telling())
        assert not caught.value.lasting, "once somebody has mended the key, the alarm is to come after all"
        assert "rest-key-4711" not in str(caught.value)
        with pytest.raises(NotTold, match="REST access is off") as caught:
            await carrier.check_key()
        assert caught.value.lasting
        settings.api_key_file.chmod(0o644)
        with pytest.raises(NotTold, match="everybody may read"):
            await carrier.tell(telling())
    settings.api_key_file.chmod(0o600)
    with pytest.raises(NotTold):
        await carrier.tell(telling())


async def test_an_answer_that_drips_in_ends_too(tmp_path, nursery, monkeypatch):
    """Each octet comes within the limit of one read, and the watchdog still does not wait for all of them."""
    monkeypatch.setattr("fastpush.gateway.notices.outgoing.WITHIN", 0.5)

    async def drip(stream):
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")
            while True:
                await stream.send_all(b" ")
                await trio.sleep(0.1)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, drip, [listener])
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    settings = RestSettings(url=url, api_key_file=secret(tmp_path / "key", "rest-key-4711"))
    with trio.fail_after(5), pytest.raises(NotTold, match="no answer within"):
        await OpManagerCarrier(settings).check_key()
    nursery.cancel_scope.cancel()


# The webhook.


async def one_request(nursery, status=204):
    """A server for one connection each; what it received."""
    received = []

    async def serve(stream):
        async with stream:
            octets = b""
            while b"\r\n\r\n" not in octets:
                octets += await stream.receive_some()
            head, _, body = octets.partition(b"\r\n\r\n")
            fields = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n")[1:])
            }
            while len(body) < int(fields["content-length"]):
                body += await stream.receive_some()
            received.append((fields, body))
            await stream.send_all(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n".encode())

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return f"http://127.0.0.1:{listener.socket.getsockname()[1]}/hook", received


async def test_the_webhook_is_signed_and_keeps_its_id(tmp_path, nursery):
    url, received = await one_request(nursery)
    key = bytes(range(32))
    path = secret(tmp_path / "secret", signatures.write_signing_secret(key))
    carrier = WebhookCarrier(WebhookSettings(url=url, secret_file=path), clock=lambda: NOW)
    assert await carrier.tell(telling(number=7)) == "the server answered 204"
    await carrier.tell(telling(number=7))
    (fields, body), (again, _) = received
    assert fields["webhook-id"] == again["webhook-id"]
    assert signatures.verify(
        [key], fields["webhook-signature"], fields["webhook-id"], int(fields["webhook-timestamp"]), body
    )
    document = json.loads(body)
    assert document["type"] == "notice.raised"
    assert document["notice"]["category"] == "OPM_CERT"
    assert document["notice"]["stage"] == 10
    nursery.cancel_scope.cancel()


async def test_a_webhook_that_redirects_or_fails_is_not_told(tmp_path, nursery):
    path = secret(tmp_path / "secret", signatures.write_signing_secret(bytes(32)))
    for status in (301, 404, 500):
        url, _ = await one_request(nursery, status)
        with pytest.raises(NotTold, match=f"the server answered {status}"):
            await WebhookCarrier(WebhookSettings(url=url, secret_file=path)).tell(telling())
    wrong = secret(tmp_path / "wrong", "no secret of the form")
    with pytest.raises(NotTold) as caught:
        await WebhookCarrier(WebhookSettings(url=url, secret_file=wrong)).tell(telling())
    assert "no secret of the form" not in str(caught.value)
    nursery.cancel_scope.cancel()


# Push.


class Devices:
    """How many devices each app has, and how many of them are administrators'."""

    def __init__(self, **counts):
        self.counts = counts

    async def count(self, app, audience=None):
        await trio.lowlevel.checkpoint()
        admins, everybody = self.counts.get(app, (0, 0))
        return admins if audience is not None and audience.any_of == ("admin",) else everybody


class App(msgspec.Struct):
    name: str
    state: str = "running"
    reason: str | None = None


@pytest.fixture
def clock():
    return story_clock(0.001)  # the carrier looks three hundred times


async def pushed(clock, tmp_path, devices, told, *apps):
    """What the carrier says, and the fan-outs it has handed to the outbox."""
    async with open_storage(tmp_path / "gateway.db", ROOMY) as storage:
        clock.holds.append(lambda: storage.pending_rows > 0)
        outbox = await open_outbox(storage, clock=lambda: NOW)
        carrier = PushCarrier(outbox, devices, {app.name: app for app in apps}, clock=lambda: NOW)
        try:
            said = await carrier.tell(told)
        except NotTold as error:
            said = error
        return said, {app.name: await outbox.claim_fanouts(app.name) for app in apps}


async def test_administrators_are_pushed_to_else_everybody(tmp_path, clock):
    said, fanouts = await pushed(
        clock, tmp_path, Devices(opmanager=(2, 50)), telling(), App("opmanager"), App("other")
    )
    (fanout,) = fanouts["opmanager"]
    assert fanout.audience == Audience(any_of=("admin",))
    assert "of the devices of opmanager tagged admin" in said
    assert not fanouts["other"]
    document = json.loads(fanout.entry.payload)
    assert document["aps"]["category"] == "OPM_CERT"
    assert document["notice"]["state"] == "raised"
    assert fanout.entry.collapse_id == "cert.com.example.app"
    assert fanout.entry.expiration == int(NOW + DAY)
    (tmp_path / "second").mkdir()
    said, fanouts = await pushed(
        clock, tmp_path / "second", Devices(opmanager=(0, 50)), telling(), App("opmanager")
    )
    assert fanouts["opmanager"][0].audience == Audience()


async def test_a_dead_certificate_is_told_through_other_apps_and_who_was_not_reached_is_said(tmp_path, clock):
    dead = App("opmanager", "refused", "APNs refuses certificate com.example.app: certificate expired")
    devices = Devices(opmanager=(2, 50), other=(1, 9), third=(0, 9))
    said, fanouts = await pushed(clock, tmp_path, devices, telling(), dead, App("other"), App("third"))
    assert not fanouts["opmanager"]
    assert len(fanouts["other"]) == 1
    assert not fanouts["third"], "only administrators hear of another app's certificate"
    assert said.endswith(f"not reached: 50 devices of opmanager ({dead.reason})")
    (tmp_path / "second").mkdir()
    said, _ = await pushed(clock, tmp_path / "second", Devices(opmanager=(2, 50)), telling(), dead)
    assert isinstance(said, NotTold)
    assert not said.lasting, "it is told when the app works again, unless it is over by then"
    (tmp_path / "third").mkdir()
    said, _ = await pushed(clock, tmp_path / "third", Devices(), telling(), App("opmanager"))
    assert isinstance(said, NotTold)
    assert said.lasting
    assert str(said) == "no device is registered"


async def test_a_telling_repeated_after_a_kill_pushes_once(tmp_path, clock):
    async with open_storage(tmp_path / "gateway.db", ROOMY) as storage:
        clock.holds.append(lambda: storage.pending_rows > 0)
        outbox = await open_outbox(storage, clock=lambda: NOW)
        for _ in range(2):
            carrier = PushCarrier(
                outbox, Devices(opmanager=(1, 1)), {"opmanager": App("opmanager")}, clock=lambda: NOW
            )
            await carrier.tell(telling(number=9))
        assert len(await outbox.claim_fanouts("opmanager")) == 1


def test_a_push_about_an_end_does_not_outlive_it_and_an_end_is_urgent():
    soon = entry_of(telling(expires_at=NOW + 3600), NOW)
    assert soon.expiration == int(NOW + 3600)
    over = entry_of(telling(severity=1, expires_at=NOW - 60), NOW)
    assert over.expiration == int(NOW + DAY)
    assert json.loads(over.payload)["aps"]["interruption-level"] == "time-sensitive"
    withdrawn = json.loads(entry_of(telling("withdrawn"), NOW).payload)
    assert withdrawn["aps"]["interruption-level"] == "passive"
    assert "sound" not in withdrawn["aps"]
    assert len(entry_of(telling(topic="x" * 200), NOW).collapse_id.encode()) <= 64
