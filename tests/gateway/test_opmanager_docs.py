"""docs/opmanager.md: its template and commands give the events that it says, its tables are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from fastpush.gateway.banners import STYLES
from fastpush.gateway.sources.bodies import normalized
from fastpush.gateway.sources.opmanager import _ALIASES, OPMANAGER_NUMBERS, parse

PAGE = (Path(__file__).parent.parent.parent / "docs/opmanager.md").read_text()
TEMPLATE = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]
COMMANDS = re.findall(r"```sh\n(curl .*?)```", PAGE, re.DOTALL)


def sent(command: str) -> tuple[bytes, str]:
    """Body and content type of a curl command as curl makes them."""
    words = iter(shlex.split(command.replace("\\\n", " "))[2:])
    kind, body, fields, parts = "application/x-www-form-urlencoded", "", [], []
    for option in words:
        value = next(words)
        if option == "-H" and value.startswith("Content-Type: "):
            kind = value.removeprefix("Content-Type: ")
        elif option == "--data-raw":
            body = value
        elif option == "--data-urlencode":
            name, _, text = value.partition("=")
            fields.append(f"{name}={quote_plus(text)}")
        elif option == "-F":
            name, _, text = value.partition("=")
            parts.append(f'--b7\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n')
        else:
            assert option == "-H", option
    if parts:
        kind, body = "multipart/form-data; boundary=b7", "".join(parts) + "--b7--\r\n"
    return (body or "&".join(fields)).encode(), kind


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_posts_the_alarm_that_it_shows(command: str) -> None:
    event = parse(*sent(command))
    assert (event.source, event.alarm_id, event.entity) == ("opm1", "4092", "core-sw-01_Poll")
    assert (event.device, event.category, event.quirks) == ("core-sw-01", "Switch", ())
    assert event.message.startswith("core-sw-01: ")
    assert event.severity != "unknown"


def test_there_is_a_command_for_each_kind_of_body() -> None:
    assert len(COMMANDS) == 5
    assert {parse(*sent(command)).severity for command in COMMANDS} == {
        "critical", "trouble", "attention", "service_down", "clear",
    }  # fmt: skip


def test_the_template_has_only_names_that_are_read_and_its_message_last() -> None:
    filled = re.sub(r"\$\w+(\([^()]*\))?", "x", TEMPLATE).replace(
        '"stringseverity":"x"', '"stringseverity":"Info"'
    )
    event = parse(filled.encode())
    assert (event.severity, event.quirks, event.message) == ("info", (), "x")
    assert re.search(r'"message":"\$message"\}\s*\Z', TEMPLATE)
    assert parse(TEMPLATE.encode()).is_test


def test_the_names_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| [a-z ]+ \| ((?:`\w+`(?:, )?)+) \|$", PAGE, re.MULTILINE)
    documented = {frozenset(normalized(name) for name in re.findall(r"`(\w+)`", row)) for row in rows}
    assert documented == {frozenset(names) for names in _ALIASES.values()}


def test_the_severities_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z][\w ]+) \| (\d) \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for word, number, rest in rows:
        severity = word.lower().replace(" ", "_")
        style = STYLES[severity]
        assert OPMANAGER_NUMBERS[int(number)] == severity
        hours = f"{style.lifetime // 3600} h"
        assert rest.split(" | ") == [
            style.level, str(style.priority), style.sound or "none", str(style.relevance), hours,
        ]  # fmt: skip
