import pytest

from fastpush.simulator import open_simulator


@pytest.fixture
async def simulator():
    async with open_simulator(topics=("com.example.app",)) as simulator:
        yield simulator


@pytest.fixture
def key(simulator):
    return simulator.signing_key()
