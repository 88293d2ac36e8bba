"""The judge judged: an honest run is good, and each of twelve bugs turns it red."""

import random
import uuid

import pytest

from tests.ledger import Account


class Run:
    """A gateway without faults, as its witnesses tell of it."""

    def __init__(self, seed, count=300):
        self.random = random.Random(seed)
        self.account = Account()
        self.now = 1_000.0
        for _ in range(count):
            self.push(self.random.choices(["accepted", "rejected", "expired", "unknown"], [20, 3, 1, 1])[0])

    def name(self):
        return str(uuid.UUID(int=self.random.getrandbits(128)))

    def tell(self, kind, name, **more):
        self.account.add({"kind": kind, "id": name} | more)

    def seen(self, name, fate="accepted"):
        self.now += 0.001
        self.tell("seen", name, fate=fate, at=self.now)

    def push(self, state):
        name = self.name()
        self.tell("offer", name, expiration=self.now + 5)
        self.tell("ack", name)
        if state != "expired":
            self.seen(name, {"unknown": "unanswered"}.get(state, state))
        self.tell("end", name, state=state)
        return name

    def pick(self, state):
        return self.random.choice([name for name, told in self.account.ends if told == state])

    def forget_end(self, name):
        self.account.ends = [end for end in self.account.ends if end[0] != name]

    def forget_seen(self, name):
        self.account.seen = [seen for seen in self.account.seen if seen[0] != name]


@pytest.fixture(params=range(5), ids=lambda seed: f"seed {seed}")
def run(request):
    return Run(request.param)


def test_an_honest_run_is_good(run):
    verdict = run.account.check()
    assert verdict.good, verdict


def acknowledges_before_the_commit(run):
    name = run.name()
    run.tell("offer", name)
    run.tell("ack", name)
    return "lost", name


def commits_without_a_flush(run):  # NORMAL: the tail of the log is gone after the power cut
    name = run.pick("accepted")
    run.forget_end(name)
    run.forget_seen(name)
    return "lost", name


def drops_an_outcome(run):
    name = run.pick("accepted")
    run.forget_end(name)
    return "stuck", name


def never_claims_again_what_was_in_flight(run):
    name = run.name()
    run.tell("offer", name)
    run.tell("ack", name)
    run.tell("waiting", name)
    return "stuck", name


def sends_again_on_goaway_what_was_processed(run):
    name = run.pick("accepted")
    run.seen(name)
    return "duplicated", name


def forgets_the_mark_of_what_is_sent_once(run):
    name = run.pick("unknown")
    run.seen(name)
    return "duplicated", name


def draws_a_new_apns_id_for_each_attempt(run):
    name = run.name()
    run.seen(name)
    return "unexpected", name


def sends_garbage_from_a_damaged_file(run):
    run.tell("waiting", "00000000-0000-0000-0000-000000000000")
    return "unexpected", "00000000-0000-0000-0000-000000000000"


def skips_the_expiration(run):
    name = run.push("accepted")
    run.forget_seen(name)
    run.now += 60
    run.seen(name)
    return "late", name


def settles_before_the_answer(run):  # as XACK before the result: the end was guessed
    name = run.pick("accepted")
    run.forget_end(name)
    run.tell("end", name, state="rejected")
    return "contradicted", name


def writes_two_ends(run):
    name = run.pick("unknown")
    run.tell("end", name, state="accepted")
    return "contradicted", name


def refuses_what_it_stored(run):  # a failed flush answered with "no" in place of "unknown"
    name = run.name()
    run.tell("offer", name)
    run.tell("nack", name, code="no")
    run.seen(name)
    run.tell("end", name, state="accepted")
    return "refused", name


BUGS = [
    acknowledges_before_the_commit,
    commits_without_a_flush,
    drops_an_outcome,
    never_claims_again_what_was_in_flight,
    sends_again_on_goaway_what_was_processed,
    forgets_the_mark_of_what_is_sent_once,
    draws_a_new_apns_id_for_each_attempt,
    sends_garbage_from_a_damaged_file,
    skips_the_expiration,
    settles_before_the_answer,
    writes_two_ends,
    refuses_what_it_stored,
]


@pytest.mark.parametrize("bug", BUGS)
def test_every_bug_turns_it_red(run, bug):
    kind, name = bug(run)
    verdict = run.account.check()
    assert not verdict.good
    assert name in getattr(verdict, kind), verdict
    assert name in str(verdict)


def test_duplicates_within_the_bound_of_the_faults_are_allowed(run):
    name = run.pick("accepted")
    run.seen(name)
    assert run.account.check(duplicates_allowed=1).good
    run.seen(name)
    assert not run.account.check(duplicates_allowed=1).good


def test_while_it_runs_what_waits_is_no_fault(run):
    name = run.name()
    run.tell("offer", name)
    run.tell("ack", name)
    run.tell("waiting", name)
    assert run.account.check(quiet=False).good


def test_a_stored_push_without_an_answer_is_recovered(run):
    name = run.name()
    run.tell("offer", name)
    run.tell("nack", name, code="unknown")
    run.tell("end", name, state="accepted")
    run.seen(name)
    verdict = run.account.check()
    assert verdict.good
    assert verdict.recovered == [name]


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
    file = tmp_path / "client.ndjson"
    file.write_text('{"kind":"offer","id":"a"}\n{"kind":"ack","id":"a"}\n{"kind":"ack","i')
    account = Account()
    account.read(file)
    assert account.acked == {"a"}
