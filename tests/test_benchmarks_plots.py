"""What the benchmarks keep and draw, and a small run of `scale`."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest

import benchmarks.__main__ as command
from benchmarks import measure, plots, scale
from benchmarks.contenders import Job
from benchmarks.provider_token import SigningKeyFile
from benchmarks.servers import NotInstalled, haproxy

CONDITIONS = {"date": "2026-11-23", "cpu": "none", "cores": 2, "load": 0.0, "python": "3.11", "commit": "0",
              "command": "", "sink": "haproxy", "streams": 1_000}  # fmt: skip


def canned(name):
    if name == "send":
        figures = [
            {"name": who, "title": who, "cpu_microseconds": cost}
            for who, cost in (("h2load", 3.0), ("bulk", 2.7), ("awaited", 6.0), ("aioapns", 330.0))
        ]
    elif name == "latency":
        figures = [
            {
                "how": "stream",
                "round_trip_ms": round_trip,
                "body_octets": 200,
                "sender": sender,
                "load": load,
                "latency": {"p50_ms": round_trip + load, "p99_ms": round_trip + 10 * load},
            }
            for round_trip in (0.0, 20.0, 100.0)
            for sender in ("fastpush send_many, each 10 ms", "h2load, each 10 ms")
            for load in (0.1, 0.5, 0.9)
        ]
    else:
        figures = [
            {"group": "pushes", "pushes": size, "cpu_microseconds": 3.0, "peak_octets": 50_000_000}
            for size in (10_000, 100_000, 1_000_000)
        ]
    return {"benchmark": name, "conditions": CONDITIONS, "figures": figures}


drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


@drawing
@pytest.mark.parametrize(
    ("name", "picture", "said"),
    [
        ("send", "cost-by-sender", ["What one push costs", "h2load (C), the yardstick", "330 µs", "110 ×"]),
        ("latency", "latency-by-load", ["How long a push takes", "fastpush, server 100 ms away", "50 %"]),
        ("scale", "cost-by-size", ["however many there are", "1 million", "3.0 µs", "50 MB"]),
    ],
)
def test_a_result_becomes_a_picture_that_names_what_it_shows(tmp_path, name, picture, said):
    written = plots.draw_all([canned(name)], tmp_path)
    assert {path.name for path in written} == {f"{picture}.svg", f"{picture}.png"}
    text = (tmp_path / f"{picture}.svg").read_text()
    for words in said:
        assert f">{words}" in text or words in text
    png = (tmp_path / f"{picture}.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == 800


@drawing
def test_the_same_result_gives_the_same_svg(tmp_path):
    """Else every run would change the pictures that are kept."""
    texts = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        plots.draw_all([canned("send")], tmp_path / run)
        texts.append((tmp_path / run / "cost-by-sender.svg").read_text())
    assert texts[0] == texts[1]


def test_without_matplotlib_the_line_to_install_it_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command.keep(canned("send"), tmp_path)
    assert json.loads((tmp_path / "send.json").read_text())["figures"][0]["name"] == "h2load"
    assert "pip install 'fastpush[bench]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["send.json"]


def test_matplotlib_is_not_imported_by_its_name_alone():
    """The tables must come without it, and start quickly."""
    script = "import sys, benchmarks.__main__; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_labels_that_would_cover_each_other_move_apart():
    moved = plots.spread([10.0, 10.1, 100.0], 1.0, 1_000.0)
    assert moved[0] == pytest.approx(10.0)
    assert moved[1] > 1.4 * moved[0]
    assert moved[2] == pytest.approx(100.0)


def test_what_was_wrong_in_one_round_has_no_figure_from_the_others():
    names = ("cpu_seconds", "wall_seconds", "connections", "write_calls", "peak_octets", "octets_early")
    report = dict.fromkeys((*names, "octets_late"), 1.0)
    runs = {("pushes", 10_000, 1): [report, report], ("pushes", 100_000, 1): [report] * 3}
    found = scale.figures(runs, {"10,000 over 1": "9,999 accepted, 10,000 answered, of 10,000"})
    assert [one["pushes"] for one in found] == [100_000]
    assert [one["pushes"] for one in scale.figures(runs, {})] == [10_000, 100_000]


def test_a_small_scale_run_counts_memory_and_writes(tmp_path):
    try:
        sink = haproxy(tmp_path)
        with sink as server:
            job = Job(
                server.host, server.port, str(server.ca_file), "", "", 2_000, 0, 1, 1_000, connections=1
            )
            key_file = SigningKeyFile(tmp_path / "AuthKey.p8", 1)
            report = scale.run_one(
                server, replace(job, key_file=str(key_file.path)), measure.Cores(None, None)
            )
    except NotInstalled as reason:
        pytest.skip(str(reason))
    one = scale.figure("pushes", 2_000, 1, [report, report])
    assert one["rounds"] == 2
    # Fewer than the pushes by far: they leave together.
    assert 0 < one["write_calls_per_thousand"] < 100
    assert one["peak_octets"] >= one["octets_early"] > 1_000_000
