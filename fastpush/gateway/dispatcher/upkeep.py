"""Keeping the tasks of one app from ending those of all others."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from fastpush.gateway.log import get_logger

__all__ = ["keep_up"]

logger = get_logger("fastpush.gateway.dispatcher")

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


async def keep_up(app: str, task: Callable[..., Awaitable[object]], *arguments: Any) -> None:
    """Run a task to its end; begin it anew, after a wait, each time that it fails."""
    wait = FIRST_WAIT
    while True:
        try:
            await task(*arguments)
            return
        except Exception as error:
            # Not its message: that of a KeyError may be a device token.
            calls = [call for one in _singles(error) for call in traceback.extract_tb(one.__traceback__)[-3:]]
            logger.error(
                "a task failed, and begins anew",
                app=app,
                task=getattr(task, "__qualname__", str(task)),
                error=", ".join(type(one).__name__ for one in _singles(error)),
                seconds=wait,
                calls=", ".join(f"{call.filename}:{call.lineno} in {call.name}" for call in calls),
            )
        await trio.sleep(wait)
        wait = min(LONGEST_WAIT, 2 * wait)


def _singles(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [single for inner in error.exceptions for single in _singles(inner)]
