"""`fastpush demo`, as somebody sees it who has just built it and pipes it into a file."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from pathlib import Path

import pytest

from fastpush.gateway.demo.phone import WIDTH, Phone
from fastpush.simulator import Delivery
from tests.gateway.processes import ROOT


class Demo:
    """A demo whose output is read line by line."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        self.begun = time.monotonic()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "fastpush", "demo", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(folder), "LC_ALL": "C"},
        )  # fmt: skip
        self.text = ""
        self.bound = threading.Timer(180, self.popen.kill)  # reading its output has no other end

    def __enter__(self):
        self.bound.start()
        return self

    def __exit__(self, *_):
        self.bound.cancel()
        self.popen.kill()
        self.popen.wait()
        if not self.popen.stdout.closed:
            self.popen.stdout.close()

    def read_until(self, pattern, within=60.0):
        """Read on until a line matches, and return the match."""
        while time.monotonic() < self.begun + within:
            line = self.popen.stdout.readline().decode()
            assert line, f"it ended before {pattern!r}:\n{self.text}"
            self.text += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no {pattern!r} within {within:g} s:\n{self.text}")

    def end(self, number=signal.SIGINT):
        """End it, and return the exit code and what it printed meanwhile."""
        self.popen.send_signal(number)
        rest = self.popen.stdout.read().decode()
        self.text += rest
        return self.popen.wait(30), rest

    @property
    def leftovers(self):
        return list(self.folder.iterdir())


@pytest.fixture
def folder():
    """A directory for temporary files, with a name so short that a Unix socket fits."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


def test_the_story_is_told_by_itself_and_ctrl_c_leaves_nothing_behind(folder):
    with Demo(folder) as demo:
        url = demo.read_until(r"^(http://127\.0\.0\.1:\d+\S*)")[1]
        assert time.monotonic() - demo.begun < 5.0 * SLACK
        assert "curl" not in demo.text, "the first URL is the console's"
        curl = demo.read_until(r"^curl (\S+)")
        demo.read_until(r"-d ")
        # Each of the four posts becomes the banner that the simulator got, with its times.
        banners, times = [], []
        for _ in range(4):
            demo.read_until("┌ OpManager")
            before = len(demo.text)
            facts = demo.read_until(r"└ (.*?) ─*┘")[1]
            banners.append([line.strip(" │") for line in demo.text[before:].splitlines()[:-1]] + [facts])
            times.append(demo.read_until(
                r"webhook 0 ms · on disk (\d+\.\d) · sent (\d+\.\d) · APNs 200 (\d+\.\d)"
                r" · apns-id …[0-9a-f]{8}$"
            ))  # fmt: skip
        assert banners == [
            ["Attention: core-sw-01", "Switch", "CPU at 87 %", "active · sound default · badge 1"],
            ["Critical: core-sw-01", "Switch", "No answer to 5 polls",
             "time-sensitive · sound opm_critical.caf · badge 1"],
            ["Critical: core-sw-01", "Switch", "No answer for 3 minutes", "uplink ge-0/0/1 is down",
             "passive · no sound · badge 1"],
            ["Cleared: core-sw-01", "Switch", "Answers again", "passive · no sound · badge 0"],
        ]  # fmt: skip
        assert demo.text.count("replaces the previous one") == 3
        assert demo.text.count("a new banner") == 1
        assert all(float(found[3]) < 1_000 for found in times)
        # APNs is away; nothing is lost or doubled.
        demo.read_until(r"1,000 accepted, all on disk; waiting 1,000")
        demo.read_until(r"1,000 accepted by APNs, 0 lost, 0 doubled \(simulator's count\)")
        demo.read_until(r"CPU of the gateway \d+\.\d\d ms each")
        assert time.monotonic() - demo.begun < 15.0 * SLACK
        # Its certificate has nine days left: the card on the phone, and in GET /v1/notices.
        demo.read_until(r"has 9 days left")
        demo.read_until(r"│ Push certificate com\.example\.opmanager expires in 9")
        demo.read_until(r"GET /v1/notices: Push certificate com\.example\.opmanager expires in 9 days$")
        demo.read_until(r"fastpush serve --config")
        demo.read_until(r"Ctrl-C")
        command = re.search(r"^  (cp .*\n .*)$", demo.text, re.MULTILINE)[1]
        subprocess.run(["sh", "-c", command], check=True, timeout=20)
        demo.read_until("│ Over: Push certificate")
        demo.read_until(r"^  renewed, 0 pushes lost, warning withdrawn$")
        # It keeps running: the curl that it printed works as it stands, and its alarm is drawn.
        command = re.search(r"^curl .*\n(  -.*\n)+", demo.text, re.MULTILINE)[0]
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20)
        assert json.loads(done.stdout)["result"] == "recorded", done.stderr
        assert command.startswith(f"curl {curl[1]}")
        demo.read_until("Trouble: edge-fw-02")
        # The link logs in.
        jar = folder / "jar"
        done = subprocess.run(
            ["curl", "-sSL", "-c", jar, "-b", jar, "-w", "%{http_code} %{url_effective}", "-o", "/dev/null",
             url],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        jar.unlink()
        assert re.fullmatch(r"200 http://127\.0\.0\.1:\d+/", done.stdout), done.stdout + done.stderr
        assert len(demo.leftovers) >= 1
        code, _ = demo.end()
        assert code == 0
        last = demo.text.splitlines()[-1]
        assert last == "1,005 alarms accepted, 1,005 delivered, 0 lost, 0 doubled (simulator's count)"
        assert "Traceback" not in demo.text
        assert demo.leftovers == []
        for line in demo.text.splitlines():
            assert len(line) <= 80, line


SLACK = 3.0  # others work on this machine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_may_be_ended_in_the_middle_of_a_scene(folder, number):
    with Demo(folder) as demo:
        demo.read_until(r"POST Critical")
        code, _ = demo.end(number)
        assert code == 0
        assert re.search(r"\d+ alarms accepted, .* 0 lost, 0 doubled", demo.text)
        assert "Traceback" not in demo.text
        assert demo.leftovers == []


def test_alarms_of_the_readers_own_disturb_no_scene(folder):
    """Whoever pastes the curl at once sees its alarm when the story is told, and no count is wrong."""
    with Demo(folder) as demo:
        demo.read_until(r"-d ")
        command = re.search(r"^curl .*\n(  -.*\n)+", demo.text, re.MULTILINE)[0]
        subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=20)
        demo.read_until("POST Clear")
        demo.read_until("APNs 200")
        assert "edge-fw-02" not in demo.text[demo.text.index("POST Attention") :]
        demo.read_until("Now APNs answers 503")
        other = command.replace("edge-fw-02", "edge-fw-03")
        subprocess.run(["sh", "-c", other], check=True, capture_output=True, timeout=20)
        demo.read_until(r"1,000 accepted, all on disk; waiting 1,000")
        demo.read_until(r"1,000 accepted by APNs, 0 lost, 0 doubled")
        demo.read_until("Ctrl-C")
        for device in ("edge-fw-02", "edge-fw-03"):
            demo.read_until(f"Trouble: {device}")
        code, _ = demo.end()
        assert code == 0
        assert demo.text.splitlines()[-1].startswith("1,006 alarms accepted, 1,006 delivered, 0 lost")


def test_it_may_be_ended_before_it_has_begun(folder):
    with Demo(folder) as demo:
        time.sleep(0.5)
        code, _ = demo.end()
        assert code in (0, 130)
        assert "Traceback" not in demo.text
        assert demo.leftovers == []


def test_a_reader_that_goes_away_ends_it(folder):
    """`fastpush demo | head -1` leaves no process and no directory."""
    with Demo(folder) as demo:
        demo.read_until("http://")
        demo.popen.stdout.close()
        demo.popen.wait(30)
        assert demo.leftovers == []


# The phone.


def delivery(collapse_id="c", **aps):
    payload = json.dumps({"aps": aps}).encode()
    return Delivery("ab" * 32, "id", "alert", 10, collapse_id, "com.example.app", payload, 0.0)


def test_a_banner_replaces_the_one_with_its_collapse_id():
    phone = Phone("ab" * 32)
    assert not phone.take(delivery("a", alert="x")).replaces
    assert not phone.take(delivery("b", alert="x")).replaces
    assert phone.take(delivery("a", alert="y")).replaces
    assert set(phone.shown) == {"a", "b"}


def test_a_banner_keeps_its_frame_whatever_is_in_it():
    """Wide characters, long words, control characters; none of them writes beside the frame."""
    alert = {"title": "核心交换机 " * 9, "body": "x" * 200 + "\n\x1b[31mred\x1b[0m\ttab\r\n" + "word " * 200}
    lines = Phone("ab" * 32).take(delivery(alert=alert, sound={"name": "s", "critical": 1}, badge=3)).lines()
    assert "\x1b" not in "".join(lines)
    for line in lines:
        assert sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in line) == WIDTH, line
    assert "sound s · badge 3" in lines[-1]
    assert any(line.startswith("│ …") for line in lines)
