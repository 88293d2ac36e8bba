"""Ctrl-C while a command is still being imported ends it in one line; a program that imports us sees nothing.

Python's own handler would show a traceback from the middle of an import. This one holds from the first import
of the package until the command line takes over.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

__all__ = ["INTERRUPTED", "is_command", "leave", "take_over"]

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C has ended."""


def is_command(arguments: Sequence[str], original: Sequence[str]) -> bool:
    """Whether this process is `fastpush` or `python -m fastpush`, going by `sys.argv` and `sys.orig_argv`."""
    if not arguments:
        return False
    if arguments[0] == "-m":  # while Python looks for the module
        at = original.index("-m") if "-m" in original else len(original)
        return original[at + 1 : at + 2] == ["fastpush"]
    return os.path.basename(arguments[0]) == "fastpush"


def leave(number: int, frame: FrameType | None) -> None:
    """Nothing has begun yet, and nothing is to be cleaned up."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def take_over() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Where Ctrl-C is ignored, as in the background of a shell, it stays so.
if is_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
