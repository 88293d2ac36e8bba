"""Traces: one span from a webhook to APNs' answer, over real OTLP to a collector of the test's own."""

from __future__ import annotations

import http.server
import threading
import time
import uuid

import httpx
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fastpush.gateway.app import _parent
from fastpush.gateway.config import TracingSettings
from fastpush.gateway.dispatcher import Outcomes
from fastpush.gateway.outbox import Audience, Claimed, End, Entry, Fanout
from fastpush.gateway.outbox.packing import pack_entries, unpack_entries
from fastpush.gateway.tracing import open_tracing
from tests.gateway.console_house import open_house

NOW_MS = 1_795_470_000_000
BATCH = NOW_MS << 20 | 7
DEVICE = "ab" * 32


@pytest.fixture
def collector():
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, body, self.headers.get("content-encoding")))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def spans_of(received):
    found = []
    for path, body, encoding in received:
        assert path == "/v1/traces"
        assert encoding is None
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert ("service.name", "fastpush") in [
                (a.key, a.value.string_value) for a in resource.resource.attributes
            ]
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return found


def attributes(span):
    return {
        one.key: one.value.int_value if one.value.HasField("int_value") else one.value.string_value
        for one in span.attributes
    }


def ended(outcome="accepted", status=200, reason=""):
    apns_id = uuid.uuid4().bytes
    entry = Entry(DEVICE, b'{"aps":{"alert":"secret words"}}', trace="request-7")
    end = End(BATCH, 0, outcome, NOW_MS / 1000 + 0.25, status, reason, 2)
    return Outcomes("opm", [end], claims=[Claimed(BATCH, 0, apns_id, entry)]), str(uuid.UUID(bytes=apns_id))


async def test_a_push_is_one_span_from_acceptance_to_its_end(collector):
    endpoint, received = collector
    good, apns_id = ended()
    bad, _ = ended("rejected", 410, "Unregistered")
    async with open_tracing(TracingSettings(endpoint=endpoint, sample_share=1.0)) as tracer:
        tracer.heard(good)
        tracer.heard(bad)
    accepted, rejected = spans_of(received)
    assert accepted.start_time_unix_nano == NOW_MS * 1_000_000
    assert accepted.end_time_unix_nano - accepted.start_time_unix_nano == pytest.approx(0.25e9, rel=1e-3)
    told = attributes(accepted)
    assert told["fastpush.apns_id"] == apns_id
    assert told["fastpush.request"] == "request-7"
    assert told["http.response.status_code"] == 200
    assert told["fastpush.attempts"] == 2
    assert rejected.status.code == 2
    assert attributes(rejected)["fastpush.reason"] == "Unregistered"


async def test_neither_payload_nor_device_token_leaves(collector):
    endpoint, received = collector
    async with open_tracing(TracingSettings(endpoint=endpoint, sample_share=1.0)) as tracer:
        tracer.heard(ended()[0])
    (_, body, _) = received[0]
    assert b"secret words" not in body
    assert DEVICE.encode() not in body


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BEFORE = (NOW_MS - 40) * 1_000_000


async def test_a_span_begins_when_the_request_came_below_the_senders(collector):
    endpoint, received = collector
    outcomes, _ = ended()
    outcomes.claims[0].entry.origin = f"{BEFORE} {PARENT} op manager 1"
    async with open_tracing(TracingSettings(endpoint=endpoint, sample_share=0.0)) as tracer:
        tracer.heard(outcomes)
    (span,) = spans_of(received)
    assert span.start_time_unix_nano == BEFORE
    assert span.trace_id.hex() == PARENT[3:35]
    assert span.parent_span_id.hex() == PARENT[36:52]
    assert attributes(span)["fastpush.source"] == "op manager 1"
    assert attributes(span)["fastpush.batch"] == str(BATCH)
    (event,) = span.events
    assert event.time_unix_nano == NOW_MS * 1_000_000


async def test_who_does_not_record_its_span_gets_none_from_here(collector):
    endpoint, received = collector
    outcomes, _ = ended()
    outcomes.claims[0].entry.origin = f"{BEFORE} {PARENT[:-1]}0 opm"
    async with open_tracing(TracingSettings(endpoint=endpoint, sample_share=1.0)) as tracer:
        tracer.heard(outcomes)
    assert spans_of(received) == []


async def test_a_fan_out_is_one_span_that_ends_with_the_last_device(collector):
    """Two pages, and one phone that was to be tried again: nothing is told before its answer is there."""
    endpoint, received = collector
    entry = Entry(None, b"{}", trace="alarm-8", origin=f"{BEFORE} - opm")
    fanout = Fanout(BATCH, "opm", Audience(), entry, NOW_MS / 1000, "", 1)
    walking = {BATCH: fanout}
    settings = TracingSettings(endpoint=endpoint, sample_share=1.0)
    late = NOW_MS / 1000 + 7
    async with open_tracing(settings, lambda: walking, lambda: NOW_MS / 1000 + 1) as tracer:
        gone = End(BATCH, -1, "rejected", NOW_MS / 1000 + 0.5, 410, "Unregistered", 1, DEVICE)
        fanout.accepted, fanout.ended = 1_000, 1
        tracer.heard(Outcomes("opm", [gone], fanout=fanout, accepted=1_000))
        fanout.accepted += 500
        tracer.heard(Outcomes("opm", [], fanout=fanout, accepted=500))
        del walking[BATCH]
        fanout.accepted += 1
        end = End(BATCH, -1, "accepted", late, 200, "", 2, "cd" * 32)
        claim = Claimed(BATCH, -1, fanout.apns_id("cd" * 32), entry, 1)
        tracer.heard(Outcomes("opm", [end], claims=[claim]))
    (span,) = spans_of(received)
    assert span.name == "fan-out"
    assert span.start_time_unix_nano == BEFORE
    assert span.end_time_unix_nano == round(late * 1e9)
    told = attributes(span)
    assert (told["fastpush.accepted"], told["fastpush.not_accepted"]) == (1_501, 1)
    assert told["fastpush.outcome"] == "partly accepted"
    assert told["fastpush.reason"] == "Unregistered"
    _, *answers = span.events
    assert [attributes(one)["fastpush.outcome"] for one in answers] == ["rejected", "accepted"]
    assert attributes(answers[0])["fastpush.apns_id"] == str(uuid.UUID(bytes=fanout.apns_id(DEVICE)))
    assert DEVICE.encode() not in received[0][1]


async def test_what_is_known_of_the_request_survives_on_disk():
    entries = [Entry(DEVICE, b"{}", origin=f"{BEFORE} {PARENT} opm") for _ in range(3)]
    head, payloads = pack_entries(entries)
    assert unpack_entries(head, payloads, 3) == entries
    plain = [Entry(DEVICE, b"{}") for _ in range(3)]
    head, payloads = pack_entries(plain)
    assert unpack_entries(head, payloads, 3) == plain
    assert len(msgspec.msgpack.decode(head)) == len(Entry.__struct_fields__) - 1, (
        "nobody traces, nothing is kept"
    )


async def test_from_a_webhook_to_apns_answer(collector, tmp_path):
    endpoint, received = collector
    variables = {"FASTPUSH_TRACING__ENDPOINT": endpoint, "FASTPUSH_TRACING__SAMPLE_SHARE": "0"}
    async with open_house(tmp_path, phones=2, variables=variables) as house:
        sent_at = time.time_ns()
        async with httpx.AsyncClient(headers={"traceparent": PARENT}) as client:
            await client.post(
                f"{house.ingest}/v1/opmanager",
                params={"token": house.keys["alice"], "source": "north"},
                json={"entity": "a", "displayName": "a", "stringseverity": "Critical", "category": "Switch"},
            )
        await house.settled()
        ids = {str(one.apns_id) for one in house.simulator.ledger.seen}
    (span,) = spans_of(received)
    assert span.parent_span_id.hex() == PARENT[36:52]
    assert sent_at <= span.start_time_unix_nano <= span.end_time_unix_nano
    told = attributes(span)
    assert (told["fastpush.app"], told["fastpush.source"], told["fastpush.accepted"]) == ("opm", "north", 2)
    stored, *answers = span.events
    assert span.start_time_unix_nano <= stored.time_unix_nano + 1_000_000
    assert {attributes(one)["fastpush.apns_id"] for one in answers} == ids
    assert max(one.time_unix_nano for one in answers) == span.end_time_unix_nano


async def test_without_a_collector_nothing_is_kept_of_a_request(tmp_path):
    async with open_house(tmp_path, phones=1) as house:
        await house.gateway.outbox.pause("opm")
        await house.critical()
        (fanout,) = house.gateway.outbox.walking().values()
        assert fanout.entry.origin is None


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (PARENT, PARENT), (f"01{PARENT[2:]}-more", f"01{PARENT[2:]}"), ("ff" + PARENT[2:], ""),
        (PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), ""), (PARENT.upper(), ""), ("x", ""),
    ],
)  # fmt: skip
def test_a_parent_is_taken_as_w3c_has_it(header, taken):
    assert _parent({"headers": [(b"traceparent", header.encode())]}) == taken
    assert _parent({"headers": [(b"traceparent", header.encode())] * 2}) == ""


async def test_a_share_is_chosen_by_the_batch(collector):
    endpoint, _ = collector
    async with open_tracing(TracingSettings(endpoint=endpoint, sample_share=0.1)) as tracer:
        traced = [batch for batch in range(BATCH, BATCH + 10_000) if tracer.is_traced(batch)]
        assert 900 < len(traced) < 1_100
        assert traced == [batch for batch in range(BATCH, BATCH + 10_000) if tracer.is_traced(batch)]


async def test_without_a_collector_there_is_no_tracer():
    async with open_tracing(TracingSettings()) as tracer:
        assert tracer is None


async def test_a_collector_that_is_gone_holds_nobody_up():
    settings = TracingSettings(endpoint="http://127.0.0.1:9", sample_share=1.0)
    async with open_tracing(settings) as tracer:
        tracer.heard(ended()[0])
