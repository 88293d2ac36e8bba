"""The benchmarks' own rules: the same data for all, and no figure without the sink's agreement."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import contenders, data, measure
from benchmarks.contenders import Contender, Job, Report
from benchmarks.servers import NotInstalled, haproxy

ROOT = Path(__file__).parent.parent


def test_every_body_has_the_size_that_is_named():
    for index in (0, 1, 9_999, 10_000_000):
        assert len(data.body(index)) == data.BODY_OCTETS == 220
    assert data.body(1) != data.body(2)


def test_device_tokens_are_distinct_and_repeat_with_the_seed():
    tokens = list(data.device_tokens(7, 1_000))
    assert len(set(tokens)) == 1_000
    assert all(len(token) == 64 and set(token) <= set("0123456789abcdef") for token in tokens)
    assert list(data.device_tokens(7, 10)) == tokens[:10]
    assert list(islice(data.device_tokens(8, 10), 1)) != tokens[:1]


def test_the_contenders_in_javascript_send_the_same_content():
    if contenders.BY_NAME["node"].missing():
        pytest.skip("node is not installed")
    script = "console.log(JSON.stringify(require('./benchmarks/contenders/contest.js').content(5)))"
    job = json.dumps({"warm_up": 0, "pushes": 1})
    printed = subprocess.run(
        ["node", "-e", script, job], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed) == data.content(5)


@pytest.fixture(scope="module")
def sink(tmp_path_factory):
    try:
        with haproxy(tmp_path_factory.mktemp("sink"), body_octets=data.BODY_OCTETS) as server:
            yield server
    except NotInstalled as reason:
        pytest.skip(str(reason))


def job(server, pushes, warm_up=0):
    return Job(
        host=server.host,
        port=server.port,
        ca_file=str(server.ca_file),
        key_file="",
        provider_token="x.y.z",
        pushes=pushes,
        warm_up=warm_up,
        seed=1,
        streams=100,
    )


def boaster(report):
    """A contender that prints this report and sends nothing."""
    script = f"print({json.dumps(json.dumps(vars(report)))})"
    return Contender("boaster", "boaster", (sys.executable, "-c", script))


ANYWHERE = measure.Cores(None, None)


def test_h2load_and_the_sink_agree(sink):
    if contenders.H2LOAD.missing():
        pytest.skip("h2load is not installed")
    before = sink.tally()
    report = measure.run_one(contenders.H2LOAD, sink, job(sink, 2_000, warm_up=1), ANYWHERE)
    after = sink.tally()
    # The one is a run of its own, for what h2load spends to start.
    assert report.accepted == after.answered - before.answered == 2_000 + 1
    assert after.connections - before.connections == 2
    # haproxy has read the bodies, too.
    assert after.body_octets - before.body_octets >= 2_000 * data.BODY_OCTETS
    assert 0 < report.cpu_seconds < 60


def test_a_contender_that_only_claims_to_have_sent_gets_no_figure(sink):
    """A wrong answer has no speed: the sink has seen nothing of these 500."""
    with pytest.raises(measure.NoFigure, match="the sink answered 0 for 500"):
        measure.run_one(boaster(Report(500, 0.001, 0.001, 1)), sink, job(sink, 500), ANYWHERE)


def test_a_contender_that_sends_less_than_the_whole_body_gets_no_figure(tmp_path):
    """The sink answers 400 to what is too short; h2load sends 220 octets."""
    if contenders.H2LOAD.missing():
        pytest.skip("h2load is not installed")
    try:
        with (
            haproxy(tmp_path, body_octets=data.BODY_OCTETS + 1) as server,
            pytest.raises(measure.NoFigure, match=r"^0 of 51 were accepted"),
        ):
            measure.run_one(contenders.H2LOAD, server, job(server, 50, warm_up=1), ANYWHERE)
    except NotInstalled as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("sink", ["haproxy", "nginx", "simulator"])
def test_each_sink_agrees_with_ours_and_with_h2load(sink, tmp_path):
    """More requests than nginx takes on a connection by itself."""
    if contenders.H2LOAD.missing():
        pytest.skip("h2load is not installed")
    command = [sys.executable, "-m", "benchmarks", "--output", str(tmp_path), "send", "--sink", sink]
    command += ["--only", "bulk", "--rounds", "2", "--pushes", "3000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    kept = tmp_path / "send.json"
    if not kept.exists() and f"{sink} is not installed" in done.stderr:
        pytest.skip(f"{sink} is not installed")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(kept.read_text())
    assert [one["rounds"] for one in result["figures"]] == [2, 2]
    assert not result["no_figure"]
    assert result["conditions"]["sink"].startswith(sink)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("h2load", "apt install nghttp2-client"),
        ("h2load-4", "apt install nghttp2-client"),
        ("node", "apt install nodejs npm"),
        ("node-apn", "apt install nodejs npm"),
    ],
)
def test_what_is_missing_is_left_out_with_the_command_that_installs_it(name, cure, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    contender = contenders.BY_NAME[name]
    assert contender.missing().endswith(cure)
    rows = measure.run_rounds([contender], None, 2, lambda line: None)
    assert rows[name].missing
    assert not rows[name].failures


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("pycurl", "pip install pycurl"),
        ("kalyke", "pip install kalyke-apns"),
        ("aioapns", "pip install aioapns"),
    ],
)
def test_a_missing_module_is_named_as_pip_calls_it(name, cure, monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda module: None)
    assert contenders.BY_NAME[name].missing() == cure


def test_a_contender_that_loses_one_gets_no_figure(sink):
    loser = boaster(Report(499, 1.0, 1.0, 1))

    def run_one(contender):
        return measure.run_one(contender, sink, job(sink, 500), ANYWHERE)

    rows = measure.run_rounds([loser], run_one, 3, lambda line: None)
    assert rows["boaster"].failures == ["499 of 500 were accepted"]
    assert measure.figures_of(rows["boaster"], {"h2load": measure.Row(contenders.H2LOAD)}, 500, 500) is None


def test_the_ratio_is_paired_by_round():
    """A slow machine in one round slows both; the ratio does not see it."""
    h2load = measure.Row(contenders.H2LOAD)
    other = measure.Row(contenders.BY_NAME["bulk"])
    for number, slowness in enumerate((1.0, 5.0, 1.0)):
        h2load.runs.append((number, Report(1_000, 0.004 * slowness, 1.0, 1)))
        other.runs.append((number, Report(1_000, 0.006 * slowness, 1.0, 1)))
    figures = measure.figures_of(other, {"h2load": h2load, "bulk": other}, 1_000, 1_000)
    assert [figures.ratio_lowest, figures.ratio, figures.ratio_highest] == pytest.approx([1.5] * 3)
    assert figures.cpu_microseconds == pytest.approx(6.0)


def test_a_peer_is_held_beside_fastpush_by_round_too():
    """The quotients of rounds 1 to 3 are 60, 12 and 20; pycurl has no round 0."""
    rows = {name: measure.Row(contenders.BY_NAME[name]) for name in ("h2load", "bulk", "pycurl")}
    for number, (bulk, pycurl) in enumerate(((0.002, 0.04), (0.002, 0.12), (0.01, 0.12), (0.01, 0.2))):
        rows["bulk"].runs.append((number, Report(1_000, bulk, 1.0, 1)))
        if number:
            rows["pycurl"].runs.append((number, Report(1_000, pycurl, 1.0, 1)))
    figures = measure.figures_of(rows["pycurl"], rows, 1_000, 1_000)
    assert figures.to_bulk == pytest.approx(20.0)
    assert figures.ratio is None
    rows["bulk"].failures.append("one is missing")
    assert measure.figures_of(rows["pycurl"], rows, 1_000, 1_000).to_bulk is None
