"""docs/opmanager.md: its template and commands give the events that it says, its tables are the code's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote_plus

import orjson
import pytest
import trio

from fastpush.gateway.alarm_book import AlarmLimits
from fastpush.gateway.alarms import RULES
from fastpush.gateway.api.opmanager import MAX_DRAINED_OCTETS, WebhookAnswer
from fastpush.gateway.banners import STYLES
from fastpush.gateway.sources.bodies import MAX_BODY_OCTETS, normalized
from fastpush.gateway.sources.opmanager import _ALIASES, OPMANAGER_NUMBERS, parse
from tests.gateway.alarm_house import alarm_house

PAGE = (Path(__file__).parent.parent.parent / "docs/opmanager.md").read_text()
TEMPLATE = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]
ANSWER = re.search(r"```json\n(\{\"status\".*?)```", PAGE, re.DOTALL)[1]
CURLS = re.findall(r"```sh\n(curl .*?)```", PAGE, re.DOTALL)
COMMANDS = [command for command in CURLS if "/v1/opmanager" in command]


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


def shell(command: str, **environment: str) -> dict:
    """What a command of the page prints, run as it stands."""
    done = subprocess.run(
        ["sh", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1)],
        env={"PATH": os.environ["PATH"]} | environment, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return orjson.loads(done.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_commands_do_what_the_page_says(tmp_path) -> None:
    """One after the other, as a reader would: an alarm that gets worse and better, is shown, and taken."""
    async with alarm_house(tmp_path) as house:
        environment = {"GATEWAY": str(house.client.base_url).rstrip("/"), "KEY": house.key}

        async def run(command: str, **more: str) -> dict:
            return await trio.to_thread.run_sync(lambda: shell(command, **environment, **more))

        answers = [await run(command) for command in COMMANDS]
        assert [answer["rule"] for answer in answers] == [
            "first.new", "lowered.rank", "lowered.rank", "escalated.rank", "clear.open",
        ]  # fmt: skip
        assert set(answers[0]) == set(orjson.loads(ANSWER))
        again = await run(COMMANDS[0])
        shown, taken = (command for command in CURLS if command not in COMMANDS)
        (alarm,) = (await run(shown))["alarms"]
        assert (alarm["id"], alarm["generation"]) == (again["id"], 2)
        taken = taken.replace('"generation":1', '"generation":2')
        assert (await run(taken, ALARM=alarm["id"]))["acknowledged_by"] == "opmanager"
        assert len(await house.pushes()) == 7


def test_the_rules_and_the_answer_s_members_are_those_of_the_code() -> None:
    rules = re.findall(r"^\| [^|]+ \| `([a-z_.]+)` \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert set(rules) == {*RULES, "acknowledged", "late"}
    assert len(rules) == len(RULES) + 2
    table = PAGE[PAGE.index("| Member | |") :].split("\n\n")[0]
    members = set(re.findall(r"`([a-z]+)`", " ".join(row.split("|")[1] for row in table.splitlines()[2:])))
    assert members | {"status"} == set(WebhookAnswer.__struct_fields__)


def test_the_limits_are_those_of_the_code() -> None:
    limits = AlarmLimits()
    kept = f"{limits.history_after / 86_400:.0f} days, and {limits.history_octets >> 20} MiB"
    assert f"Verdicts are kept for {kept}" in PAGE
    assert f"last {limits.unreadable:,} unreadable posts" in PAGE
    assert f"a body of more than {MAX_DRAINED_OCTETS >> 20} MiB" in PAGE
    assert f"between {MAX_BODY_OCTETS >> 10} KiB and" in PAGE


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
