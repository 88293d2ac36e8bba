"""What alarms do: one row each, one loud push when it opens or gets worse, and the true state on screen."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.gateway.alarms import LOUD, RULES, SHOWN, AlarmRow, acknowledge, judge
from fastpush.gateway.sources import RANKS, Event

NOW = 1_800_000_000.0
MS = int(NOW * 1000)
WORDS = sorted(RANKS)


def event(severity: str, at: int | None = None, **fields) -> Event:
    return Event(
        **{"source": "opm1", "entity": "core_Poll", "device": "core", "severity": severity, "at": at} | fields
    )


def run(*events: Event, row: AlarmRow | None = None) -> tuple[AlarmRow, list[str]]:
    rules = []
    for place, each in enumerate(events):
        row, verdict, rule = judge(row, each, NOW + place)
        assert rule.split(".")[0] == verdict
        rules.append(rule)
    assert row is not None
    return row, rules


def test_an_outage_climbs_and_ends() -> None:
    row, rules = run(*map(event, ["attention", "trouble", "critical", "critical", "trouble", "clear"]))
    assert rules == [
        "first.new", "escalated.rank", "escalated.rank", "repeat.counted", "lowered.rank", "clear.open",
    ]  # fmt: skip
    assert (row.state, row.severity, row.generation, row.repeats) == ("cleared", "clear", 1, 1)
    assert (row.opened_at, row.changed_at, row.seen_at) == (NOW, NOW + 5, NOW + 5)


def test_an_open_after_a_clear_starts_a_generation() -> None:
    row, _ = run(event("critical"), event("critical"))
    row = acknowledge(row, "jo", NOW + 2)
    row, rules = run(event("clear"), event("trouble"), row=row)
    assert rules == ["clear.open", "first.reopened"]
    assert (row.generation, row.repeats, row.acknowledged_by, row.acknowledged_at) == (2, 0, None, None)


def test_a_clear_of_an_unknown_alarm_is_recorded_and_not_pushed() -> None:
    row, rules = run(event("clear"), event("clear"), event("trouble"))
    assert rules == ["stale.clear_of_unknown", "stale.clear_of_cleared", "first.new"]
    assert row.generation == 1


def test_what_the_source_s_clock_calls_older_changes_nothing() -> None:
    row, rules = run(event("critical", MS), event("attention", MS - 1), event("clear", MS - 5))
    assert rules == ["first.new", "stale.older", "stale.older"]
    assert (row.severity, row.source_at, row.repeats) == ("critical", MS, 2)


def test_equal_times_go_by_receipt() -> None:
    _, rules = run(event("critical", MS), event("clear", MS), event("critical", MS))
    assert rules == ["first.new", "clear.open", "first.reopened"]


def test_a_clock_far_ahead_is_not_believed() -> None:
    """Or its one event would make every later one stale."""
    row, rules = run(event("critical", MS + 10**9), event("clear", MS))
    assert rules == ["first.new", "clear.open"]
    assert row.source_at == MS


def test_an_acknowledged_alarm_is_silent_until_it_gets_worse() -> None:
    row, _ = run(event("trouble", message="a"))
    row = acknowledge(row, "jo", NOW)
    assert acknowledge(row, "al", NOW + 1) is row
    assert not row.counts_in_badge
    row, rules = run(event("trouble", message="b"), event("attention"), row=row)
    assert rules == ["repeat.counted", "lowered.rank"]
    assert row.acknowledged_by == "jo"
    row, rules = run(event("critical"), row=row)
    assert rules == ["escalated.rank"]
    assert row.counts_in_badge
    cleared, _ = run(event("clear"), row=row)
    assert acknowledge(cleared, "jo", NOW) is cleared


def test_a_repeat_with_another_text_updates_the_banner() -> None:
    row, rules = run(event("trouble", message="81%"), event("trouble", message="82%"), event("trouble"))
    assert rules == ["first.new", "repeat.changed", "repeat.counted"]
    assert row.message == "82%"  # what an event leaves out stays


def test_service_down_ranks_with_critical() -> None:
    _, rules = run(event("service_down"), event("critical"), event("service_down"), event("trouble"))
    assert rules == ["first.new", "repeat.changed", "repeat.changed", "lowered.rank"]


def test_a_severity_nobody_can_read_is_heard() -> None:
    _, rules = run(event("attention"), event("unknown"))
    assert rules == ["first.new", "escalated.rank"]


def test_an_event_of_another_alarm_or_a_test_is_a_mistake_of_the_caller() -> None:
    row, _ = run(event("critical"))
    with pytest.raises(ValueError, match="another alarm"):
        judge(row, event("clear", entity="edge_Poll"), NOW)
    with pytest.raises(ValueError, match="a test"):
        judge(None, event("critical", is_test=True), NOW)


# A4: the sender repeats a hook three times, and the clear overtakes the problem.


def test_repeated_hooks_make_one_push() -> None:
    row, rules = run(event("critical", MS), *[event("critical", MS)] * 3, event("clear", MS + 5000))
    assert rules == ["first.new", *["repeat.counted"] * 3, "clear.open"]
    assert row.state == "cleared"


def test_a_clear_that_overtakes_its_problem_wins() -> None:
    problem, clear = event("critical", MS), event("clear", MS + 5000)
    row, rules = run(clear, problem, problem, problem)
    assert row.state == "cleared"
    assert not LOUD & set(rules)
    row, rules = run(problem, clear, problem, problem)
    assert row.state == "cleared"
    assert [rule for rule in rules if rule in LOUD] == ["first.new"]


# A3: any history.

TIMES = st.one_of(st.none(), st.integers(MS - 5, MS + 5))
STEPS = st.lists(
    st.tuples(st.sampled_from(WORDS), TIMES, st.sampled_from(["", "a", "b"]), st.booleans()), max_size=30
)


@settings(max_examples=10_000, deadline=None)
@given(STEPS)
def test_the_last_state_shown_is_the_true_one_and_whatever_gets_worse_is_heard(steps) -> None:
    """Held against a model in plain variables: what is true, and what a phone shows after the pushes."""
    row, true, newest, shown, shown_text, heard = None, "clear", None, "clear", "", 0
    for place, (severity, at, message, acknowledges) in enumerate(steps):
        row, verdict, rule = judge(row, event(severity, at, message=message), NOW + place)
        assert rule in RULES
        older = at is not None and newest is not None and at < newest
        if not older:
            if RANKS[severity] > RANKS[true]:  # opens or gets worse
                assert rule in LOUD
                assert verdict in ("first", "escalated")
                heard += 1
            else:
                assert rule not in LOUD
            true = severity
            newest = at if newest is None else newest if at is None else max(at, newest)
        else:
            assert verdict == "stale"
        if rule in SHOWN:
            shown, shown_text = row.severity, row.message
        assert row.severity == true
        assert row.state == ("cleared" if true == "clear" else "open")
        assert shown == true
        if row.counts_in_badge and verdict != "stale":
            assert shown_text == row.message
        if acknowledges:
            row = acknowledge(row, "jo", NOW + place)
            shown_text = row.message
    assert bool(heard) == (row is not None and row.generation > 0)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(WORDS), st.integers(MS - 1000, MS)),
        min_size=1,
        max_size=20,
        unique_by=lambda step: step[1],
    ),
    st.randoms(),
)
def test_in_whatever_order_they_come_the_newest_by_source_time_wins(steps, random) -> None:
    random.shuffle(steps)
    row, _ = run(*[event(severity, at) for severity, at in steps])
    assert row.severity == max(steps, key=lambda step: step[1])[0]
    assert row.source_at == max(at for _, at in steps)


def test_a_row_goes_to_disk_and_back() -> None:
    row, _ = run(event("critical", MS, message="x"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=AlarmRow) == row
