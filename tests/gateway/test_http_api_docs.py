"""docs/http-api.md: every route is in it, and its examples work when they are pasted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.gateways import running_gateway

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "http-api.md").read_text()
DOCUMENT = json.loads((DOCS / "openapi.json").read_text())


def test_every_route_is_on_the_page():
    named = set(re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)`", PAGE))
    there = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert named == there


def test_every_field_of_a_notification_is_on_the_page():
    fields = DOCUMENT["components"]["schemas"]["NotificationBody"]["properties"]
    assert [name for name in fields if f"`{name}`" not in PAGE] == []


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed")
def test_the_examples_work_as_they_stand(tmp_path):
    """Each block in a shell; curl fails on any status that is no success."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    with running_gateway(tmp_path, app="opmanager") as running:
        exports = (
            "set -euo pipefail\n"
            'curl() { command curl --fail-with-body "$@"; }\n'
            f"export GATEWAY={running['ingest']} ADMIN={running['admin']}"
            f" KEY={running['key']}\n"
        )
        for block in blocks[1:]:
            done = subprocess.run(
                ["bash", "-c", exports + block], capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert running["gateway"].outbox.waiting()["opmanager"].count == 0, "purged at the end"
