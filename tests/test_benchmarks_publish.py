"""Targets held up to results, and the figures that go into the pages."""

import json

import pytest

import benchmarks.__main__ as command
from benchmarks import publish, targets
from benchmarks.reporting import Table

CONDITIONS = {"date": "2026-11-23 21:00 UTC", "cpu": "none", "cores": 2, "load": 0.0, "python": "3.11",
              "commit": "0", "command": "python -m benchmarks", "sink": "none", "streams": 1_000}  # fmt: skip


def send(bulk=0.8):
    costs = {"bulk": (2.0, bulk), "fan-out": (1.6, 0.65), "awaited": (4.0, 1.8), "aioapns": (300.0, 120.0)}
    figures = [
        {"name": name, "title": name, "cpu_microseconds": cost, "ratio": ratio, "ratio_lowest": ratio,
         "ratio_highest": ratio, "to_bulk": cost / 2.0, "pushes_per_second": 1.0, "peak_octets": 1,
         "pushes": 1, "versions": ""}
        for name, (cost, ratio) in costs.items()
    ]  # fmt: skip
    return {
        "benchmark": "send", "conditions": CONDITIONS, "figures": figures, "no_figure": {}, "not_run": {}
    }  # fmt: skip


def verdicts(runs):
    return {row[0]: row[-1] for row in targets.table(runs).rows}


def test_a_target_holds_where_every_run_does():
    runs = [{"send": send(0.8)}, {"send": send(0.9)}]
    assert verdicts(runs)["`send_many` × h2load"] == "holds"
    assert verdicts([*runs, {"send": send(0.91)}])["`send_many` × h2load"] == "MISSES"


def test_what_was_not_measured_is_said_to_be():
    found = verdicts([{"send": send()}])
    assert found["aioapns × `send_many`"] == "holds"
    assert found["pycurl × `send_many`"] == "not measured"
    assert found["p99 at half load × h2load"] == "not measured"
    assert len(found) == len(targets.TARGETS)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.1, "holds"), (1.11, "MISSES")])
def test_ten_million_are_held_up_to_a_hundred_thousand(ratio, verdict):
    figures = [
        {"group": "pushes", "pushes": pushes, "to_sample": to_sample, "peak_octets": 50_000_000}
        for pushes, to_sample in ((100_000, None), (10_000_000, ratio))
    ]
    found = verdicts([{"scale": {"figures": figures}}])
    assert found["CPU of a push, of 10,000,000 × of 100,000"] == verdict
    assert found["MB more at the peak, 10,000,000 over 100,000"] == "holds"


def test_figures_take_the_place_of_the_last_ones():
    page = "before\n<!-- send -->\n<!-- end -->\nbetween\n<!-- sign -->\nkept\n<!-- end -->\nafter\n"
    once = publish.filled(page, {"send": "| new |"})
    assert once == page.replace("<!-- send -->\n", "<!-- send -->\n| new |\n")
    assert publish.filled(once, {"send": "| new |"}) == once


def test_a_table_and_its_notes_in_markdown():
    rows = Table("title", ("sender", "cost"))
    rows.add("fastpush", "2.0")
    rows.note("not run: x")
    assert publish.markdown(rows) == "| sender | cost |\n| --- | ---: |\n| fastpush | 2.0 |\n\nnot run: x"


def test_the_pages_have_a_place_for_everything_that_is_measured():
    page = publish.PAGE.read_text()
    missing = [name for name in ("targets", *command.USUAL) if f"<!-- {name} -->\n" not in page]
    assert not missing
    assert "<!-- speed -->\n" in publish.FRONT.read_text()


def test_kept_results_go_into_the_pages(tmp_path, monkeypatch, capsys):
    for name in ("PAGE", "FRONT"):
        copy = tmp_path / f"{name}.md"
        copy.write_text(getattr(publish, name).read_text())
        monkeypatch.setattr(publish, name, copy)
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(publish.plots, "draw_all", lambda results, directory: [])
    for run in ("1", "2"):
        (tmp_path / "results" / run).mkdir(parents=True)
        (tmp_path / "results" / run / "send.json").write_text(json.dumps(send()))
    assert command.main(["publish", str(tmp_path / "results")]) == 1  # not all was measured
    assert "holds" in capsys.readouterr().out
    assert "| bulk | 2.00 | 0.80 |" in (tmp_path / "PAGE.md").read_text()
    assert "**0.80 times** what h2load" in (tmp_path / "FRONT.md").read_text()
    assert "a push costs aioapns 150 times as much" in (tmp_path / "FRONT.md").read_text()


def test_without_results_publish_says_how_to_make_them(tmp_path, capsys):
    assert command.main(["publish", str(tmp_path / "none")]) == 2
    assert "--runs 3 makes them" in capsys.readouterr().err
