"""What a sender sees of a healthy APNs: TLS, SETTINGS, answers, windows. Over real TLS on loopback."""

import ssl
import uuid
import warnings

import httpx
import pytest
import trio
from hyperframe.frame import PingFrame, SettingsFrame, WindowUpdateFrame

from fastpush.simulator import open_simulator

from .wire import DEVICE_TOKEN, PAYLOAD, authorization, client_context, open_wire


async def test_the_first_settings_are_those_in_every_log_of_apns(simulator, key):
    async with open_wire(simulator, key) as wire:
        assert dict(wire.all(SettingsFrame)[0].settings) == {1: 4096, 3: 1, 4: 65_535, 5: 16_384, 6: 8_000}


async def test_one_stream_until_the_first_good_request_and_a_thousand_after_it(simulator, key):
    async with open_wire(simulator, key) as wire:
        refused = await wire.push(apns_topic="com.example.other")
        await wire.settle()
        assert (refused.status, refused.reason, wire.stream_limits) == (400, "TopicDisallowed", [1])
        assert (await wire.push()).status == 200
        await wire.settle()
        assert wire.stream_limits == [1, 1_000]


async def test_streams_over_the_limit_are_refused_and_not_processed(simulator, key):
    async with open_wire(simulator, key) as wire:
        first, one = wire.request_frames()
        second, two = wire.request_frames()
        await wire.stream.send_all(one + two)
        assert (await wire.answer(first)).status == 200
        assert (await wire.answer(second)).error_code == 7
    assert simulator.ledger.counts["accepted"] == 1
    assert simulator.ledger.counts["refused"] == 1


async def test_a_certificate_gets_the_full_limit_at_once(simulator, tmp_path):
    certificate = simulator.issue_provider_certificate()
    async with open_wire(simulator, certificate=certificate, directory=tmp_path) as wire:
        assert wire.stream_limits == [1_000]
        assert (await wire.push()).status == 200


async def test_an_apns_id_is_echoed_and_one_is_made_where_there_is_none(simulator, key):
    async with open_wire(simulator, key, warm=True) as wire:
        mine = str(uuid.uuid4())
        assert (await wire.push(apns_id=mine)).fields == {b":status": b"200", b"apns-id": mine.encode()}
        made = (await wire.push(apns_id=None)).fields[b"apns-id"].decode()
        assert str(uuid.UUID(made)) == made
        assert uuid.UUID(made).version == 4
    assert [seen.apns_id for seen in simulator.ledger.seen][1:] == [mine, made]


async def test_only_development_answers_with_a_unique_id():
    async with (
        open_simulator(environment="development") as simulator,
        open_wire(simulator, simulator.signing_key()) as wire,
    ):
        first, second = await wire.push(), await wire.push()
        assert first.fields[b"apns-unique-id"] != second.fields[b"apns-unique-id"]


async def test_about_32_kilobytes_of_window_are_given_back_at_a_time(simulator, key):
    body = b'{"aps":{},"pad":"' + b"x" * 4_000 + b'"}'
    async with open_wire(simulator, key, warm=True) as wire:
        for _ in range(30):
            assert (await wire.push(body=body)).status == 200
        given = [frame.window_increment for frame in wire.all(WindowUpdateFrame)]
        assert len(given) == 3
        assert all(32_768 <= octets < 32_768 + 4_096 for octets in given)


async def test_a_ping_is_answered_with_its_octets(simulator, key):
    async with open_wire(simulator, key) as wire:
        await wire.ping(b"whatever")
        await wire.until(lambda: wire.all(PingFrame))
        assert (wire.all(PingFrame)[0].opaque_data, wire.all(PingFrame)[0].flags) == (b"whatever", {"ACK"})


async def test_a_client_without_alpn_is_served_by_prior_knowledge(simulator, key):
    async with open_wire(simulator, key, alpn=False) as wire:
        assert (await wire.push()).status == 200


async def test_tls_1_2_is_enough_and_1_1_is_not(simulator, key):
    context = client_context(simulator)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with open_wire(simulator, key, context=context) as wire:
        assert (await wire.push()).status == 200
    offered = client_context(simulator)
    offered.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        offered.minimum_version = offered.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(trio.BrokenResourceError):
        async with open_wire(simulator, key, context=offered):
            pass


async def test_a_client_of_http_1_gets_no_connection(simulator):
    context = client_context(simulator, alpn=False)
    context.set_alpn_protocols(["http/1.1"])
    async with httpx.AsyncClient(verify=context) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(f"https://localhost:{simulator.port}/")


async def test_the_ca_is_needed(simulator):
    async with httpx.AsyncClient(http2=True, verify=ssl.create_default_context()) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"https://localhost:{simulator.port}/")


async def test_httpx_is_served(simulator, key):
    async with httpx.AsyncClient(http1=False, http2=True, verify=client_context(simulator)) as client:
        for number in range(3):
            response = await client.post(
                f"https://localhost:{simulator.port}/3/device/{DEVICE_TOKEN}",
                headers={"authorization": authorization(key), "apns-topic": "com.example.app"},
                content=PAYLOAD,
            )
            assert response.status_code == 200, number


async def test_the_ca_file_goes_with_the_simulator():
    async with open_simulator() as simulator:
        assert simulator.ca_file.read_bytes() == simulator.ca_pem
    assert not simulator.ca_file.exists()


async def test_an_error_in_the_block_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with open_simulator():
            raise KeyError("mine")


async def test_leaving_the_block_closes_the_connections():
    async with open_simulator() as simulator, open_wire(simulator, simulator.signing_key()) as wire:
        await wire.push()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.to_end)
            await trio.testing.wait_all_tasks_blocked()
            simulator.close_connections()
        assert wire.eof
