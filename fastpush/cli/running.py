"""What the commands share: running under trio with Ctrl-C as an ordinary event; failures in plain words."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click
import orjson
import trio

from fastpush._begun_as_command import INTERRUPTED, take_over

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What writing to a good file may come to: as `> /dev/full`."""


class Failure(click.ClickException):
    """Something did not work although the command was right: exit code 1."""

    exit_code = 1


class Misuse(click.ClickException):
    """The command, or a file that it names, is wrong: exit code 2."""

    exit_code = 2


class Program(click.Group):
    """All commands. However one of them ends, a traceback is of a mistake of ours and of nothing else."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and leave with its exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            take_over()
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.Abort:  # click's word for Ctrl-C
            self._tell("interrupted")
            code = INTERRUPTED
        except click.ClickException as failure:
            failure.show()
            code = failure.exit_code
        except OSError as error:
            if error.errno not in UNWRITABLE or error.filename is not None:
                raise
            self._tell(f"Error: cannot write: {error.strerror}")
            code = 1
        finally:
            let_go_of_output()
        sys.exit(code if isinstance(code, int) else 0)

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # the same disk may be behind standard error
            write_note(text)


def let_go_of_output() -> None:
    """Drop what standard output does not take, or Python would try once more at its end, and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run(function: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run an async function and leave with the code that it returns.

    A Ctrl-C before the function has begun to listen for it comes out of trio as a group of exceptions, and
    so does what standard output does not take.
    """
    try:
        code = trio.run(function)
    except BaseExceptionGroup as group:
        # Not `except*`: what is raised there leaves as a group again, on some versions of Python.
        only = alone(group)
        if isinstance(only, (KeyboardInterrupt, OSError, click.ClickException)):
            raise only from None
        raise
    if sys.stdout is not None:
        sys.stdout.flush()
    raise SystemExit(code)


def alone(error: BaseException) -> BaseException:
    """Take the one exception out of groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def on_interrupt(
    function: Callable[[], object],
    *more: signal.Signals,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `function` for each Ctrl-C or SIGTERM, and for each of `more`, which then do nothing else."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *more) as signals:
        task_status.started()
        async for _ in signals:
            function()


class _Troubles(logging.Handler):
    """Writes what the library warns of to standard error; the same words once a while."""

    EVERY = 10.0

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text, now = record.getMessage(), time.monotonic()
        self._told = {told: at for told, at in self._told.items() if now - at < self.EVERY}
        if text not in self._told:
            self._told[text] = now
            write_note(text)


def show_warnings() -> None:
    """Write the library's warnings to standard error, as plain lines, while the command runs."""
    logger = logging.getLogger("fastpush")
    handler, propagated = _Troubles(), logger.propagate

    def stop() -> None:
        logger.removeHandler(handler)
        logger.propagate = propagated

    logger.addHandler(handler)
    logger.propagate = False
    click.get_current_context().call_on_close(stop)


def write_json(value: dict[str, Any]) -> None:
    """Write one object to standard output, on one line."""
    click.echo(orjson.dumps(value))


def write_note(text: str) -> None:
    """Write a line for a person to standard error."""
    click.echo(text, err=True)
