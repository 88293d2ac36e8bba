"""The clock of stories: every test that lets time pass without waiting for it takes it from here."""

from __future__ import annotations

import trio
import trio.testing

__all__ = ["story_clock"]


def story_clock(autojump_threshold=0.05):
    """trio's virtual clock, standing still while a thread works for a task.

    trio's own jumps whenever all tasks have waited for that long, for a thread too: where a loaded machine
    takes longer to read a trust store, it goes to the next deadline there is, that of the whole story.

    `trio.to_thread` is known to it. What else works aside, such as a storage's own thread, is made known by
    a function that tells whether it does: `clock.holds.append(lambda: storage.pending_rows > 0)`.
    """
    clock = trio.testing.MockClock(autojump_threshold=autojump_threshold)
    clock.holds = []
    jump = clock.jump

    def jump_unless_a_thread_works(seconds):
        if not trio.testing.active_thread_count() and not any(works() for works in clock.holds):
            jump(seconds)

    clock.jump = jump_unless_a_thread_works
    return clock
