"""What one key may send does not depend on what others send."""

from __future__ import annotations

import json

import pytest
import trio

from fastpush.gateway.app import ingest_app
from fastpush.gateway.problems import Problem
from fastpush.gateway.quotas import Quotas
from tests.gateway.asgi import ask
from tests.gateway.gateways import Keys, Known, open_gateway


def test_a_key_that_was_quiet_has_ten_seconds_worth():
    now = 1_000.0
    quotas = Quotas(5, clock=lambda: now)
    quotas.check("a")
    assert quotas.charge("a", 50) == 0
    quotas.check("a")
    assert quotas.charge("a", 5) == 1
    with pytest.raises(Problem) as raised:
        quotas.check("a")
    assert (raised.value.status, raised.value.headers) == (429, {"Retry-After": "1"})
    quotas.check("b")
    now += 1
    quotas.check("a")


def test_a_batch_larger_than_the_quota_is_taken_and_paid_for_later():
    now = 0.0
    quotas = Quotas(5, clock=lambda: now)
    assert quotas.charge("a", 1_050) == 200
    with pytest.raises(Problem) as raised:
        quotas.check("a")
    assert raised.value.headers == {"Retry-After": "200"}
    now += 200
    quotas.check("a")


def test_without_a_quota_nothing_is_kept():
    quotas = Quotas(clock=lambda: 0.0)
    assert quotas.charge("a", 10**9) == 0
    quotas.check("a")
    assert not quotas._paid_at


def test_keys_that_have_paid_are_forgotten():
    now = 0.0
    quotas = Quotas(1, clock=lambda: now)
    for number in range(10_000):
        quotas.charge(str(number), 1)
    now += 2
    quotas.charge("new", 1)
    assert list(quotas._paid_at) == ["new"]


async def test_a_key_over_its_quota_is_429_and_others_go_on(tmp_path):
    keys = Keys(a=Known(key_id="a"), b=Known(key_id="b"))
    async with open_gateway(tmp_path, keys=keys, quotas=Quotas(1)) as gateway:
        app = ingest_app(gateway)

        async def post(count, key, **more):
            body = json.dumps([{"device_token": "aa11", "alert": "a"}] * count).encode()
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **more}
            return await ask(app, "POST", "/v1/notifications", body=body, headers=headers)

        for _ in range(5):  # a repetition costs nothing
            assert (await post(9, "a", **{"Idempotency-Key": "k"})).status == 202
        assert (await post(9, "a")).status == 202
        answer = await post(1, "a")
        assert (answer.status, answer.json["stored"]) == (429, False)
        assert 1 <= int(answer.headers["retry-after"]) <= 8
        assert (await post(1, "b")).status == 202


async def test_an_upload_over_the_quota_is_read_more_slowly(tmp_path):
    """And not refused in the middle: 24,000 at 2,000 a second, less ten seconds' worth and the last chunk."""
    async with open_gateway(tmp_path, quotas=Quotas(2_000)) as gateway:
        began = trio.current_time()
        read = 0

        async def receive():
            nonlocal read
            await trio.lowlevel.checkpoint()
            read += 1
            body = b'{"device_token":"aa11","alert":"a"}\n' * 1_000
            return {"type": "http.request", "body": body, "more_body": read < 24}

        answer = []

        async def send(message):
            answer.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/notifications", "query_string": b"",
            "headers": [(b"content-type", b"application/x-ndjson")], "state": {}, "client": None,
        }  # fmt: skip
        await ingest_app(gateway)(scope, receive, send)
        assert answer[0]["status"] == 202
        assert 0.9 < trio.current_time() - began < 10
