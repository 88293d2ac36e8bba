"""The doctor names the right cause, and no other: each story breaks one thing of a setting that is well."""

import datetime
import email.utils
import json
import socket
import ssl
import time

import pytest
import trio
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fastpush.cli import main
from fastpush.gateway.config import TLSSettings
from fastpush.gateway.doctor import Target, examine
from fastpush.gateway.doctor.ingest import check_ingest
from fastpush.simulator import open_simulator
from fastpush.simulator.authority import Authority
from fastpush.simulator.faults import Answer

TOPIC = "com.example.app"
DAY = 86_400.0


def write(path, octets, mode=0o600):
    path.write_bytes(octets)
    path.chmod(mode)
    return path


def certificate_file(directory, issued, name="push.pem"):
    return write(directory / name, issued.certificate_pem + issued.key_pem)


def key_target(simulator, directory, **fields):
    issued = simulator.issue_signing_key()
    return Target(
        **{
            "topic": TOPIC, "key_file": write(directory / "push.p8", issued.p8), "key_id": issued.key_id,
            "team_id": issued.team_id, "host": "localhost", "port": simulator.port,
            "ca_file": simulator.ca_file,
        } | fields
    )  # fmt: skip


def certificate_target(simulator, directory, issued=None, **fields):
    issued = issued or simulator.issue_provider_certificate(TOPIC)
    return Target(
        **{
            "topic": TOPIC, "certificate_file": certificate_file(directory, issued), "host": "localhost",
            "port": simulator.port, "ca_file": simulator.ca_file,
        } | fields
    )  # fmt: skip


async def failures(target, **how):
    """Name, sentence and cure of the checks that failed."""
    found = [check async for check in examine(target, **how)]
    for check in found:
        assert check.state != "failed" or check.cure.endswith((".", "…")) or "Run: " in check.cure
        assert not check.found.endswith(".")
    return {check.name: check.found for check in found if check.state == "failed"}


async def test_all_is_well_with_a_key_and_with_a_certificate(tmp_path):
    async with open_simulator(topics=[TOPIC]) as apns:
        assert not await failures(key_target(apns, tmp_path))
        assert not await failures(certificate_target(apns, tmp_path))
        names = [check.name async for check in examine(certificate_target(apns, tmp_path))]
    assert names == [
        "file", "certificate", "expiry", "topic", "environment", "trust root", "name", f"port {apns.port}",
        "TLS", "request", "clock",
    ]  # fmt: skip


# What is wrong with the file.


async def test_the_file_is_missing(tmp_path):
    async with open_simulator() as apns:
        found = await failures(key_target(apns, tmp_path, key_file=tmp_path / "none.p8"))
    assert found == {"file": f"key_file {tmp_path}/none.p8: there is no such file"}


@pytest.mark.parametrize("kind", ["key", "certificate"])
async def test_everybody_may_read_it(tmp_path, kind):
    async with open_simulator(topics=[TOPIC]) as apns:
        target = (key_target if kind == "key" else certificate_target)(apns, tmp_path)
        (target.key_file or target.certificate_file).chmod(0o644)
        (check,) = [check async for check in examine(target) if check.state == "failed"]
    assert check.name == "file"
    assert "everybody may read" in check.found
    assert check.cure.startswith("Run: chmod o= ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "is empty"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "damaged"),
    ],
    ids=["page", "empty", "damaged"],
)
async def test_it_is_no_key(tmp_path, content, words):
    async with open_simulator() as apns:
        target = key_target(apns, tmp_path)
        write(target.key_file, content)
        found = await failures(target)
    assert list(found) == ["key"]
    assert words in found["key"]


async def test_it_is_an_rsa_key(tmp_path):
    key = rsa.generate_private_key(65_537, 2_048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with open_simulator() as apns:
        target = key_target(apns, tmp_path)
        write(target.key_file, pem)
        found = await failures(target)
    assert list(found) == ["key"]
    assert "RSA private key of 2048 bits" in found["key"]


async def test_the_key_id_has_the_wrong_length(tmp_path):
    async with open_simulator() as apns:
        found = await failures(key_target(apns, tmp_path, key_id="ABC123"))
    assert list(found) == ["key"]
    assert "key_id must be 10" in found["key"]
    assert "6 characters" in str(found) or "key_id" in found["key"]


async def test_it_is_the_key_of_another_certificate(tmp_path):
    async with open_simulator() as apns:
        one, other = (apns.issue_provider_certificate(TOPIC) for _ in range(2))
        target = certificate_target(apns, tmp_path, one)
        write(target.certificate_file, one.certificate_pem + other.key_pem)
        found = await failures(target)
    assert list(found) == ["certificate"]
    assert "does not belong to" in found["certificate"]


@pytest.mark.parametrize("password", ["wrong", None])
async def test_the_password_is_wrong(tmp_path, password):
    async with open_simulator() as apns:
        issued = apns.issue_provider_certificate(TOPIC)
        target = certificate_target(apns, tmp_path, issued, password=password)
        write(target.certificate_file, issued.to_pkcs12("right"))
        found = await failures(target)
        assert list(found) == ["certificate"]
        assert ("password is wrong" if password else "is encrypted") in found["certificate"]
        secret = write(tmp_path / "password", b"right\n")
        well = certificate_target(apns, tmp_path, issued, password_file=secret)
        write(well.certificate_file, issued.to_pkcs12("right"))
        assert not await failures(well)


# What is wrong with the credential.


async def test_the_team_is_wrong(tmp_path):
    async with open_simulator() as apns:
        found = await failures(key_target(apns, tmp_path, team_id="OTHERTEAM1"))
    assert found == {"request": "APNs refuses: 403 InvalidProviderToken"}


async def test_the_certificate_has_expired(tmp_path):
    async with open_simulator() as apns:
        issued = apns.issue_provider_certificate(TOPIC, valid_until=time.time() - 5 * DAY)
        found = await failures(certificate_target(apns, tmp_path, issued))
    assert list(found) == ["expiry", "request"]
    assert found["expiry"].startswith("the certificate expired on ")
    assert "certificate expired" in found["request"], "the server's alert says so too"


async def test_the_certificate_is_not_valid_yet(tmp_path):
    async with open_simulator() as apns:
        issued = apns.issue_provider_certificate(
            TOPIC, valid_from=time.time() + 5 * DAY, valid_until=time.time() + 400 * DAY
        )
        found = await failures(certificate_target(apns, tmp_path, issued))
    assert list(found) == ["expiry", "request"]
    assert "is not valid yet" in found["expiry"]


async def test_the_topic_is_not_in_the_certificate(tmp_path):
    async with open_simulator() as apns:
        found = await failures(certificate_target(apns, tmp_path, topic="org.other"))
    assert list(found) == ["topic", "request"]
    assert "does not cover the topic 'org.other'" in found["topic"]
    assert "Topic" in found["request"]


async def test_a_sandbox_certificate_on_production(tmp_path):
    async with open_simulator() as apns:
        issued = apns.issue_provider_certificate(TOPIC, environments=["development"])
        found = await failures(certificate_target(apns, tmp_path, issued))
    assert list(found) == ["environment", "request"]
    assert "not for the production environment" in found["environment"]
    assert "BadCertificateEnvironment" in found["request"]


async def test_a_revoked_certificate(tmp_path):
    async with open_simulator() as apns:
        issued = apns.issue_provider_certificate(TOPIC)
        apns.revoke_certificate(issued)
        found = await failures(certificate_target(apns, tmp_path, issued))
    assert list(found) == ["request"]
    assert "certificate revoked" in found["request"]


# What is wrong with clock, trust and network.


@pytest.mark.parametrize("hours", [1, -1])
async def test_the_clock_is_an_hour_off(tmp_path, hours):
    date = email.utils.formatdate(time.time() - hours * 3600, usegmt=True)
    fault = Answer(status=400, reason="BadDeviceToken", fields=((b"date", date.encode()),))
    async with open_simulator(faults=[fault]) as apns:
        found = await failures(certificate_target(apns, tmp_path))
    assert found == {"clock": f"60 minutes {'ahead of' if hours > 0 else 'behind'} the server's"}


async def test_the_clock_is_so_late_that_tokens_have_expired(tmp_path):
    async with open_simulator(clock=lambda: time.time() + 3 * 3600) as apns:
        found = await failures(key_target(apns, tmp_path))
    assert list(found) == ["request", "clock"]
    assert "ExpiredProviderToken" in found["request"]


class Resolver(trio.abc.HostnameResolver):
    """Apple's names are on this machine."""

    async def getaddrinfo(self, host, port, *rest, **more):
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_a_tls_interceptor_stands_in_the_way(tmp_path):
    """Another authority has signed what the server shows; the root of APNs is there."""
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with open_simulator(authority=Authority("Corp Proxy")) as apns:
        target = key_target(apns, tmp_path, host="api.push.apple.com", ca_file=None)
        checks = [check async for check in examine(target)]
    found = {check.name: check for check in checks if check.state == "failed"}
    assert list(found) == ["TLS"]
    assert 'issued by "Corp Proxy authority"' in found["TLS"].found
    assert "interceptor" in found["TLS"].cure
    (note,) = [check for check in checks if check.name == "ports 2195, 2196"]
    assert "not used for sending" in note.found
    assert "channels" in note.found


async def test_the_trust_root_is_missing(tmp_path):
    """A trust store without the root of APNs' chain, such as an old file."""
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with open_simulator() as apns:
        stale = write(tmp_path / "old.pem", Authority("GeoTrust of old").ca_pem)
        found = await failures(key_target(apns, tmp_path, host="api.push.apple.com", ca_file=stale))
    assert found["trust root"] == f"USERTrust RSA Certification Authority is missing in ca_file {stale}"


async def test_the_trust_store_of_another_server_is_wrong(tmp_path):
    async with open_simulator() as apns:
        empty = write(tmp_path / "none.pem", b"nothing\n")
        found = await failures(key_target(apns, tmp_path, ca_file=empty))
        assert "no certificate in PEM" in found["trust root"]
        other = write(tmp_path / "other.pem", Authority("somebody else").ca_pem)
        found = await failures(key_target(apns, tmp_path, ca_file=other))
    assert list(found) == ["TLS"]
    assert 'issued by "fastpush simulator authority"' in found["TLS"]


async def test_the_port_is_closed(tmp_path):
    async with open_simulator() as apns:
        target = key_target(apns, tmp_path)
        apns.refuse_connections()
        found = await failures(target)
    assert found == {f"port {target.port}": "cannot be reached: connection refused"}


async def test_the_host_has_no_address(tmp_path):
    async with open_simulator() as apns:
        found = await failures(key_target(apns, tmp_path, host="no-such-host.invalid"))
    assert list(found) == ["name"]


@pytest.mark.parametrize("protocols", [["http/1.1"], None], ids=["http/1.1", "no ALPN"])
async def test_the_server_speaks_no_http2(tmp_path, protocols, nursery):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)

    async def serve(stream):
        async with stream:
            try:
                await stream.do_handshake()
                await stream.receive_some()
            except (trio.BrokenResourceError, ssl.SSLError):
                pass

    (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    port = listener.transport_listener.socket.getsockname()[1]
    ca_file = write(tmp_path / "ca.pem", authority.cert_pem.bytes())
    async with open_simulator() as apns:
        found = await failures(key_target(apns, tmp_path, port=port, ca_file=ca_file))
    assert list(found) == ["TLS"]
    assert "no HTTP/2" in found["TLS"]
    nursery.cancel_scope.cancel()


# The ingest's own certificate.


def tls_settings(directory, certificate, key):
    return TLSSettings(
        certificate_file=write(directory / "fullchain.pem", certificate, 0o644),
        key_file=write(directory / "server.key", key),
    )


def ingest(settings, **how):
    how = {"name": None, "ca_file": None} | how
    return {check.name: check for check in check_ingest(settings, time.time(), **how)}


def test_the_ingests_certificate_as_opmanager_sees_it(tmp_path):
    authority = trustme.CA()
    above = write(tmp_path / "root.pem", authority.cert_pem.bytes())
    intermediate = authority.create_child_ca()
    leaf = intermediate.issue_cert("push.example.com")
    key = leaf.private_key_pem.bytes()
    chain = [pem.bytes() for pem in leaf.cert_chain_pems]

    well = ingest(tls_settings(tmp_path, b"".join(chain), key), name="push.example.com", ca_file=above)
    assert not [check for check in well.values() if check.state == "failed"]

    short = ingest(tls_settings(tmp_path, chain[0], key), ca_file=above)["chain"]
    assert short.state == "failed"
    assert "not complete" in short.found
    assert "fullchain.pem" in short.cure

    named = ingest(tls_settings(tmp_path, b"".join(chain), key), name="other.example.com", ca_file=above)
    assert "is not for other.example.com" in named["chain"].found

    stranger = authority.issue_cert("push.example.com").private_key_pem.bytes()
    mixed = ingest(tls_settings(tmp_path, b"".join(chain), stranger), ca_file=above)["chain"]
    assert "key values mismatch" in mixed.found


def test_the_ingests_certificate_is_self_signed(tmp_path):
    # An authority's own certificate is the simplest that signs itself.
    authority = trustme.CA()
    own = ingest(tls_settings(tmp_path, authority.cert_pem.bytes(), authority.private_key_pem.bytes()))
    assert own["chain"].state == "failed"
    assert "self-signed: OpManager refuses" in own["chain"].found


def test_the_ingests_certificate_did_not_renew_itself(tmp_path):
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority()
    root = write(tmp_path / "root.pem", authority.ca_pem)
    for left, state in ((30, "ok"), (17, "failed"), (-1, "failed")):
        certificate, key = authority.issue_server(
            "push.example.com",
            not_before=now - datetime.timedelta(days=90 - left),
            not_after=now + datetime.timedelta(days=left),
        )
        found = ingest(tls_settings(tmp_path, certificate, key), ca_file=root)
        assert found["expiry"].state == state
        assert found["chain"].state == ("ok" if left > 0 else "skipped")


# The command.


async def command(*arguments):
    """Run it as the shell does, beside the simulator."""
    return await trio.to_thread.run_sync(
        lambda: CliRunner().invoke(main, ["doctor", *map(str, arguments)], catch_exceptions=False)
    )


def options(target):
    return [
        "--key", target.key_file, "--key-id", target.key_id, "--team-id", target.team_id, "--topic", TOPIC,
        "--host", target.host, "--port", target.port, "--ca-file", target.ca_file,
    ]  # fmt: skip


async def test_the_command_prints_a_line_for_each_check_with_the_cure_below(tmp_path):
    async with open_simulator(topics=[TOPIC]) as apns:
        target = key_target(apns, tmp_path)
        well = await command(*options(target))
        assert well.exit_code == 0, well.output
        assert well.output.endswith("All is well.\n")
        target.key_file.chmod(0o604)
        bad = await command(*options(target))
        told = await command(*options(target), "--json")
    assert bad.exit_code == 1
    lines = bad.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "1 of 11 checks failed."
    failed = next(number for number, line in enumerate(lines) if line.startswith("FAILED"))
    assert any("-> Run: chmod o= " in line for line in lines[failed : failed + 6])
    assert told.exit_code == 1
    document = json.loads(told.output)
    assert document["failed"] == 1
    assert {check["state"] for check in document["checks"]} == {"ok", "failed", "skipped"}


async def test_the_command_reads_a_configuration_and_tells_its_mistakes(tmp_path):
    async with open_simulator(topics=[TOPIC]) as apns:
        target = key_target(apns, tmp_path)
        text = f"""
            [apps.opmanager]
            topic = "{TOPIC}"
            host = "localhost"
            port = {apns.port}
            ca_file = "{apns.ca_file}"
            [apps.opmanager.credential]
            key_file = "{target.key_file}"
            key_id = "{target.key_id}"
            team_id = "{target.team_id}"
        """
        path = tmp_path / "fastpush.toml"
        path.write_text(text)
        well = await command("--config", path)
        assert well.exit_code == 0, well.output
        assert "\nopmanager\n" in well.output
        assert "\ningest\n" in well.output
        path.write_text(text.replace(target.key_id, "SHORT"))
        bad = await command("--config", path)
    assert bad.exit_code == 1
    assert "fastpush.toml:9" in bad.output
    assert max(map(len, bad.output.splitlines())) <= 80


def test_the_command_wants_one_thing():
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 2
