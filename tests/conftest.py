"""What must happen before any test is imported."""

import pytest

# Also used by tests/campaigns, which are collected before tests/http2.
pytest.register_assert_rewrite("tests.http2.story")
