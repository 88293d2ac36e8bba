"""What must happen before any test is imported."""

import signal

import pytest

# Also used by tests/campaigns, which are collected before tests/http2.
pytest.register_assert_rewrite("tests.http2.story")

# A shell lets what it starts in the background ignore Ctrl-C, and so would what is started from here: no
# program that a test ends in this way would end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
