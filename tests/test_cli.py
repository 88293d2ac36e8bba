"""The command line as a person and a script meet it: processes, files, exit codes, and what is printed."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastpush.cli import main
from fastpush.cli.lines import MAX_LINE_OCTETS, BadLine, Splitter, parse_line

FASTPUSH = [sys.executable, "-m", "fastpush"]
ROOT = Path(__file__).resolve().parent.parent
ALARMS = ROOT / "examples" / "alarms.ndjson"
DEVICE_TOKEN = "a1" * 32
PATIENCE = 60.0

# Nothing of the caller's own settings may reach the commands; a checkout that is not installed will do.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("FASTPUSH_")}
for name in ("NO_COLOR", "FORCE_COLOR"):
    ENVIRONMENT.pop(name, None)
ENVIRONMENT["PYTHONPATH"] = str(ROOT)


class Simulate:
    """A `fastpush simulate` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*FASTPUSH, "simulate", "--port", "0", "--json", "--print-credentials", folder, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.where: dict[str, Any] = json.loads(self.process.stdout.readline())

    def reached(self, topic: str = "com.example.app") -> list[str]:
        """The options that send to it."""
        where = self.where
        return [
            "--key", where["key_file"], "--team-id", where["team_id"], "--ca-file", where["ca_file"],
            "--host", where["host"], "--port", str(where["port"]), "--topic", topic,
        ]  # fmt: skip

    def end(self) -> tuple[int, str]:
        """Ctrl-C; gives the exit code and the last words."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def apns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulate]:
    """One simulator for all tests that need no faults."""
    simulator = Simulate(tmp_path_factory.mktemp("apns"))
    yield simulator
    simulator.end()


def fastpush(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*FASTPUSH, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        env=ENVIRONMENT | environment,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def line(device_token: str = DEVICE_TOKEN, **fields: Any) -> bytes:
    return (
        json.dumps({"device_token": device_token, "payload": {"aps": {"alert": "hi"}}} | fields).encode()
        + b"\n"
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(record) for record in path.read_text().splitlines()]


# One notification.


def test_one_push_says_what_became_of_it_and_shortens_the_device_token(apns: Simulate) -> None:
    done = fastpush("send", *apns.reached(), "--title", "Core switch down", "--badge", 7, DEVICE_TOKEN)
    assert (done.returncode, done.stderr[:9]) == (0, "a1a1…a1a1")
    assert re.search(r"accepted, apns-id [0-9a-f-]{36}$", done.stderr.strip())
    assert re.search(r"^ +1  accepted$", done.stdout, re.MULTILINE)
    assert DEVICE_TOKEN not in done.stdout + done.stderr


def test_a_rejection_is_exit_code_1_with_reason_and_cure(tmp_path: Path) -> None:
    apns = Simulate(tmp_path, "--topic", "com.example.app")
    done = fastpush("send", *apns.reached("com.example.other"), "--title", "x", DEVICE_TOKEN)
    assert done.returncode == 1
    assert "rejected: 400" in done.stderr
    assert "--topic" in done.stderr
    apns.end()


def test_a_certificate_with_its_password_from_a_file_sends_too(apns: Simulate, tmp_path: Path) -> None:
    reached = apns.reached()[4:]
    done = fastpush(
        "send", "--certificate", apns.where["certificate_file"], *reached, "--body", "x", DEVICE_TOKEN
    )
    assert (done.returncode, done.stderr[-80:]) == (0, done.stderr[-80:])


def test_options_may_come_from_the_environment(apns: Simulate) -> None:
    where = apns.where
    done = fastpush(
        "send", "--body", "x", "--json", DEVICE_TOKEN,
        FASTPUSH_KEY=where["key_file"], FASTPUSH_TEAM_ID=where["team_id"], FASTPUSH_CA_FILE=where["ca_file"],
        FASTPUSH_HOST=where["host"], FASTPUSH_PORT=str(where["port"]), FASTPUSH_TOPIC="com.example.app",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == 1


def test_json_is_one_object_with_every_outcome(apns: Simulate) -> None:
    done = fastpush("send", *apns.reached(), "--body", "x", "--json", DEVICE_TOKEN, "b2" * 32)
    assert done.stdout.count("\n") == 1
    summary = json.loads(done.stdout)
    assert summary["notifications"] == summary["accepted"] == 2
    assert (summary["rejected"], summary["expired"], summary["not_sent"], summary["unknown"]) == (0, 0, 0, 0)
    assert (summary["interrupted"], summary["reasons"]) == (False, [])


# Files.


def test_a_file_is_sent_whole_and_each_line_has_its_result(apns: Simulate, tmp_path: Path) -> None:
    results = tmp_path / "results.ndjson"
    done = fastpush("send", *apns.reached(), "--from", ALARMS, "--results", results)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^10,000 notifications in [\d.]+ s", done.stdout)
    assert re.search(r"^ +10,000  accepted$", done.stdout, re.MULTILINE)
    records = read(results)
    assert sorted(record["line"] for record in records) == list(range(1, 10_001))
    assert len({record["apns_id"] for record in records}) == 10_000
    assert {(record["outcome"], record["status"], record["reason"]) for record in records} == {
        ("accepted", 200, None)
    }


def test_standard_input_is_read_as_it_comes(apns: Simulate) -> None:
    """A pipe that stays open does not keep what came through it from being sent."""
    with subprocess.Popen(
        [*FASTPUSH, "send", *apns.reached(), "--from", "-", "--results", "/dev/stdout", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        process.stdin.write(line() + line("b2" * 32)[:-1])  # the last line needs no line feed
        process.stdin.close()
        written = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert sorted(json.loads(record)["line"] for record in written[:2]) == [1, 2]
    assert json.loads(written[2])["lines"] == 2


def test_bad_lines_are_told_with_their_number_and_stop_no_other(apns: Simulate, tmp_path: Path) -> None:
    source, results = tmp_path / "some.ndjson", tmp_path / "results.ndjson"
    source.write_bytes(
        line() + b"{nonsense\n" + b"\n" + line(priority=11) + line("b2" * 32) + line(colour="red") + b"[]\n"
    )
    done = fastpush("send", *apns.reached(), "--from", source, "--results", results)
    assert done.returncode == 1
    assert re.findall(r"^line (\d+): ", done.stderr, re.MULTILINE) == ["2", "4", "6", "7"]
    assert "line 4: priority" in done.stderr
    assert "line 6: has an unknown field 'colour'" in done.stderr
    assert re.search(r"^ +2  accepted$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +4  not sent: the line is no notification$", done.stdout, re.MULTILINE)
    assert sorted((record["line"], record["outcome"]) for record in read(results)) == [
        (1, "accepted"), (2, "invalid"), (4, "invalid"), (5, "accepted"), (6, "invalid"), (7, "invalid"),
    ]  # fmt: skip


def test_many_bad_lines_are_not_all_shown(apns: Simulate, tmp_path: Path) -> None:
    source = tmp_path / "bad.ndjson"
    source.write_bytes(b"nonsense\n" * 1_000)
    done = fastpush("send", *apns.reached(), "--from", source)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 11
    assert "--results" in done.stderr.splitlines()[-1]


PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_file(apns: Simulate, tmp_path: Path) -> None:
    """Ten times the lines, and no tenth more memory at the peak; the summary says that all were sent."""
    peaks = []
    for times in (1, 10):
        source = tmp_path / f"{times}.ndjson"
        source.write_bytes(ALARMS.read_bytes() * times)
        measured = subprocess.run(
            [
                sys.executable, "-c", PEAK,
                *FASTPUSH, "send", *apns.reached(), "--from", source, "--json",
            ],
            capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT, check=True,
        )  # fmt: skip
        summary, peak = measured.stdout.splitlines()
        assert json.loads(summary)["accepted"] == times * 10_000
        peaks.append(int(peak))
    assert peaks[1] < peaks[0] * 1.1, f"{peaks} KiB"


def test_rejections_are_summed_up_by_reason(tmp_path: Path) -> None:
    apns = Simulate(tmp_path, "--fault", "unregistered")
    source, results = tmp_path / "some.ndjson", tmp_path / "results.ndjson"
    source.write_bytes(b"".join(line(f"{number:064x}") for number in range(200)))
    done = fastpush("send", *apns.reached(), "--from", source, "--results", results)
    assert done.returncode == 1
    rejected = [record for record in read(results) if record["outcome"] == "rejected"]
    assert rejected
    assert {(record["status"], record["reason"]) for record in rejected} == {(410, "Unregistered")}
    assert all(record["unregistered_at"].startswith("2023-11-14T") for record in rejected)
    assert re.search(rf"^ +{len(rejected)}  410 Unregistered$", done.stdout, re.MULTILINE)
    code, said = apns.end()
    assert code == 0
    assert re.search(rf"{len(rejected)} rejected", said)


# Used wrongly.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give at least one device token"),
        ([DEVICE_TOKEN, "--from", "-"], "not both"),
        (["--from", "-", "--title", "x"], "--title cannot be used with --from"),
        (["--from", "-", "--badge", "0"], "--badge cannot be used with --from"),
        ([DEVICE_TOKEN], "nothing to show: give --title"),
        (["--from", "/nowhere/at/all"], "No such file"),
        ([DEVICE_TOKEN, "--priority", "11"], "priority"),
        ([DEVICE_TOKEN, "--data", "{"], "--data is not JSON"),
        ([DEVICE_TOKEN, "--data", "[1]"], "--data must be a JSON object"),
        ([DEVICE_TOKEN, "--data", '{"aps": {}}'], "aps"),
        ([DEVICE_TOKEN, "--expiration", "tomorrow"], "--expiration is 'tomorrow'"),
        ([DEVICE_TOKEN, "--expiration", "2027-01-31T12:00:00"], "time zone"),
        ([DEVICE_TOKEN, "--expiration", "3600"], "duration"),
        ([DEVICE_TOKEN, "--environment", "staging"], "staging"),
        (["not hex", "--title", "x"], "device_token"),
        ([DEVICE_TOKEN, "--title", "x", "--results", "/nowhere/at/all"], "/nowhere/at/all"),
        ([DEVICE_TOKEN, "--colour", "red"], "No such option"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what(apns: Simulate, arguments: list[str], message: str) -> None:
    """Refused before anything is opened, so it needs no process."""
    done = CliRunner().invoke(main, ["send", *apns.reached(), *arguments], prog_name="fastpush")
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr


def test_without_a_credential_it_says_which_to_give(tmp_path: Path) -> None:
    nobody = fastpush("send", "--title", "x", DEVICE_TOKEN)
    assert (nobody.returncode, "Give --key with --team-id, or --certificate" in nobody.stderr) == (2, True)
    missing = fastpush(
        "send", "--key", tmp_path / "AuthKey_ABC123DEFG.p8", "--team-id", "DEF123GHIJ", DEVICE_TOKEN
    )
    assert (missing.returncode, "AuthKey_ABC123DEFG.p8" in missing.stderr) == (2, True)
    assert "Traceback" not in missing.stderr


def test_without_a_topic_it_asks_for_one(apns: Simulate) -> None:
    done = fastpush("send", *apns.reached()[:-2], "--title", "x", DEVICE_TOKEN)
    assert (done.returncode, "Give --topic" in done.stderr) == (2, True)


def test_what_an_option_says_to_the_client_is_checked_too(apns: Simulate) -> None:
    for option, value in [("--proxy", "ftp://proxy:1"), ("--ca-file", "/nowhere/ca.pem")]:
        done = fastpush("send", *apns.reached(), option, value, "--title", "x", DEVICE_TOKEN)
        assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr


def test_a_secret_never_shows(apns: Simulate, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("correct horse battery staple\n")
    done = fastpush(
        "send", "--certificate", apns.where["key_file"], "--password-file", secret, DEVICE_TOKEN,
        FASTPUSH_PASSWORD="hunter2-from-the-environment",
    )  # fmt: skip
    assert done.returncode == 2
    for word in ("horse", "hunter2", "BEGIN PRIVATE KEY"):
        assert word not in done.stdout + done.stderr
    assert "hunter2" not in fastpush("send", "--help", FASTPUSH_PASSWORD="hunter2").stdout


# Trouble on the way.


def test_a_host_that_does_not_answer_is_told_in_time(apns: Simulate) -> None:
    reached = apns.reached()
    reached[reached.index("--port") + 1] = "1"
    done = fastpush("send", *reached, "--connect-within", "1", "--title", "x", DEVICE_TOKEN)
    assert done.returncode == 1
    assert "no connection within 1 s: 127.0.0.1" in done.stderr
    assert done.stderr.count("no good connection") <= 1
    assert "Traceback" not in done.stderr


def test_a_refused_key_stops_the_reading(apns: Simulate, tmp_path: Path) -> None:
    """The key of another simulator: APNs would answer 403 InvalidProviderToken to each."""
    other = Simulate(tmp_path)
    other.end()
    reached = apns.reached()
    reached[1:4:2] = [other.where["key_file"], other.where["team_id"]]
    done = fastpush("send", *reached, "--from", ALARMS, "--json")
    assert done.returncode == 1
    assert "APNs refuses the credential" in done.stderr
    assert json.loads(done.stdout)["lines"] < 10_000


def test_ctrl_c_sums_up_and_leaves_with_130(apns: Simulate) -> None:
    """Standard input stays open, so that only the signal can end it; what was sent is in the summary."""
    with subprocess.Popen(
        [*FASTPUSH, "send", *apns.reached(), "--from", "-", "--results", "/dev/stdout", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        bufsize=0,
    ) as process:
        process.stdin.write(line() * 3)
        results = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        summary, said = json.loads(process.stdout.read()), process.stderr.read().decode()
    assert process.returncode == 130
    assert [result["outcome"] for result in results] == ["accepted"] * 3
    assert (summary["accepted"], summary["lines"], summary["interrupted"]) == (3, 3, True)
    assert said == "interrupted after line 3\n"


def test_a_second_ctrl_c_does_not_wait_for_answers(tmp_path: Path) -> None:
    """What was handed over and not answered is of unknown outcome, line by line."""
    apns = Simulate(tmp_path, "--fault", "frozen")
    source = tmp_path / "some.ndjson"
    source.write_bytes(b"".join(line(f"{number:064x}") for number in range(1, 301)))
    with subprocess.Popen(
        [*FASTPUSH, "send", *apns.reached(), "--from", source, "--results", "/dev/stdout", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        records = [json.loads(process.stdout.readline())]
        process.send_signal(signal.SIGINT)
        assert b"Ctrl-C again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        *rest, summary = map(json.loads, process.stdout.read().splitlines())
        said = process.stderr.read().decode()
    assert process.returncode == 130, said
    assert summary["unknown"] > 0
    assert "did not wait" in said
    records += rest
    assert sorted(record["line"] for record in records) == list(range(1, summary["lines"] + 1))
    assert "Traceback" not in said
    apns.end()


# How it looks.


def on_a_terminal(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Run with standard error as a terminal of 80 columns; gives exit code, standard output, the drawing."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*FASTPUSH, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=ENVIRONMENT | {"COLUMNS": "80", "TERM": "xterm-256color"} | environment,
    ) as process:
        os.close(theirs)
        drawn = b""
        while chunk := _read_terminal(ours):
            drawn += chunk
        stdout = process.stdout.read().decode()
    os.close(ours)
    return process.returncode, stdout, drawn.decode(errors="replace")


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # EIO: the other side is closed
        return b""


def test_a_terminal_gets_a_bar_and_a_pipe_gets_none(apns: Simulate) -> None:
    code, stdout, drawn = on_a_terminal("send", *apns.reached(), "--from", ALARMS)
    assert code == 0
    assert re.search(r"[\d,]+ done", drawn)
    assert "\x1b[" in drawn
    assert "\x1b" not in stdout
    piped = fastpush("send", *apns.reached(), "--from", ALARMS)
    assert "\x1b" not in piped.stdout + piped.stderr


def test_no_color_is_obeyed(apns: Simulate) -> None:
    colour = re.compile(r"\x1b\[[\d;]*3[0-8][\d;]*m")
    assert colour.search(on_a_terminal("send", *apns.reached(), "--from", ALARMS)[2])
    assert not colour.search(on_a_terminal("send", *apns.reached(), "--from", ALARMS, NO_COLOR="1")[2])


@pytest.mark.parametrize("command", [[], ["send"], ["simulate"]])
def test_help_fits_80_columns(command: list[str]) -> None:
    done = fastpush(*command, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_version_is_the_package_s() -> None:
    done = fastpush("--version")
    version = r"\d+\.\d+\.\d+"
    if not list(importlib.metadata.distributions(name="fastpush")):
        version = "not installed, from its sources"
    assert (done.returncode, bool(re.fullmatch(rf"fastpush {version}\n", done.stdout))) == (0, True)


# The simulator.


def test_the_line_that_simulate_prints_works(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.ndjson"
    with subprocess.Popen(
        [*FASTPUSH, "simulate", "--port", "0", "--topic", "com.example.opmanager", "--ledger", ledger],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        shown = ""
        while DEVICE_TOKEN not in shown:
            shown += process.stdout.readline()
        prose = shown[: shown.index("fastpush send")].splitlines()
        assert max(map(len, prose)) <= 80
        command = shown[shown.index("fastpush send") :].removeprefix("fastpush")
        tried = subprocess.run(
            f"{sys.executable} -m fastpush {command}",
            shell=True,
            capture_output=True,
            env=ENVIRONMENT,
            check=False,
        )
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (tried.returncode, process.returncode) == (0, 0), tried.stderr
    assert re.fullmatch(r"1 request on \d connections?: 1 accepted\n", said)
    assert [seen["fate"] for seen in read(ledger)] == ["accepted"]


def test_the_key_is_for_its_owner_only(apns: Simulate) -> None:
    for name in ("key_file", "certificate_file"):
        assert Path(apns.where[name]).stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken_is_told(apns: Simulate) -> None:
    done = fastpush("simulate", "--port", apns.where["port"])
    assert done.returncode == 2
    assert "cannot listen" in done.stderr
    assert "--port 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_profile_that_there_is_not_is_told() -> None:
    done = fastpush("simulate", "--fault", "earthquake")
    assert (done.returncode, "earthquake" in done.stderr, "goaway-graceful" in done.stderr) == (2, True, True)


# The benchmarks.


def test_what_stands_behind_bench_goes_to_the_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        [*FASTPUSH, "bench", "--json", "send", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m benchmarks send" in done.stdout
    assert "--rounds" in done.stdout
    wrong = fastpush("bench", "nosuch")
    assert (wrong.returncode, "nosuch" in wrong.stderr) == (2, True)


def test_outside_of_a_checkout_bench_says_that_it_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["fastpush.cli.bench"], "ROOT", tmp_path)
    done = CliRunner().invoke(main, ["bench", "send"])
    assert done.exit_code == 2
    assert "in a checkout run: make bench" in done.output
    assert "Traceback" not in done.output


# Lines, without a process.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"17", "must be an object; it is a number"),
        (b"null", "must be an object; it is null"),
        (b'{"payload": {}}', "has no device_token"),
        (b'{"device_token": "a1"}', "has no payload"),
        (b'{"device_token": "a1", "payload": "hi"}', "payload must be an object; it is a string"),
        (b'{"device_token": 17, "payload": {}}', "device_token"),
        (line(collapse_id="x" * 65), "collapse_id"),
        (line(expiration="soon"), "expiration"),
        (line(apns_id="17"), "apns_id"),
        (line(payload={"aps": {"alert": "x" * 5_000}}), "payload"),
        (b" " * (MAX_LINE_OCTETS + 1), "is longer than 65,536 octets"),
    ],
)
def test_a_line_that_is_no_notification_says_why(text: bytes, reason: str) -> None:
    with pytest.raises(BadLine, match=re.escape(reason)):
        parse_line(text)


def test_a_line_gives_its_notification() -> None:
    notification = parse_line(
        line(topic="com.example.app", priority=5, expiration=0, collapse_id="é", push_type=None)
    )
    assert notification.device_token == DEVICE_TOKEN
    assert (notification.topic, notification.priority, notification.expiration) == ("com.example.app", 5, 0)
    assert (notification.collapse_id, notification.push_type) == ("é", "alert")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_lines_are_the_same_however_the_octets_are_cut(size: int) -> None:
    octets = b"one\n\ntwo\nthree without an end"
    splitter, lines = Splitter(), []
    for start in range(0, len(octets), size):
        lines += splitter.feed(octets[start : start + size])
    assert lines + splitter.end() == [b"one", b"", b"two", b"three without an end"]


def test_a_line_without_end_takes_no_memory() -> None:
    splitter = Splitter()
    for _ in range(100):
        assert splitter.feed(b"x" * 65_536) == []
    (rest,) = splitter.end()
    assert MAX_LINE_OCTETS < len(rest) < 3 * MAX_LINE_OCTETS


def test_warnings_go_to_the_terminal_only_while_a_command_runs():
    """A program that calls the command in its own process keeps its logging as it was."""
    logger = logging.getLogger("fastpush")
    before = (list(logger.handlers), logger.propagate)
    CliRunner().invoke(main, ["send", "--help"], prog_name="fastpush")
    assert (list(logger.handlers), logger.propagate) == before
