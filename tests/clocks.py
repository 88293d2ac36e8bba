"""The clock of stories told over real sockets."""

from __future__ import annotations

import trio
import trio.testing

__all__ = ["story_clock"]


def story_clock(autojump_threshold=0.05):
    """trio's virtual clock, standing still while a thread works for a task (`trio.to_thread`).

    trio's own jumps whenever all tasks have waited for that long, for a thread too: where a loaded machine
    takes longer to read a trust store, it goes to the next deadline there is, that of the whole story.
    """
    clock = trio.testing.MockClock(autojump_threshold=autojump_threshold)
    jump = clock.jump

    def jump_unless_a_thread_works(seconds):
        if not trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            jump(seconds)

    clock.jump = jump_unless_a_thread_works
    return clock
