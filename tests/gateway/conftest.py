"""What the tests of the gateway share."""

import os
import random

import pytest


@pytest.fixture
def seed():
    """A source of random numbers whose seed is printed; FASTPUSH_SEED replays."""
    number = int(os.environ.get("FASTPUSH_SEED") or random.SystemRandom().getrandbits(32))
    print(f"FASTPUSH_SEED={number}")
    return random.Random(number)
