"""A new credential is dropped in: proved, taken, nothing lost; a bad one is refused and the old one stays."""

import os
import ssl
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from fastpush.credentials import ProviderCertificate, SigningKey
from fastpush.gateway.apps import Apps
from fastpush.gateway.config import AppSettings, CredentialSettings
from fastpush.gateway.http import ServerTLS
from fastpush.gateway.renewal import Renewal, all_but
from fastpush.gateway.uploads import Offer, kept_credentials
from fastpush.notification import Notification, Payload
from fastpush.simulator import open_simulator

TOPIC = "com.example.app"
DAY = 86_400.0


def pem(issued):
    return issued.certificate_pem + issued.key_pem


def drop(path, octets):
    """Put a file in place of another as `mv` does."""
    draft = path.with_name(".new")
    draft.write_bytes(octets)
    draft.chmod(0o600)
    draft.replace(path)


class House:
    """One app with its credential in a file, and the renewal that watches it."""

    def __init__(self, apns, directory, **fields):
        self.apns, self.directory = apns, directory
        self.path = directory / "push.pem"
        self.state = directory / "state"
        if not self.path.exists():
            drop(self.path, pem(apns.issue_provider_certificate(TOPIC)))
        self.settings = AppSettings(
            **{
                "name": "opmanager", "topic": TOPIC, "host": "localhost", "port": apns.port,
                "ca_file": apns.ca_file, "credential": CredentialSettings(certificate_file=self.path),
            } | fields
        )  # fmt: skip
        self.verdicts, self.send_verdict = [], None

    @asynccontextmanager
    async def open(self, **how):
        self.send_verdict, self.receive_verdict = trio.open_memory_channel(1_000)
        async with trio.open_nursery() as nursery:
            kept, _ = kept_credentials({"opmanager": self.settings}, self.state)
            self.apps = await nursery.start(Apps([self.settings], credentials=kept).run)
            self.renewal = Renewal(self.apps, self.state, told=self.send_verdict.send_nowait, **how)
            await nursery.start(self.renewal.run)
            self.app = self.apps["opmanager"]
            with trio.fail_after(10):
                while self.app.client is None:
                    await self.app.line("production").changed()
            yield self
            nursery.cancel_scope.cancel()

    async def verdict(self):
        with trio.fail_after(20):
            return await self.receive_verdict.receive()

    def in_use(self):
        return self.app.credential("main").fingerprint

    async def push(self, number=1):
        with trio.fail_after(20):
            return await self.app.client.send(Notification(f"{number:064x}", Payload(alert="x"), topic=TOPIC))


@pytest.fixture
async def apns():
    async with open_simulator(topics=[TOPIC]) as simulator:
        yield simulator


def load(octets):
    return ProviderCertificate.from_bytes(octets, allow_expired=True)


async def test_a_new_file_is_taken_and_the_old_connections_go(apns, tmp_path):
    async with House(apns, tmp_path).open() as house:
        assert (await house.push()).accepted
        new = pem(apns.issue_provider_certificate(TOPIC))
        drop(house.path, new)
        verdict = await house.verdict()
        assert verdict.taken
        assert verdict.proved
        assert house.in_use() == load(new).fingerprint
        assert (await house.push()).accepted


def bad_ones(apns):
    """Files that are refused, and a word of the reason."""
    good, other = apns.issue_provider_certificate(TOPIC), apns.issue_provider_certificate(TOPIC)
    ended = apns.issue_provider_certificate(TOPIC, valid_until=time.time() - DAY)
    early = apns.issue_provider_certificate(
        TOPIC, valid_from=time.time() + DAY, valid_until=time.time() + 9 * DAY
    )
    return {
        "expired": (pem(ended), "expired on"),
        "not yet valid": (pem(early), "valid from"),
        "other topic": (pem(apns.issue_provider_certificate("org.other")), "does not cover the topic"),
        "other environment": (
            pem(apns.issue_provider_certificate(TOPIC, environments=["development"])),
            "not for the production environment",
        ),
        "truncated": (pem(good)[:-200], "private key"),
        "cut in the certificate": (pem(good)[:300], "neither PEM"),
        "other key": (good.certificate_pem + other.key_pem, "does not belong to"),
        "empty": (b"", "is empty"),
        "a page": (b"<!DOCTYPE html><html></html>", "a web page"),
    }


async def test_bad_files_are_refused_with_the_reason_and_the_old_one_stays(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.renewal.SETTLE", 0.05)
    async with House(apns, tmp_path).open() as house:
        before = house.in_use()
        for name, (octets, word) in bad_ones(apns).items():
            drop(house.path, octets)
            verdict = await house.verdict()
            assert not verdict.taken, name
            assert word in verdict.reason or name == "cut in the certificate", (name, verdict.reason)
            assert house.in_use() == before, name
            assert (await house.push()).accepted, name
        good = pem(apns.issue_provider_certificate(TOPIC))
        drop(house.path, good)
        assert (await house.verdict()).taken
        assert house.in_use() == load(good).fingerprint


async def test_a_certificate_for_one_of_two_environments_is_refused(apns, tmp_path):
    """Also while no push to the other one was needed yet."""
    both = pem(apns.issue_provider_certificate(TOPIC, environments=["production", "development"]))
    drop(tmp_path / "push.pem", both)
    async with House(apns, tmp_path, environment="both").open() as house:
        drop(house.path, pem(apns.issue_provider_certificate(TOPIC, environments=["production"])))
        verdict = await house.verdict()
        assert not verdict.taken
        assert "not for the development environment" in verdict.reason


async def test_what_apns_refuses_is_not_taken(apns, tmp_path):
    async with House(apns, tmp_path).open() as house:
        before = house.in_use()
        revoked = apns.issue_provider_certificate(TOPIC)
        apns.revoke_certificate(revoked)
        drop(house.path, pem(revoked))
        verdict = await house.verdict()
        assert not verdict.taken
        assert "certificate revoked" in verdict.reason
        assert house.in_use() == before
        assert (await house.push()).accepted


async def test_the_old_file_put_back_after_a_bad_one_is_well_again(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.renewal.SETTLE", 0.05)
    async with House(apns, tmp_path).open() as house:
        before = house.path.read_bytes()
        drop(house.path, b"rubbish")
        assert not (await house.verdict()).taken
        drop(house.path, before)
        verdict = await house.verdict()
        assert verdict.taken
        assert house.in_use() == load(before).fingerprint


async def watched(house):
    """A change that was seen tells that the directories are being watched."""
    drop(house.path, pem(house.apns.issue_provider_certificate(TOPIC)))
    assert (await house.verdict()).taken


async def test_a_file_that_is_still_being_written_is_not_refused(apns, tmp_path):
    """`cp` writes in place: between two parts the file is a bad one."""
    async with House(apns, tmp_path).open() as house:
        await watched(house)
        new = pem(apns.issue_provider_certificate(TOPIC))
        with house.path.open("wb") as file:
            file.write(new[:200])
            file.flush()
            await trio.sleep(0.3)
            file.write(new[200:])
        verdict = await house.verdict()
        assert verdict.taken
        assert house.in_use() == load(new).fingerprint


@pytest.mark.parametrize("named", ["tls.pem", "..data/tls.pem"])
async def test_kubernetes_swaps_a_symlink(apns, tmp_path, named, monkeypatch):
    """A mounted secret: file -> ..data/file, and ..data -> a directory of its own for each version."""
    monkeypatch.setattr("fastpush.gateway.renewal.WATCHED_AFTER", 0.1)
    mount = tmp_path / "secret"

    def version(name, octets):
        (mount / name).mkdir(parents=True)
        (mount / name / "tls.pem").write_bytes(octets)
        (mount / name / "tls.pem").chmod(0o600)
        link = mount / "..tmp"
        link.symlink_to(name)
        os.replace(link, mount / "..data")

    version("..2026_01", pem(apns.issue_provider_certificate(TOPIC)))
    (mount / "tls.pem").symlink_to("..data/tls.pem")
    settings = CredentialSettings(certificate_file=mount / named)
    async with House(apns, tmp_path, credential=settings).open() as house:
        for number in (2, 3, 4):
            await trio.sleep(0.5)  # by now nothing but the watch finds a change
            new = pem(apns.issue_provider_certificate(TOPIC))
            version(f"..2026_0{number}", new)
            assert (await house.verdict()).taken
            assert house.in_use() == load(new).fingerprint


async def test_a_link_to_a_file_elsewhere_is_followed(apns, tmp_path):
    """/etc/fastpush/push.pem -> certificates/current.pem, which is replaced where it is."""
    (tmp_path / "certificates").mkdir()
    target = tmp_path / "certificates" / "current.pem"
    drop(target, pem(apns.issue_provider_certificate(TOPIC)))
    (tmp_path / "push.pem").symlink_to(target)
    async with House(apns, tmp_path).open() as house:
        new = pem(apns.issue_provider_certificate(TOPIC))
        drop(target, new)
        assert (await house.verdict()).taken
        assert house.in_use() == load(new).fingerprint


async def test_certificate_and_key_in_two_files(apns, tmp_path):
    """The first of the two to come does not match the other, and is not refused for that."""
    first = apns.issue_provider_certificate(TOPIC)
    certificate, key = tmp_path / "push.crt", tmp_path / "push.key"
    drop(certificate, first.certificate_pem)
    drop(key, first.key_pem)
    settings = CredentialSettings(certificate_file=certificate, private_key_file=key)
    async with House(apns, tmp_path, credential=settings).open() as house:
        new = apns.issue_provider_certificate(TOPIC)
        drop(certificate, new.certificate_pem)
        await trio.sleep(0.3)
        drop(key, new.key_pem)
        assert (await house.verdict()).taken
        assert house.in_use() == load(pem(new)).fingerprint


# By HTTP.


async def test_an_upload_survives_a_restart_until_the_configured_file_changes(apns, tmp_path):
    house = House(apns, tmp_path)
    uploaded = pem(apns.issue_provider_certificate(TOPIC))
    async with house.open():
        verdict = await house.renewal.offer("opmanager", "main", Offer(certificate=uploaded))
        assert verdict.taken
        assert verdict.proved
        (kept,) = [path for path in house.state.rglob("*") if path.is_file()]
        assert kept.stat().st_mode & 0o777 == 0o600
        assert house.state.stat().st_mode & 0o777 == 0o700
    async with house.open():
        assert house.in_use() == load(uploaded).fingerprint
        later = pem(apns.issue_provider_certificate(TOPIC))
        drop(house.path, later)
        assert (await house.verdict()).taken
        assert house.in_use() == load(later).fingerprint
    async with house.open():
        assert house.in_use() == load(later).fingerprint
        assert not [path for path in house.state.rglob("*") if path.is_file()]


async def test_a_file_changed_while_nobody_ran_is_newer_than_the_upload(apns, tmp_path):
    house = House(apns, tmp_path)
    async with house.open():
        uploaded = pem(apns.issue_provider_certificate(TOPIC))
        assert (await house.renewal.offer("opmanager", "main", Offer(certificate=uploaded))).taken
    later = pem(apns.issue_provider_certificate(TOPIC))
    drop(house.path, later)
    async with house.open():
        assert house.in_use() == load(later).fingerprint


async def test_an_upload_that_is_refused_leaves_nothing(apns, tmp_path):
    async with House(apns, tmp_path).open() as house:
        before = house.in_use()
        offer = Offer(certificate=pem(apns.issue_provider_certificate("org.other")))
        verdict = await house.renewal.offer("opmanager", "main", offer)
        assert not verdict.taken
        assert "does not cover" in verdict.reason
        assert house.in_use() == before
        assert not [path for path in house.state.rglob("*") if path.is_file()]
        assert "PRIVATE" not in repr(offer)
        assert house.renewal.slots["opmanager", "main"].verdict is None, "it is the sender's, and no notice"


async def test_from_certificate_to_key_and_back(apns, tmp_path):
    async with House(apns, tmp_path).open() as house:
        key = apns.issue_signing_key()
        offer = Offer(key=key.p8, key_id=key.key_id, team_id=key.team_id)
        assert (await house.renewal.offer("opmanager", "main", offer)).taken
        assert isinstance(house.app.credential("main"), SigningKey)
        assert (await house.push()).accepted
        back = pem(apns.issue_provider_certificate(TOPIC))
        assert (await house.renewal.offer("opmanager", "main", Offer(certificate=back))).taken
        assert isinstance(house.app.credential("main"), ProviderCertificate)
        assert (await house.push()).accepted


# Nobody answers.


async def test_what_nobody_answers_about_is_taken_unproved_and_proved_later(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.renewal.PROVE_EVERY", 0.2)
    async with House(apns, tmp_path).open() as house:
        apns.refuse_connections()
        apns.close_connections()
        new = pem(apns.issue_provider_certificate(TOPIC))
        drop(house.path, new)
        verdict = await house.verdict()
        assert verdict.taken
        assert not verdict.proved
        assert house.in_use() == load(new).fingerprint
        apns.accept_connections()
        assert (await house.verdict()).proved
        assert house.renewal.slots["opmanager", "main"].proved
        assert (await house.push()).accepted


async def test_a_later_no_puts_the_old_one_back(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.renewal.PROVE_EVERY", 0.2)
    async with House(apns, tmp_path).open() as house:
        before = house.in_use()
        apns.refuse_connections()
        apns.close_connections()
        revoked = apns.issue_provider_certificate(TOPIC)
        apns.revoke_certificate(revoked)
        drop(house.path, pem(revoked))
        assert (await house.verdict()).taken
        apns.accept_connections()
        verdict = await house.verdict()
        assert not verdict.taken
        assert "certificate revoked" in verdict.reason
        assert house.in_use() == before
        assert (await house.push()).accepted


# The ingest's own certificate.


async def test_the_listeners_certificate_is_served_anew(apns, tmp_path, monkeypatch):
    monkeypatch.setattr("fastpush.gateway.renewal.SETTLE", 0.1)
    authority = trustme.CA()
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "server.key"

    def issue():
        issued = authority.issue_cert("localhost")
        drop(key, issued.private_key_pem.bytes())
        drop(certificate, b"".join(part.bytes() for part in issued.cert_chain_pems))
        return issued.cert_chain_pems[0].bytes()

    issue()
    tls = ServerTLS(certificate, key)
    sender, receiver = trio.open_memory_channel(100)

    def served():
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
        server = tls.context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return ssl.DER_cert_to_PEM_cert(client.getpeercert(binary_form=True)).split()

    house = House(apns, tmp_path)
    async with house.open(certificates=[(tls, (certificate, key))], reloaded=sender.send_nowait):
        new = issue()
        with trio.fail_after(10):
            assert await receiver.receive() is None
        assert served() == new.decode().split()
        drop(certificate, b"rubbish")
        with trio.fail_after(10):
            assert "fullchain.pem" in await receiver.receive()
        assert served() == new.decode().split(), "a bad one is refused, the old one is still served"


# In full flow.


@pytest.mark.slow
async def test_twenty_swaps_in_full_flow_lose_and_double_nothing(apns, tmp_path, monkeypatch, seed):
    """5,000 a second, while good and bad files of every kind take their turns: 0 lost, 0 doubled."""
    monkeypatch.setattr("fastpush.gateway.renewal.SETTLE", 0.05)
    house = House(apns, tmp_path)
    bad = [octets for octets, _ in bad_ones(apns).values()]
    revoked = apns.issue_provider_certificate(TOPIC)
    apns.revoke_certificate(revoked)
    bad.append(pem(revoked))
    (tmp_path / "aside").mkdir()
    swapped = trio.Event()
    responses = []

    async def flow():
        """5,000 a second by the clock, as long as files are being swapped."""
        payload, began, sent = Payload(alert="x"), trio.current_time(), 0

        async def notifications():
            nonlocal sent
            while not swapped.is_set():
                due = int((trio.current_time() - began) * 5_000)
                while sent < due:
                    sent += 1
                    yield Notification(f"{sent:064x}", payload)
                await trio.sleep(0.01)

        async with house.app.client.send_many(notifications()) as answers:
            async for response in answers:
                responses.append(response)
        return sent

    async with house.open(), trio.open_nursery() as nursery:
        nursery.start_soon(flow)
        began = trio.current_time()
        await trio.sleep(0.5)
        for number in range(20):
            if number % 2:
                drop(house.path, bad[number // 2])
                verdict = await house.verdict()
                assert not verdict.taken, number
                assert verdict.reason
            else:
                new = pem(apns.issue_provider_certificate(TOPIC))
                if number % 4:  # by a symbolic link
                    aside = tmp_path / "aside" / f"{number}.pem"
                    drop(aside, new)
                    link = tmp_path / ".link"
                    link.symlink_to(aside)
                    os.replace(link, house.path)
                else:
                    drop(house.path, new)
                verdict = await house.verdict()
                assert verdict.taken, (number, verdict.reason)
                assert house.in_use() == load(new).fingerprint
            await trio.sleep(seed.uniform(0, 0.1))
        swapped.set()
        took = trio.current_time() - began
    # Each new credential was proved by a push to a device token of zeros.
    seen = Counter(
        one.device_token for one in apns.ledger.seen if one.delivered and int(one.device_token, 16)
    )
    print(f"{len(responses):,} pushes in {took:.1f} s, {len(seen):,} delivered")
    assert len(responses) > 10_000
    assert all(response.accepted for response in responses)
    assert len(seen) == len(responses), "lost"
    assert set(seen.values()) == {1}, "doubled"


def test_commits_beside_a_credential_wake_nobody():
    """The example's layout has key and database in one directory; a link's name may be anything."""
    matters = all_but(Path("/var/lib/fastpush/gateway.db"))
    for name in ("gateway.db", "gateway.db-wal", "gateway.db-shm", "gateway.db.lock", "gateway.db.reserve"):
        assert not matters(None, f"/var/lib/fastpush/{name}")
    for name in ("AuthKey_ABC123DEFG.p8", "..data", "current", "provider.p12"):
        assert matters(None, f"/var/lib/fastpush/{name}")
    assert all_but(None) is None
