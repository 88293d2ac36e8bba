"""The two engines, and a story for each test."""

import pytest

import fastpush.http2
from fastpush.http2.reference import ReferenceEngine

from .not_on_h2 import NOT_ON_H2
from .story import Story

ENGINES = {"compiled": fastpush.http2.CompiledEngine, "h2": ReferenceEngine}


def pytest_collection_modifyitems(items):
    """A thousand streams are nothing to the compiled engine, and half a second to h2."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("engine") == "h2" and params.get("streams") == 1000:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=ENGINES)
def engine(request):
    """The class of the engine under test. What h2 cannot do must fail with it, or it is off the list."""
    name = request.node.name.replace("[h2-", "[").removesuffix("[h2]")
    if request.param == "h2" and name in NOT_ON_H2:
        request.applymarker(pytest.mark.xfail(strict=True, reason=NOT_ON_H2[name]))
    return ENGINES[request.param]


@pytest.fixture
def story(engine):
    story = Story(engine)
    yield story
    if story.engine is not None:
        story.finish()
