"""The OpenAPI document: complete, current, and true of a running gateway.

schemathesis makes requests of it, good ones and broken ones, and holds the answers against it.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.routing import Route

from fastpush.gateway import app as gateway_app
from fastpush.gateway import openapi
from fastpush.gateway.api import HotRoute
from tests.gateway.asgi import ask
from tests.gateway.gateways import open_gateway, running_gateway

CHECKED_IN = Path(__file__).resolve().parents[2] / "docs/openapi.json"
DOCUMENT = openapi.document(gateway_app.INGEST, gateway_app.ADMIN)
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]

CASES = int(os.environ.get("FASTPUSH_CASES") or 2_000)
SEED = int(os.environ.get("FASTPUSH_SEED") or random.SystemRandom().getrandbits(32))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]
LENIENT = {"/v1/opmanager"}
"""Take whatever comes, as a webhook that is sent once must."""


def test_the_document_that_is_checked_in_is_current():
    """`python -m fastpush.gateway.openapi > docs/openapi.json` makes it."""
    assert CHECKED_IN.read_bytes() == openapi.text(DOCUMENT)


async def test_the_admin_listener_serves_it(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        answer = await ask(gateway_app.admin_app(gateway), "GET", "/openapi.json")
        assert answer.body == openapi.text(DOCUMENT)
        assert (await ask(gateway_app.ingest_app(gateway), "GET", "/openapi.json")).status == 404


async def test_every_route_of_both_listeners_is_in_it(tmp_path):
    """And nothing else: who is not described is not found, and what is described is there."""
    described = {(method.upper(), path) for path, method, _ in OPERATIONS}
    async with open_gateway(tmp_path) as gateway:
        there = set()
        for application in (gateway_app.ingest_app(gateway), gateway_app.admin_app(gateway)):
            for path, methods in application._hot.items():
                there |= {(method, path) for method in methods}
            for route in application._routes:
                if isinstance(route, Route) and route.include_in_schema:
                    there |= {(method, route.path_format) for method in (route.methods or set()) - {"HEAD"}}
    assert there == described


def test_names_of_operations_are_unique():
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)


def test_a_route_that_is_not_described_is_told():
    class Module:
        @staticmethod
        def hot_routes(gateway):
            async def app(scope, receive, send): ...

            return [HotRoute("POST", "/v1/secret", app)]

    with pytest.raises(TypeError, match="/v1/secret"):
        openapi.document([Module], [])


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def made():
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    return [result.ok() for result in schema.get_all_operations()]


# The gateway's thread draws random numbers while a case is made, and Hypothesis takes them for the case's.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.slow
@pytest.mark.parametrize("operation", made(), ids=lambda operation: operation.label)
def test_a_running_gateway_is_as_the_document_says(running, operation):
    """No 5xx, no answer that is not in the document, no broken request that is taken."""
    print(f"FASTPUSH_SEED={SEED}")
    checks = [
        check for check in CHECKS if check is not negative_data_rejection or operation.path not in LENIENT
    ]
    if operation.body or any(operation.iter_parameters()):
        modes = list(schemathesis.GenerationMode)
    else:
        modes = [schemathesis.GenerationMode.POSITIVE]  # there is nothing to break
    admin = operation.definition.raw.get("x-listener") == "admin"
    headers = {"Authorization": f"Bearer {running['key']}"}

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=max(1, CASES // len(OPERATIONS) // 2),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(data=hypothesis.strategies.data())
    def each(data):
        case = data.draw(strategy)
        case.call_and_validate(
            base_url=running["admin" if admin else "ingest"], headers=headers, checks=checks, timeout=20
        )

    for mode in modes:
        strategy = operation.as_strategy(generation_mode=mode)
        each()
