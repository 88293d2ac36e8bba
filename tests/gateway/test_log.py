"""The log: one line for each thing that matters, and never a secret, a payload or a whole device token."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from fastpush.gateway.log import STORIES, Repeats, clean, get_logger, open_log, request_id

DEVICE_TOKEN = "4f2a" + "0123456789abcdef" * 3 + "00112233" + "9e1c"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def lines(out: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_one_object_whoever_wrote_it():
    out = io.StringIO()
    with open_log(stream=out):
        get_logger("fastpush.gateway.alarms").info("alarm judged", rule="first.new", device="sw-1")
        logging.getLogger("fastpush.pool").warning("no good connection to %s", "api.push.apple.com")
    ours, library = lines(out)
    assert list(ours)[:3] == ["time", "level", "event"]
    assert ours["event"] == "alarm judged"
    assert (ours["rule"], ours["device"], ours["logger"]) == ("first.new", "sw-1", "fastpush.gateway.alarms")
    assert library["event"] == "no good connection to api.push.apple.com"
    assert (library["level"], library["logger"]) == ("warning", "fastpush.pool")
    assert ours["time"].endswith("Z")
    assert len(ours["time"]) == len("2026-11-23T20:00:00.000Z")


def test_without_the_log_a_line_is_one_of_logging_and_clean_as_well(caplog, capfd):
    """A program that embeds the gateway, or a test of its own, sees the lines where it wants them."""
    with caplog.at_level("INFO"):
        get_logger("fastpush.gateway.a").debug("too low")
        try:
            raise ValueError("why")
        except ValueError:
            get_logger("fastpush.gateway.a").exception(
                "failed", app="opm", device_token=DEVICE_TOKEN, of=None
            )
    (record,) = caplog.records
    assert record.getMessage() == "failed app='opm' device_token='4f2a…9e1c'"
    assert (record.name, record.levelname) == ("fastpush.gateway.a", "ERROR")
    assert record.msg["app"] == "opm"
    assert "ValueError: why" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_field_without_a_value_is_left_out():
    out = io.StringIO()
    with open_log(stream=out):
        get_logger("a").info("x", reason=None, count=0)
    assert lines(out)[0].keys() == {"time", "level", "event", "count", "logger"}


def test_on_a_terminal_a_line_is_for_people(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with open_log(stream=out):
        get_logger("fastpush.gateway.alarms").info("alarm judged", rule="first.new")
    (line,) = out.getvalue().splitlines()
    assert not line.startswith("{")
    assert "\x1b" not in line
    assert "alarm judged" in line
    assert "rule=first.new" in line
    assert "[info" in line


def test_one_id_goes_through_all_lines_of_a_request():
    out = io.StringIO()
    with open_log(stream=out):
        token = request_id.set("r-17")
        get_logger("a").info("accepted")
        logging.getLogger("b").info("written")
        request_id.reset(token)
        logging.getLogger("b").info("something else")
    first, second, third = lines(out)
    assert first["request"] == second["request"] == "r-17"
    assert "request" not in third


@pytest.mark.parametrize(
    "fields",
    [
        {"device_token": DEVICE_TOKEN},
        {"note": f"for {DEVICE_TOKEN}, again"},
        {"where": f"/v1/devices/{DEVICE_TOKEN}"},
        {"several": [DEVICE_TOKEN, DEVICE_TOKEN.upper()]},
    ],
)
def test_a_device_token_is_shortened_wherever_it_stands(fields):
    out = io.StringIO()
    with open_log(stream=out):
        get_logger("a").info("x", **fields)
        logging.getLogger("b").info("x %s", fields)
    for line in out.getvalue().splitlines():
        assert DEVICE_TOKEN[8:24] not in line.lower()
        assert "4f2a…9e1c" in line.lower()


@pytest.mark.parametrize(
    "text",
    [
        "POST /v1/opmanager?token=fpk_hunter2hunter2&x=1",
        "Authorization: Bearer hunter2hunter2",
        "the key fpk_hunter2hunter2 is unknown",
        "basic hunter2hunter2==",
    ],
)
def test_keys_are_hidden_in_texts(text):
    assert "hunter2" not in clean(text)
    assert "(hidden)" in clean(text)


def test_secrets_and_payloads_are_hidden_by_their_names():
    out = io.StringIO()
    with open_log(stream=out):
        get_logger("a").info(
            "x", password="hunter2", smtp_password="hunter2", Authorization="hunter2", api_key="hunter2",
            payload=b'{"aps":{"alert":"hunter2"}}', raw="hunter2", data=b"hunter2",
        )  # fmt: skip
    assert "hunter2" not in out.getvalue()
    assert lines(out)[0]["payload"] == "(27 octets)"


def test_what_looks_like_a_device_token_and_is_none_stays():
    out = io.StringIO()
    with open_log(stream=out):
        get_logger("a").info("x", fingerprint="ab" * 32, apns_id="0" * 32)
    assert lines(out)[0]["fingerprint"] == "ab" * 32


def test_an_exception_is_told_on_one_line_and_cleaned():
    out = io.StringIO()
    with open_log(stream=out):
        try:
            raise ValueError(f"for {DEVICE_TOKEN}")
        except ValueError:
            logging.getLogger("b").exception("failed")
    (line,) = lines(out)
    assert "Traceback" in line["exception"]
    assert DEVICE_TOKEN[8:24] not in line["exception"]


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["json", "text"])
def test_hostile_text_stays_on_its_line(out, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with open_log(stream=out):
        get_logger("a").info("x", message='down\n{"level": "info"}\x1b[2J\udce9')
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def said(repeats: Repeats, kept: Kept, words: str, at: float, *values: object) -> None:
    record = logging.LogRecord("fastpush.pool", logging.WARNING, "", 0, words, values, None)
    record.created = at
    kept.handle(record)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def repeats(kept) -> Repeats:
    repeats = Repeats(kept)
    kept.addFilter(repeats)
    return repeats


def test_a_storm_of_one_fault_is_a_few_lines_and_a_count(repeats, kept):
    for n in range(10_000):
        said(repeats, kept, "lost connection %d", 100 + n / 1000, n)
    assert 10 <= len(kept.records) <= 16, "five at once, then one a second for ten seconds"
    assert [record.repeated for record in kept.records[:5]] == [0] * 5
    repeats.tell(200)
    assert len(kept.records) + sum(record.repeated for record in kept.records) - 1 == 10_000


@pytest.mark.parametrize("words", sorted(STORIES))
def test_what_repeats_nothing_is_held_back_late(repeats, kept, words):
    """A storm of alarms is where one follows the id of one; what never ends is cut all the same."""
    for n in range(500):
        said(repeats, kept, words, 100, n)
    assert len(kept.records) == 500
    for n in range(10_000):
        said(repeats, kept, words, 100 + n / 1000, n)
    assert len(kept.records) <= 500 + 10 * 50 + 1


def test_other_words_are_not_held_back_by_a_storm(repeats, kept):
    for _ in range(100):
        said(repeats, kept, "lost connection", 100)
    said(repeats, kept, "the disk is full", 100)
    assert kept.records[-1].getMessage() == "the disk is full"


def test_a_quiet_kind_begins_anew(repeats, kept):
    for _ in range(8):
        said(repeats, kept, "lost connection", 100)
    repeats.tell(111)
    assert kept.records[-1].repeated == 3
    for _ in range(8):
        said(repeats, kept, "lost connection", 120)
    assert len(kept.records) == 5 + 1 + 5


def test_a_clock_that_goes_back_holds_nothing_for_ever(repeats, kept):
    for _ in range(6):
        said(repeats, kept, "lost connection", 1000)
    said(repeats, kept, "lost connection", 10)
    said(repeats, kept, "lost connection", 12)
    assert kept.records[-1].created == 12


def test_the_filter_remembers_a_bounded_number_of_kinds(repeats, kept):
    for n in range(3 * Repeats.KINDS):
        said(repeats, kept, f"words made up {n}", 100)
    assert len(repeats._kinds) == Repeats.KINDS


def test_counts_are_told_at_the_end():
    out = io.StringIO()
    with open_log(stream=out):
        for _ in range(50):
            logging.getLogger("b").error("the disk is full")
    told = lines(out)
    assert len(told) == 6
    assert told[-1]["repeated"] == 45
    assert told[-1]["time"] <= _now(), "a line is not from the future"


def test_levels_below_cost_no_line_and_logging_is_given_back():
    out = io.StringIO()
    before = logging.getLogger().handlers[:]
    with open_log("warning", stream=out):
        get_logger("a").info("x")
        logging.getLogger("b").info("x")
    assert out.getvalue() == ""
    assert logging.getLogger().handlers == before


def test_libraries_that_tell_of_each_success_are_heard_from_warnings_up_only():
    """A log beside the watched files would be written because it was written; a URL may be a secret."""
    out = io.StringIO()
    with open_log("debug", stream=out):
        logging.getLogger("watchfiles.main").info("1 change detected")
        logging.getLogger("httpx2").info("HTTP Request: POST https://chat.example.com/hooks/s3cret")
        logging.getLogger("watchfiles.main").warning("the kernel has no watches left")
    (line,) = lines(out)
    assert line["event"] == "the kernel has no watches left"
    assert logging.getLogger("watchfiles").level == logging.NOTSET


def test_a_command_that_writes_no_line_does_not_wait_for_structlog():
    """Its import takes 50 ms, which is a fourth of `fastpush --help`."""
    found = "import sys, fastpush.cli, fastpush.gateway.serve; print('structlog' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
