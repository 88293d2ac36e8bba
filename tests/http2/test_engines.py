"""Which engine is in use, and what both are before anything happened."""

import inspect
import math

import pytest

import fastpush.http2
from fastpush.http2 import CompiledEngine, Engine, open_engine
from fastpush.http2.reference import ReferenceEngine


def test_the_compiled_engine_is_in_use(monkeypatch):
    monkeypatch.delenv("FASTPUSH_ENGINE", raising=False)
    assert type(open_engine()) is CompiledEngine
    assert not inspect.getsourcefile(fastpush.http2).endswith(".so")
    assert fastpush.http2._engine.__file__.endswith(".so")


@pytest.mark.parametrize(("name", "kind"), [("compiled", CompiledEngine), ("h2", ReferenceEngine)])
def test_the_environment_names_the_engine(monkeypatch, name, kind):
    monkeypatch.setenv("FASTPUSH_ENGINE", name)
    assert type(open_engine()) is kind


def test_an_unknown_engine_is_an_error_not_a_slow_path(monkeypatch):
    monkeypatch.setenv("FASTPUSH_ENGINE", "fast")
    with pytest.raises(ValueError, match="FASTPUSH_ENGINE is 'fast'"):
        open_engine()


def test_both_have_the_whole_contract(engine):
    public = {name for name in vars(Engine) if not name.startswith("_")}
    assert len(public) > 15
    assert public <= set(dir(engine))


def test_a_new_engine_is_silent(engine):
    new = engine()
    assert not new.settings_received
    assert not new.draining
    assert not new.closed
    assert new.room() == 0
    assert new.streams_open == 0
    assert new.stream_limit == 0
    assert new.requests_sent == 0
    assert new.late_responses == 0
    assert new.data_to_send() == b""
    assert new.next_time() == math.inf
