"""How a bad provider certificate shows on the wire (pushy 609, apns2 93 and 117, apns-http2 9)."""

import time

import httpx
import trio

from fastpush.simulator import open_simulator

from .wire import DEVICE_TOKEN, PAYLOAD, open_wire


async def refused(simulator, certificate, directory):
    """The name of the alert that a client with this certificate gets, after a handshake good on its side."""
    async with open_wire(simulator, certificate=certificate, directory=directory) as wire:
        await wire.to_end()
        assert not wire.frames
        return wire.eof.__cause__.reason


async def test_an_expired_one_gets_alert_45_after_the_handshake(simulator, tmp_path):
    now = time.time()
    expired = simulator.issue_provider_certificate(valid_from=now - 400 * 86_400, valid_until=now - 86_400)
    assert await refused(simulator, expired, tmp_path) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    assert simulator.statistics().handshakes_failed == 1


async def test_a_revoked_one_gets_alert_44_and_others_go_on(simulator, tmp_path):
    good, bad, worse = (simulator.issue_provider_certificate() for _ in range(3))
    simulator.revoke_certificate(bad)
    assert await refused(simulator, bad, tmp_path) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    simulator.revoke_certificate(worse)
    assert await refused(simulator, worse, tmp_path) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    assert await refused(simulator, bad, tmp_path) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    async with open_wire(simulator, certificate=good, directory=tmp_path) as wire:
        assert (await wire.push()).status == 200
    async with open_wire(simulator, simulator.signing_key()) as wire:
        assert (await wire.push()).status == 200


async def test_one_of_another_authority_is_unknown(simulator, tmp_path):
    async with open_simulator() as other:
        certificate = other.issue_provider_certificate()
    assert await refused(simulator, certificate, tmp_path) == "TLSV1_ALERT_UNKNOWN_CA"


async def test_one_of_the_other_environment_gets_a_goaway(simulator, tmp_path):
    certificate = simulator.issue_provider_certificate(environments=("development",))
    async with open_wire(simulator, certificate=certificate, directory=tmp_path) as wire:
        await wire.to_end()
        goaway = wire.goaways[0]
        assert (goaway.last_stream_id, goaway.error_code) == (0, 0)
        assert goaway.additional_data == b'{"reason":"BadCertificateEnvironment"}'


async def test_one_that_runs_out_on_an_open_connection_gets_a_goaway(mock_clock, tmp_path):
    start = time.time()
    async with open_simulator(clock=lambda: start + trio.current_time()) as simulator:
        opened = trio.current_time()
        certificate = simulator.issue_provider_certificate(valid_until=start + opened + 100)
        async with open_wire(simulator, certificate=certificate, directory=tmp_path) as wire:
            assert (await wire.push()).status == 200
            mock_clock.jump(101)
            await wire.to_end()
            assert wire.goaways[0].additional_data == b'{"reason":"Shutdown"}'


async def test_topics_are_those_of_the_certificate_and_a_single_one_is_the_default(simulator, tmp_path):
    one = simulator.issue_provider_certificate("com.example.single", topics=())
    async with open_wire(simulator, certificate=one, directory=tmp_path) as wire:
        assert (await wire.push(apns_topic=None)).status == 200
        assert (await wire.push()).reason == "TopicDisallowed"
    many = simulator.issue_provider_certificate()
    async with open_wire(simulator, certificate=many, directory=tmp_path) as wire:
        assert (await wire.push(apns_topic=None)).reason == "MissingTopic"
        assert (await wire.push(apns_topic="com.example.app.voip", apns_push_type="voip")).status == 200


async def test_a_loaded_one_serves_a_client(simulator):
    certificate = simulator.provider_certificate()
    context = certificate.ssl_context(ca_file=simulator.ca_file)
    async with httpx.AsyncClient(http1=False, http2=True, verify=context) as client:
        response = await client.post(
            f"https://localhost:{simulator.port}/3/device/{DEVICE_TOKEN}",
            headers={"apns-topic": "com.example.app"},
            content=PAYLOAD,
        )
        assert response.status_code == 200
