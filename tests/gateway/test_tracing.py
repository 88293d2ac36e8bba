"""Traces: one span from acceptance to end, over real OTLP to a collector of the test's own."""

from __future__ import annotations

import http.server
import threading
import uuid

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fastpush.gateway.config import TracingSettings
from fastpush.gateway.dispatcher import Outcomes
from fastpush.gateway.outbox import Audience, Claimed, End, Entry, Fanout
from fastpush.gateway.tracing import open_tracing

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


async def test_a_page_of_a_fan_out_is_one_span(collector):
    endpoint, received = collector
    entry = Entry(None, b"{}", trace="request-8")
    fanout = Fanout(BATCH, "opm", Audience(), entry, NOW_MS / 1000, "", 1)
    async with open_tracing(TracingSettings(endpoint=endpoint, sample_share=1.0)) as tracer:
        tracer.heard(Outcomes("opm", [], fanout=fanout, accepted=1_000))
    (span,) = spans_of(received)
    assert span.name == "fan-out page"
    assert attributes(span)["fastpush.accepted"] == 1_000


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
