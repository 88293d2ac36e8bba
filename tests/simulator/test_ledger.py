"""The ledger, and that its check goes red for every kind of lie: what makes a green run mean something."""

import itertools
import json
import random
import uuid

import pytest

from fastpush.simulator import Ledger, open_simulator
from fastpush.simulator._server import (
    ACCEPTED,
    REFUSED,
    REJECTED,
    SWALLOWED,
    UNANSWERED,
    ServerConnection,
    Shared,
)

from .offline import Offline
from .wire import DEVICE_TOKEN, open_wire


class Account:
    """A sender without faults, and the ledger of the service that it sends to."""

    def __init__(self, seed, count=200):
        self.random = random.Random(seed)
        self.offline = Offline()
        self.outcomes = {}
        self.ids = [str(uuid.UUID(int=self.random.getrandbits(128), version=4)) for _ in range(count)]
        for apns_id in self.ids:
            self.outcomes[apns_id] = self.send(apns_id)

    def send(self, apns_id, fate=None, expiration=None):
        """One push; the fate decides what the service does and what an honest sender says."""
        if fate is None:
            fate = self.random.choices([ACCEPTED, REJECTED, UNANSWERED, SWALLOWED], [20, 3, 1, 1])[0]
        self.offline.push(apns_id, fate, expiration)
        return {ACCEPTED: "accepted", REJECTED: "rejected", REFUSED: "not_sent"}.get(fate, "unknown")

    def pick(self, outcome):
        return self.random.choice([each for each, told in self.outcomes.items() if told == outcome])

    def check(self, outcomes=None, ids=None):
        return self.offline.ledger.check(ids or self.ids, self.outcomes if outcomes is None else outcomes)


@pytest.fixture(params=range(5), ids=lambda seed: f"seed {seed}")
def account(request):
    return Account(request.param)


def test_an_honest_account_is_good(account):
    report = account.check()
    assert report.good, report
    assert len(report.recovered) == account.offline.ledger.counts["unanswered"]


# Each a bug that a sender may have. They return what the check must name.


def acknowledges_what_it_never_sent(account):
    apns_id = str(uuid.uuid4())
    account.ids.append(apns_id)
    account.outcomes[apns_id] = "accepted"
    return "lost", apns_id


def takes_silence_for_acceptance(account):
    apns_id = str(uuid.uuid4())
    account.ids.append(apns_id)
    account.send(apns_id, SWALLOWED)
    account.outcomes[apns_id] = "accepted"
    return "lost", apns_id


def takes_a_rejection_for_acceptance(account):
    apns_id = account.pick("rejected")
    account.outcomes[apns_id] = "accepted"
    return "lost", apns_id


def drops_an_outcome(account):
    apns_id = account.pick("accepted")
    del account.outcomes[apns_id]
    return "forgotten", apns_id


def forgets_a_notification(account):
    apns_id = str(uuid.uuid4())
    account.ids.append(apns_id)
    return "forgotten", apns_id


def sends_again_what_was_accepted(account):
    apns_id = account.pick("accepted")
    account.send(apns_id, ACCEPTED)
    return "duplicated", apns_id


def sends_again_what_was_delivered_without_an_answer(account):
    apns_id = str(uuid.uuid4())
    account.ids.append(apns_id)
    account.send(apns_id, UNANSWERED)
    account.outcomes[apns_id] = account.send(apns_id, ACCEPTED)
    return "duplicated", apns_id


def draws_a_new_apns_id_for_each_attempt(account):
    apns_id = account.pick("unknown")
    fresh = str(uuid.uuid4())
    account.outcomes[apns_id] = account.send(fresh, ACCEPTED)
    return "unexpected", fresh


def invents_a_notification(account):
    apns_id = str(uuid.uuid4())
    account.send(apns_id, REJECTED)
    return "unexpected", apns_id


def sends_after_the_expiration(account):
    apns_id = str(uuid.uuid4())
    account.ids.append(apns_id)
    account.outcomes[apns_id] = account.send(apns_id, ACCEPTED, int(account.offline.shared.wall) - 5)
    return "late", apns_id


def says_not_sent_of_what_was_delivered(account):
    apns_id = account.pick("accepted")
    account.outcomes[apns_id] = "not_sent"
    return "contradicted", apns_id


def says_expired_of_what_was_delivered(account):
    apns_id = account.pick("accepted")
    account.outcomes[apns_id] = "expired"
    return "contradicted", apns_id


def says_rejected_of_what_was_delivered(account):
    apns_id = account.pick("accepted")
    account.outcomes[apns_id] = "rejected"
    return "contradicted", apns_id


def says_rejected_of_what_was_refused(account):
    apns_id = str(uuid.uuid4())
    account.ids.append(apns_id)
    account.send(apns_id, REFUSED)
    account.outcomes[apns_id] = "rejected"
    return "contradicted", apns_id


LIES = [
    acknowledges_what_it_never_sent,
    takes_silence_for_acceptance,
    takes_a_rejection_for_acceptance,
    drops_an_outcome,
    forgets_a_notification,
    sends_again_what_was_accepted,
    sends_again_what_was_delivered_without_an_answer,
    draws_a_new_apns_id_for_each_attempt,
    invents_a_notification,
    sends_after_the_expiration,
    says_not_sent_of_what_was_delivered,
    says_expired_of_what_was_delivered,
    says_rejected_of_what_was_delivered,
    says_rejected_of_what_was_refused,
]


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_found_and_named(account, lie):
    kind, apns_id = lie(account)
    report = account.check()
    assert not report.good
    assert apns_id in getattr(report, kind)
    assert f"{kind} 1: {apns_id}" in str(report)


def test_a_refused_push_sent_again_under_its_id_is_no_duplicate():
    account = Account(0, 0)
    apns_id = str(uuid.uuid4())
    account.send(apns_id, REFUSED)
    account.outcomes[apns_id] = account.send(apns_id, ACCEPTED)
    assert account.check(ids=[apns_id.upper()]).good


def test_an_unknown_outcome_word_is_refused():
    with pytest.raises(ValueError, match="outcome is 'fine'"):
        Ledger().check(["a"], {"a": "fine"})


async def test_what_the_ledger_tells_of_a_request(simulator, key):
    async with open_wire(simulator, key) as wire:
        mine = str(uuid.uuid4())
        await wire.push(apns_id=mine, apns_expiration="1900000000")
        await wire.push("xx")
    accepted, rejected = simulator.ledger.seen
    assert accepted[:4] == (mine, DEVICE_TOKEN, 1, 1)
    assert (accepted.fate, accepted.status, accepted.expires_at, accepted.delivered) == (
        "accepted",
        200,
        1_900_000_000,
        True,
    )
    assert (rejected.device_token, rejected.fate, rejected.status, rejected.expires_at) == (
        "xx",
        "rejected",
        400,
        None,
    )
    assert simulator.ledger.accepted == {mine: 1}
    assert simulator.statistics().fates["rejected"] == 1


@pytest.mark.parametrize("mode", ["full", "counts"])
async def test_a_file_has_every_request_before_its_answer_is_out(tmp_path, mode):
    path = tmp_path / "seen.ndjson"
    async with (
        open_simulator(ledger=mode, ledger_file=path) as simulator,
        open_wire(simulator, simulator.signing_key()) as wire,
    ):
        for number in range(1, 4):
            await wire.push()
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert [line["stream_id"] for line in lines] == [1, 3, 5][:number]
            assert lines[-1]["fate"] == "accepted"


async def test_only_counting_keeps_no_request():
    async with open_simulator(ledger="counts") as simulator:
        async with open_wire(simulator, simulator.signing_key()) as wire:
            await wire.push()
        assert simulator.ledger.counts["accepted"] == 1
        assert len(simulator.ledger.log) == 0
        with pytest.raises(RuntimeError, match="only counts"):
            _ = simulator.ledger.seen


def test_clearing_forgets_the_requests_and_keeps_the_counts():
    account = Account(0, 10)
    before = account.offline.ledger.counts
    account.offline.ledger.clear()
    assert (account.offline.ledger.seen, account.offline.ledger.counts) == ([], before)


def test_the_offline_connection_is_the_real_one():
    offline = Offline()
    assert isinstance(offline.connection, ServerConnection)
    assert isinstance(offline.shared, Shared)
    assert list(itertools.islice(offline.ledger.seen, 1)) == []
