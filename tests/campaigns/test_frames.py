"""The short lane of `tests.campaigns.frames`, and proof that its judge can say no."""

import os
import random

import pytest

from fastpush.http2 import CompiledEngine
from fastpush.http2.reference import ReferenceEngine

from .frames import run, run_case

SEED = os.environ.get("FASTPUSH_SEED") or str(random.randrange(2**32))


@pytest.mark.parametrize("kind", ["random", "mutated"])
def test_compiled_engine_against_the_judge(kind):
    print(f"FASTPUSH_SEED={SEED}")
    differences, ends = run(4_000, SEED, [kind])
    assert differences == 0
    assert ends["dead"] > 100
    assert ends["alive"] > 100


@pytest.mark.parametrize("kind", ["random", "mutated"])
def test_reference_engine_lives_through_it(kind):
    """It differs where not_on_h2.py says so; it must not crash, hang, or end anything twice."""
    print(f"FASTPUSH_SEED={SEED}")
    for number in range(500):
        wrong, _ = run_case(ReferenceEngine, kind, f"{SEED}/{number}")
        assert not [line for line in wrong if line.startswith(("outcomes", "took", "the connection"))]


class Forgetful:
    """A compiled engine that tells no REFUSED_STREAM, to see that the judge notices."""

    def __init__(self):
        self._engine = CompiledEngine()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def receive_data(self, octets, now):
        return self._engine.receive_data(bytes(octets).replace(b"\0\0\0\x07", b"\0\0\0\x08"), now)


def test_the_judge_notices_a_wrong_outcome(capsys):
    differences, _ = run(3_000, "a seed with refused streams", make_engine=Forgetful, examples=1)
    assert differences > 0
    assert "case a seed with refused streams/" in capsys.readouterr().out
