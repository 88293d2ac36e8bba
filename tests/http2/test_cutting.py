"""Row 56: every story again, its octets cut elsewhere (RFC 9113 §4.1: frames know nothing of segments).

Cut at each octet, at one place, or not at all: the events and the frames sent are identical.
"""

import importlib
import itertools
import pathlib

import pytest

from fastpush.http2 import CompiledEngine
from fastpush.http2.reference import ReferenceEngine

from .not_on_h2 import NOT_ON_H2
from .replay import merged, replay
from .story import SCRIPTS, Story
from .test_limits import test_queued_control_frames as queued_control_frames

for _module in sorted(pathlib.Path(__file__).parent.glob("test_*.py")):
    if _module.name != pathlib.Path(__file__).name:
        importlib.import_module(f".{_module.stem}", __package__)

TAKING_MATTERS = {queued_control_frames}  # its story is when the answers are taken
CUTS = 20  # places of a single cut to each story, evenly spread; all of them in the slow lane


def cases():
    for function, parameters in SCRIPTS:
        if parameters.get("streams") == (1000,):
            continue  # the same story is there with one stream
        choices = [values if name != "streams" else values[:1] for name, values in parameters.items()]
        for values in itertools.product(*choices):
            chosen = dict(zip(parameters, values, strict=True))
            label = "-".join(str(value)[:30] for value in values)
            yield pytest.param(
                function, chosen, id=f"{function.__module__[17:]}-{function.__name__[5:]}-{label}"
            )


CASES = list(cases())


def record(engine, function, chosen):
    """Tell the story once; return its transcript with what came of it."""
    story = Story(engine)
    function(story, **chosen)
    if story.engine is not None:
        story.finish()
    transcript = story.transcript
    return transcript, replay(transcript, engine, lambda _, octets: [octets])


def each_octet(_, octets):
    return [octets[at : at + 1] for at in range(len(octets))]


def cut_at(number, place):
    def pieces(at, octets):
        return [octets[:place], octets[place:]] if at == number else [octets]

    return pieces


@pytest.mark.parametrize(("function", "chosen"), CASES)
def test_row_56_cut_anywhere(engine, function, chosen):
    if engine is ReferenceEngine and function.__name__ in NOT_ON_H2:
        pytest.skip(NOT_ON_H2[function.__name__])
    transcript, whole = record(engine, function, chosen)
    assert replay(transcript, engine, each_octet) == whole

    if function not in TAKING_MATTERS:
        events, taken = replay(merged(transcript), engine, lambda _, octets: [octets])
        assert events == whole[0]
        assert b"".join(taken) == b"".join(whole[1])

    segments = [args[0] for method, args in transcript if method == "receive_data"]
    places = [(number, at) for number, octets in enumerate(segments) for at in range(1, len(octets))]
    cuts = CUTS if engine is CompiledEngine else 2
    for number, at in places[:: len(places) // cuts + 1]:
        assert replay(transcript, engine, cut_at(number, at)) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("function", "chosen"), CASES)
def test_row_56_cut_at_every_single_place(function, chosen):
    engine = CompiledEngine
    transcript, whole = record(engine, function, chosen)
    segments = [args[0] for method, args in transcript if method == "receive_data"]
    if sum(map(len, segments)) > 20_000:
        pytest.skip("a story of many octets is cut at each of them at once, and at some alone")
    for number, octets in enumerate(segments):
        for at in range(1, len(octets)):
            assert replay(transcript, engine, cut_at(number, at)) == whole
