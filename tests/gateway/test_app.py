"""The dispatch: which route gets a request, and how a refusal looks."""

from __future__ import annotations

import logging

import msgspec
import pytest
from starlette.responses import Response
from starlette.routing import Route

from fastpush.gateway.api import HotRoute, decode, json_response, read_body
from fastpush.gateway.app import Application
from fastpush.gateway.counters import Counters
from fastpush.gateway.outbox import IdempotencyConflict, OutboxBusy
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import StorageFull, StorageUnknown
from tests.gateway.asgi import ask


class Size(msgspec.Struct, forbid_unknown_fields=True):
    width: int
    name: str = ""


class Box(msgspec.Struct, forbid_unknown_fields=True):
    sizes: list[Size]


def application(handler):
    """`handler` at GET /v1/things/{id} and POST /v1/things, and a hot route at POST /v1/hot."""

    async def hot(scope, receive, send):
        body = await read_body(receive, 10)
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": body[::-1]})

    routes = [
        Route("/v1/things/{id}", handler, methods=["GET"]),
        Route("/v1/things/{id}", handler, methods=["DELETE"]),
    ]
    counters = Counters()
    hot_routes = [HotRoute("POST", "/v1/hot", hot)]
    return Application(routes, hot_routes, counters.answers, counters.answer_seconds), counters


async def show(request):
    return json_response({"id": request.path_params["id"]})


async def test_a_route_gets_its_parameters_and_its_answers_are_counted():
    app, counters = application(show)
    answer = await ask(app, "GET", "/v1/things/7")
    assert (answer.status, answer.json) == (200, {"id": "7"})
    assert answer.headers["content-type"] == "application/json"
    assert (await ask(app, "POST", "/v1/hot", body=b"abc")).body == b"cba"
    assert counters.answers == {("/v1/things/{id}", 200): 1, ("/v1/hot", 202): 1}


async def test_an_unknown_path_is_404_as_a_problem():
    app, counters = application(show)
    answer = await ask(app, "GET", "/v2/things")
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "There is no such path.",
    }
    assert counters.answers == {("", 404): 1}


async def test_a_method_that_is_not_there_is_told_all_that_are():
    app, _ = application(show)
    answer = await ask(app, "PUT", "/v1/things/7")
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")
    answer = await ask(app, "GET", "/v1/hot")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_each_answer_has_an_id_and_a_sane_one_of_the_sender_is_kept():
    app, _ = application(show)
    first, second = [(await ask(app, "GET", "/v1/things/7")).headers["x-request-id"] for _ in range(2)]
    assert first != second
    for sent, kept in [("abc-7", True), ("a" * 65, False), ("a b", False), ("", False)]:
        answer = await ask(app, "GET", "/nowhere", headers={"X-Request-Id": sent})
        assert (answer.headers["x-request-id"] == sent) is kept


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (Problem(418, "teapot", field="cup", colour="red"), 418, {"field": "cup", "colour": "red"}),
        (StorageFull("path"), 507, {"stored": False}),
        (StorageUnknown("path"), 503, {"stored": "unknown"}),
        (OutboxBusy("too much waits", 30.0), 503, {"stored": False}),
        (IdempotencyConflict("used"), 409, {"stored": False, "field": "Idempotency-Key"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_what_the_layers_below_raise_becomes_a_problem(error, status, members):
    async def fail(request):
        raise error

    app, _ = application(fail)
    answer = await ask(app, "GET", "/v1/things/7")
    assert answer.status == status == answer.json["status"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert members.items() <= answer.json.items()
    if status in (503, 507):
        assert 1 <= int(answer.headers["retry-after"]) <= 36
    assert "path" not in answer.json.get("detail", "")


async def test_a_failure_tells_the_client_its_id_and_the_log_the_rest(caplog):
    async def fail(request):
        raise ZeroDivisionError("secret")

    app, counters = application(fail)
    with caplog.at_level(logging.ERROR):
        answer = await ask(app, "GET", "/v1/things/7", headers={"X-Request-Id": "r-1"})
    assert answer.status == 500
    assert "r-1" in answer.json.get("detail", "")
    assert "secret" not in answer.body.decode()
    (told,) = [record.msg for record in caplog.records]
    assert (told["event"], told["request"], told["route"]) == ("a request failed", "r-1", "/v1/things/{id}")
    assert counters.answers == {("/v1/things/{id}", 500): 1}


async def test_a_body_that_is_too_large_or_cut_off():
    app, counters = application(show)
    assert (await ask(app, "POST", "/v1/hot", body=b"12345678901")).status == 413
    assert await ask(app, "POST", "/v1/hot", body=b"123", cut=True) is None
    assert counters.answers == {("/v1/hot", 413): 1}


async def test_a_value_of_the_wrong_type_is_422_with_its_field():
    for body, field in [
        (b'{"sizes": [{"width": 1}, {"width": "x"}]}', "sizes[1].width"),
        (b'{"sizes": [{"width": 1, "depth": 2}]}', "sizes[0].depth"),
        (b"{}", "sizes"),
    ]:
        with pytest.raises(Problem) as raised:
            decode(body, Box)
        assert (raised.value.status, raised.value.field) == (422, field)
    with pytest.raises(Problem) as raised:
        decode(b'{"width": "x"}', Size, at="notifications[3]")
    assert raised.value.field == "notifications[3].width"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"sizes": \xff}', b'{"sizes":' + b"[" * 100_000])
async def test_what_is_no_json_is_400(body):
    with pytest.raises(Problem) as raised:
        decode(body, Box)
    assert raised.value.status in (400, 422)


async def test_an_answer_without_a_body():
    async def done(request):
        return Response(status_code=204)

    app, _ = application(done)
    answer = await ask(app, "DELETE", "/v1/things/7")
    assert (answer.status, answer.body) == (204, b"")
