"""Pictures of the results, as SVG and PNG: who costs what, latency against load, cost against size.

Every line and bar carries its name and its figure where it stands. Colours are those of Okabe and Ito, which
people with any kind of colour vision tell apart; no picture needs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'fastpush[bench]', or matplotlib alone"

# Okabe and Ito, "Color Universal Design" (2008).
OURS = "#0072B2"
YARDSTICK = "#D55E00"
OTHERS = "#8C8C8C"
SECOND = "#009E73"
INK = "#222222"
FAINT = "#666666"

WIDTH = 8.0  # inches; 800 pixels at this density
DENSITY = 100
ON_WHITE: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}

SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastpush",  # the same ids in every run
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


class NotInstalled(Exception):
    """matplotlib is missing; the message says how to get it."""


def draw_all(results: Sequence[dict[str, Any]], directory: Path) -> list[Path]:
    """Draw what these results allow, into the directory; the files written.

    Raises:
      NotInstalled: matplotlib is missing and there is something to draw.
    """
    written = []
    for result in results:
        draw = PICTURES.get(result["benchmark"])
        if draw is None or not result["figures"]:
            continue
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError:
            raise NotInstalled(f"no plots: matplotlib is not installed: {INSTALL}") from None
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(WIDTH, 4.5), dpi=DENSITY, layout="constrained", facecolor="white")
            name = draw(figure, result)
            if name is None:
                continue
            for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                path = directory / f"{name}.{ending}"
                figure.savefig(path, metadata=metadata)
                written.append(path)
    return written


def head(figure: Figure, title: str, below: str) -> None:
    """A title that says what is seen, flush left, and a line with the conditions; the rest makes room."""
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.12 / height, title, ha="left", va="top", fontsize=14, fontweight="bold")
    figure.text(0.012, 1 - 0.42 / height, below, ha="left", va="top", color=FAINT, fontsize=9.5)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.012, 0.012, 0.976, 1 - 0.75 / height - 0.012))  # type: ignore[call-arg,unused-ignore]


def plain(value: float) -> str:
    """Two figures at least: 0.92, 6.2, 28, 1,172."""
    if value < 1:
        return f"{value:.2f}"
    if value < 10:
        return f"{value:.1f}"
    return f"{value:,.0f}"


# Who costs what.

BARS = {
    "fan-out": "fastpush, one text for all",
    "bulk": "fastpush, send_many",
    "h2load": "h2load (C), the yardstick",
    "awaited": "fastpush, each push awaited",
    "pycurl": "pycurl (libcurl)",
    "node": "Node's http2, bare",
    "node-apn": "@parse/node-apn (Node)",
    "apns2": "apns2 (Node)",
    "h2": "h2 on trio, bare",
    "aioapns": "aioapns",
    "httpx": "httpx",
    "kalyke": "kalyke-apns",
}


def cost_by_sender(figure: Figure, result: dict[str, Any]) -> str | None:
    found = {one["name"]: one["cpu_microseconds"] for one in result["figures"]}
    ratios = {one["name"]: one.get("ratio") for one in result["figures"]}
    bars = sorted((cost, name) for name, cost in found.items() if name in BARS)
    if not bars:
        return None
    figure.set_figheight(1.6 + 0.32 * len(bars))
    axes = figure.add_subplot()
    costs = [cost for cost, _ in bars]
    names = [name for _, name in bars]
    colours = [
        YARDSTICK if name == "h2load" else OURS if BARS[name].startswith("fastpush") else OTHERS
        for name in names
    ]
    places = range(len(bars))
    axes.barh(places, costs, color=colours, height=0.68)
    axes.set_yticks(places, [BARS[name] for name in names])
    for label, colour in zip(axes.get_yticklabels(), colours, strict=True):
        label.set_color(INK if colour == OTHERS else colour)
        label.set_fontweight("normal" if colour == OTHERS else "bold")
        label.set_fontsize(10.5)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.set_xlim(1, 12 * max(costs))
    base = found.get("h2load")
    for place, (cost, name) in enumerate(bars):
        ratio = ratios[name] or (cost / base if base else None)
        times = f"   {plain(ratio)} ×" if ratio and name != "h2load" else ""
        axes.text(cost * 1.08, place, plain(cost) + " µs" + times, va="center", fontsize=10, **ON_WHITE)
    if base:
        axes.axvline(base, color=YARDSTICK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    label_logarithmic(axes, "x")
    axes.set_xlabel("processor time per push in microseconds, logarithmic")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    head(
        figure,
        "What one push costs its sender",
        "Shorter is better; × counts how many times h2load's. One connection, TLS, payloads of 220 octets.",
    )
    return "cost-by-sender"


def label_logarithmic(axes: Axes, which: str) -> None:
    """Whole numbers at the powers of ten, and no minor ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


# Latency against load.


def latency_by_load(figure: Figure, result: dict[str, Any]) -> str | None:
    panels = [
        (title, lines)
        for title, lines in (
            ("server on the same machine", latency_lines(result["figures"], near=True)),
            ("server far away", latency_lines(result["figures"], near=False)),
        )
        if lines
    ]
    if not panels:
        return None
    figure.set_figheight(4.8)
    first = None
    highest = max(one["latency"]["p99_ms"] for _, lines in panels for _, _, points in lines for one in points)
    for place, (title, lines) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place, sharey=first)
        draw_latency(axes, lines, 2 * highest)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        if first is None:
            axes.set_ylabel("milliseconds, logarithmic")
        else:
            axes.tick_params(axis="y", labelleft=False)
        first = first or axes
    head(
        figure,
        "How long a push takes, the busier the sender is",
        "99 of 100 pushes are answered within this time, counted from when each was due. Lower is better.",
    )
    return "latency-by-load"


def draw_latency(axes: Axes, lines: list[tuple[str, str, list[dict[str, Any]]]], highest: float) -> None:
    """The 99th percentile by load, with the figure at each point; the round trip itself is a dotted line."""
    axes.set_yscale("log")
    by_load: dict[float, list[tuple[float, str]]] = {}
    for title, colour, points in lines:
        loads = [100 * one["load"] for one in points]
        most = [one["latency"]["p99_ms"] for one in points]
        dashes: Any = (0, (5, 2)) if colour == YARDSTICK else "solid"
        axes.plot(
            loads, most, color=colour, linewidth=2.2, linestyle=dashes, marker="o", markersize=6, label=title
        )
        for load, value in zip(loads, most, strict=True):
            by_load.setdefault(load, []).append((value, colour))
        if points[0]["round_trip_ms"]:
            axes.axhline(points[0]["round_trip_ms"], color=colour, linewidth=1, linestyle=":", zorder=0)
            axes.text(
                1, points[0]["round_trip_ms"], "the round trip", color=colour, va="bottom", fontsize=8.5
            )
    axes.set_ylim(1.0, highest)
    for load, found in by_load.items():
        heights = spread([value for value, _ in found], *axes.get_ylim())
        for height, (value, colour) in zip(heights, found, strict=True):
            axes.text(
                load + 3, height, plain(value), color=colour, va="center", fontsize=9.5, zorder=4, **ON_WHITE
            )
    label_logarithmic(axes, "y")
    axes.set_xlim(0, 110)
    axes.set_xticks(list(by_load), [f"{load:.0f} %" for load in by_load])
    axes.set_xlabel("load: share of the most it can send there")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False, labelcolor="linecolor", prop={"weight": "bold", "size": 10})


def latency_lines(
    figures: Sequence[dict[str, Any]], *, near: bool
) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Small bodies by `send_many`: beside h2load on the same machine, or a line to each round trip."""

    def points(sender: Callable[[str], bool], round_trip: float) -> list[dict[str, Any]]:
        chosen = (
            one
            for one in figures
            if one["how"] == "stream"
            and one["round_trip_ms"] == round_trip
            and one["body_octets"] < 1_000
            and sender(one["sender"])
        )
        return sorted(chosen, key=lambda one: float(one["load"]))

    def ours(name: str) -> bool:
        return name.startswith("fastpush") and name.endswith("each 10 ms")

    if near:
        wanted = [
            ("h2load", YARDSTICK, points(lambda name: name.startswith("h2load"), 0.0)),
            ("fastpush", OURS, points(ours, 0.0)),
        ]
    else:
        wanted = [
            ("fastpush, server 100 ms away", INK, points(ours, 100.0)),
            ("fastpush, server 20 ms away", SECOND, points(ours, 20.0)),
        ]
    return [line for line in wanted if line[2]]


def spread(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels on a logarithmic axis apart, so that none covers another; in the order given."""
    step = 0.055 * (log10(high) - log10(low))
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    logs = [log10(value) for value in heights]
    for before, after in itertools.pairwise(order):
        logs[after] = max(logs[after], logs[before] + step)
    return [10**value for value in logs]


# Cost against size.


def cost_by_size(figure: Figure, result: dict[str, Any]) -> str | None:
    points = sorted(
        (one for one in result["figures"] if one["group"] == "pushes"), key=lambda one: int(one["pushes"])
    )
    if len(points) < 2:
        return None
    figure.set_figheight(4.6)
    sizes = [one["pushes"] for one in points]
    series = (
        ("processor time per push, µs", [one["cpu_microseconds"] for one in points], OURS, "{:.1f} µs"),
        ("memory at its peak, MB", [one["peak_octets"] / 1e6 for one in points], SECOND, "{:.0f} MB"),
    )
    for place, (title, values, colour, form) in enumerate(series, start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.plot(sizes, values, color=colour, linewidth=2.2, marker="o", markersize=6)
        axes.set_xscale("log")
        label_logarithmic(axes, "x")
        axes.set_xticks(sizes, [short(size) for size in sizes])
        axes.set_xlim(sizes[0] / 2.2, sizes[-1] * 2.2)
        axes.set_ylim(0, 1.45 * max(values))
        axes.set_title(title, loc="left", fontsize=11, color=colour, fontweight="bold")
        axes.set_xlabel("pushes sent, each step ten times as many")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        for size, value in zip(sizes, values, strict=True):
            axes.annotate(
                form.format(value), (size, value), textcoords="offset points", xytext=(0, 9), ha="center"
            )
    head(
        figure,
        "A push costs the same, however many there are",
        "fastpush send_many, out of a generator, over one connection. A flat line is what is wanted.",
    )
    return "cost-by-size"


def short(count: int) -> str:
    """10,000 or "1 million"."""
    return f"{count:,}" if count < 1_000_000 else f"{count // 1_000_000} million"


PICTURES: dict[str, Callable[[Any, dict[str, Any]], str | None]] = {
    "send": cost_by_sender,
    "latency": latency_by_load,
    "scale": cost_by_size,
}
