"""The table of what follows from an answer that is no 200, and the few sums beside it.

Reasons and what to do about each: Apple, "Handling error responses from APNs".
"""

from __future__ import annotations

import itertools

import pytest

from fastpush.retry import MAX_ATTEMPTS, PATIENCE, Action, Budget, Decision, Rule, decide, rule_for

ANSWER, AGAIN, LATER, RENEW = Action.ANSWER, Action.AGAIN, Action.LATER, Action.RENEW

# Status and reason; what happens to the push; then what else the rule says.
TABLE = [
    (400, "BadCollapseId", ANSWER, set()),
    (400, "BadDeviceToken", ANSWER, {"suspect"}),
    (400, "BadExpirationDate", ANSWER, set()),
    (400, "BadMessageId", ANSWER, set()),
    (400, "BadPriority", ANSWER, set()),
    (400, "BadTopic", ANSWER, set()),
    (400, "DeviceTokenNotForTopic", ANSWER, {"suspect"}),
    (400, "DuplicateHeaders", ANSWER, set()),
    (400, "IdleTimeout", LATER, {"retryable", "at_once", "retires"}),
    (400, "InvalidPushType", ANSWER, set()),
    (400, "MissingDeviceToken", ANSWER, set()),
    (400, "MissingTopic", ANSWER, set()),
    (400, "PayloadEmpty", ANSWER, set()),
    (400, "TopicDisallowed", ANSWER, set()),
    (403, "BadCertificate", ANSWER, {"refuses"}),
    (403, "BadCertificateEnvironment", ANSWER, {"refuses"}),
    (403, "BadEnvironmentKeyIdInToken", ANSWER, {"refuses"}),
    (403, "BadEnvironmentKeyInToken", ANSWER, {"refuses"}),
    (403, "ExpiredProviderToken", RENEW, {"retires"}),
    (403, "Forbidden", ANSWER, {"refuses"}),
    (403, "InvalidProviderToken", ANSWER, {"refuses"}),
    (403, "MissingProviderToken", ANSWER, {"refuses"}),
    (403, "UnrelatedKeyIdInToken", RENEW, {"retires"}),
    (404, "BadPath", ANSWER, set()),
    (405, "MethodNotAllowed", ANSWER, set()),
    (410, "ExpiredToken", ANSWER, set()),
    (410, "Unregistered", ANSWER, set()),
    (413, "PayloadTooLarge", ANSWER, set()),
    (429, "TooManyProviderTokenUpdates", LATER, {"retryable", "retires"}),
    (429, "TooManyRequests", LATER, {"retryable", "device"}),
    (500, "InternalServerError", LATER, {"retryable"}),
    (503, "ServiceUnavailable", LATER, {"retryable"}),
    (503, "Service Unavailable", LATER, {"retryable"}),  # as one of Apple's pages prints it
    (503, "Shutdown", LATER, {"retryable", "at_once", "retires"}),
    # What no page names is judged by its status.
    (400, "SolarFlare", ANSWER, set()),
    (400, None, ANSWER, set()),
    (403, None, ANSWER, set()),
    (410, None, ANSWER, set()),
    (429, None, LATER, {"retryable"}),
    (499, "SolarFlare", ANSWER, set()),
    (500, None, LATER, {"retryable"}),
    (502, None, LATER, {"retryable"}),
    (599, "SolarFlare", LATER, {"retryable"}),
]

FLAGS = {"retryable", "at_once", "retires", "refuses", "suspect", "device"}


@pytest.mark.parametrize(("status", "reason", "action", "flags"), TABLE)
def test_each_reason_has_its_rule(status, reason, action, flags):
    rule = rule_for(status, reason)
    assert rule.action is action
    assert {flag for flag in FLAGS if getattr(rule, flag)} == flags


def test_a_reason_outweighs_the_status_it_comes_with():
    """The same reasons come in GOAWAY frames, and their status has varied."""
    assert rule_for(503, "BadDeviceToken") == rule_for(400, "BadDeviceToken")
    assert rule_for(400, "Shutdown") == rule_for(503, "Shutdown")


@pytest.fixture
def budget():
    return Budget(0.0)


@pytest.fixture
def decided(budget):
    def decided(rule, **changed):
        facts = {
            "processed": True, "idempotent": True, "attempts": 1, "elapsed": 0.0, "renewed": False,
            "retry_after": None, "budget": budget, "now": 0.0, "chance": 0.5,
        }  # fmt: skip
        return decide(rule, **{**facts, **changed})

    return decided


BUSY = rule_for(503, "ServiceUnavailable")
SHUTDOWN = rule_for(503, "Shutdown")
NO_VERDICT = {"rule": None, "processed": None}


def test_not_processed_goes_again_whatever_else_holds(decided, budget):
    """RFC 9113 §8.7: it is no attempt, costs nothing and waits for nothing."""
    left = budget.left(0.0)
    for attempts, elapsed, idempotent in itertools.product((1, 3, 99), (0.0, 3600.0), (True, False)):
        decision = decided(None, processed=False, attempts=attempts, elapsed=elapsed, idempotent=idempotent)
        assert decision == Decision(AGAIN)
    assert budget.left(0.0) == left


def test_unknown_goes_again_only_with_a_collapse_id(decided, budget):
    left = budget.left(0.0)
    assert decided(None, processed=None, idempotent=False) == Decision(ANSWER)
    assert budget.left(0.0) == left
    assert decided(None, processed=None, idempotent=True) == Decision(LATER, 0.0)
    assert budget.left(0.0) == left - 1


@pytest.mark.parametrize("rule", [BUSY, SHUTDOWN, None])
def test_three_attempts_and_no_fourth(decided, rule):
    assert decided(rule, processed=None, attempts=MAX_ATTEMPTS - 1).action is LATER
    assert decided(rule, processed=None, attempts=MAX_ATTEMPTS).action is ANSWER


def test_the_delay_doubles_and_has_full_jitter(decided):
    assert [decided(BUSY, attempts=n, chance=1.0).delay for n in (1, 2)] == [0.5, 1.0]
    assert [decided(BUSY, attempts=n, chance=0.25).delay for n in (1, 2)] == [0.125, 0.25]
    assert decided(BUSY, chance=0.0).delay == 0.0


def test_shutdown_goes_at_once_since_it_goes_elsewhere(decided):
    assert decided(SHUTDOWN, chance=1.0) == Decision(LATER, 0.0)
    # Unless the server said when.
    assert decided(SHUTDOWN, chance=1.0, retry_after=2.0) == Decision(LATER, 2.0)


def test_patience_ends_after_thirty_seconds(decided):
    assert decided(BUSY, elapsed=PATIENCE - 0.25, chance=0.5) == Decision(LATER, 0.25)
    assert decided(BUSY, elapsed=PATIENCE - 0.2, chance=0.5).action is ANSWER


def test_retry_after_is_the_least_delay_and_counts_against_patience(decided, budget):
    assert decided(BUSY, retry_after=7.0) == Decision(LATER, 7.0)
    assert decided(BUSY, retry_after=0.1, chance=1.0) == Decision(LATER, 0.5)
    assert decided(BUSY, retry_after=PATIENCE) == Decision(LATER, PATIENCE)
    left = budget.left(0.0)
    assert decided(BUSY, retry_after=PATIENCE + 1.0).action is ANSWER
    assert budget.left(0.0) == left, "what is not sent again costs nothing"


def test_a_stale_provider_token_is_renewed_once(decided, budget):
    rule = rule_for(403, "ExpiredProviderToken")
    left = budget.left(0.0)
    # It is our fault and not a sign of overload: no attempt too many, no share of the budget.
    assert decided(rule, attempts=MAX_ATTEMPTS, elapsed=99.0) == Decision(RENEW)
    assert decided(rule, renewed=True) == Decision(ANSWER)
    assert budget.left(0.0) == left


def test_an_expiration_of_zero_is_one_attempt(decided):
    """Answered or lost, it is not sent twice; what was surely not processed was no attempt."""
    assert decided(rule_for(503, None), once=True).action is Action.ANSWER
    assert decided(rule_for(503, "Shutdown"), once=True).action is Action.ANSWER
    assert decided(None, processed=None, idempotent=True, once=True).action is Action.ANSWER
    assert decided(None, processed=False, once=True).action is Action.AGAIN


def test_an_answer_is_final(decided, budget):
    left = budget.left(0.0)
    assert decided(Rule()) == Decision(ANSWER)
    assert budget.left(0.0) == left


class TestBudget:
    def test_it_starts_with_a_hundred_and_ends(self, budget):
        assert sum(budget.withdraw(0.0) for _ in range(200)) == 100
        assert not budget.withdraw(0.0)

    def test_a_tenth_of_the_first_attempts(self, budget):
        while budget.withdraw(0.0):
            pass
        budget.deposit(250)
        assert sum(budget.withdraw(0.0) for _ in range(200)) == 25

    def test_ten_a_second_in_any_case(self, budget):
        while budget.withdraw(0.0):
            pass
        assert budget.left(0.5) == pytest.approx(5.0)
        assert sum(budget.withdraw(0.5) for _ in range(200)) == 5
        assert sum(budget.withdraw(3.5) for _ in range(200)) == 30

    def test_it_never_holds_more_than_a_thousand(self, budget):
        budget.deposit(10**9)
        assert budget.left(10**6) == 1_000.0
        assert sum(budget.withdraw(10**6) for _ in range(5_000)) == 1_000

    def test_a_clock_that_stands_still_or_goes_back_gives_nothing(self, budget):
        while budget.withdraw(100.0):
            pass
        assert not budget.withdraw(50.0)
        assert budget.left(50.0) < 1.0

    def test_without_budget_the_answer_is_told(self, decided, budget):
        while budget.withdraw(0.0):
            pass
        assert decided(BUSY).action is ANSWER
        assert decided(None, processed=None).action is ANSWER
        assert decided(BUSY, now=0.2).action is LATER
