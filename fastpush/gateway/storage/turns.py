"""Whose turn it is: Python's lock, between the writing thread and a busy one.

A thread that waits for the lock asks for it only when `sys.getswitchinterval()` has passed without anybody
letting go of it; each time that somebody does, it begins to wait anew (CPython, `take_gil` in
Python/ceval_gil.h). Python's own interval is 5 ms. A busy trio thread lets go at every system call, more
often than that, and takes the lock back before the other has woken: the writing thread then waits for
seconds, however short the commit. So it waits with an interval of its own.

The interval is the process's and not the thread's. With a short one the trio thread, too, would snatch the
lock from the writing thread in the middle of its work, and the two would hand it to and fro: a webhook then
cost 780 us of CPU and not 540. While the writing thread is at work in Python, the interval is therefore long.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

__all__ = ["LONG", "SHORT", "Turns"]

SHORT = 20e-6
LONG = 5e-3
PR_SET_TIMERSLACK = 29  # linux/prctl.h; nanoseconds


class Turns:
    """Held by the writing thread."""

    def __init__(self) -> None:
        self._before = sys.getswitchinterval()

    def begin(self) -> None:
        """Let the calling thread's waits end within a microsecond, not 50, where there is prctl(2)."""
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1_000, 0, 0, 0)

    def away(self) -> None:
        """It is about to wait, or to call SQLite: when it comes back it wants the lock soon."""
        sys.setswitchinterval(SHORT)

    def back(self) -> None:
        """It is at work in Python: let it."""
        sys.setswitchinterval(LONG)

    def end(self) -> None:
        sys.setswitchinterval(self._before)
