"""Cancelling at each step: a trio instrument counts the steps of all tasks, and cancels at the n-th."""

import contextlib
import os

import trio
from trio.testing import wait_all_tasks_blocked


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes while `cancelling` is entered."""

    def __init__(self, at):
        self.at = at
        self.left = at
        self.scope = None

    def before_task_step(self, task):
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()

    @property
    def fired(self):
        return self.left <= 0

    @contextlib.contextmanager
    def cancelling(self):
        """A cancel scope of which `fired` says afterwards whether it was cancelled."""
        with trio.CancelScope() as self.scope:
            trio.lowlevel.add_instrument(self)
            try:
                yield self.scope
            finally:
                trio.lowlevel.remove_instrument(self)


async def at_each_step(scenario, *, least, most=400):
    """Run `scenario(steps)`, cancelled at its first step, at its second, and so on, until it is over before.

    Args:
      least: so many steps there must be, or the scenario does not do what it is meant to.
    """
    for at in range(1, most):
        steps = CancelAtStep(at)
        try:
            with trio.fail_after(300):
                await scenario(steps)
        except BaseException as error:
            error.add_note(f"cancelled at step {at}")
            raise
        if not steps.fired:
            break
    else:
        raise AssertionError(f"not over after {most} steps")
    assert at > least, f"over after {at} steps"
    return at


def open_descriptors():
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def living():
    """What is left when all have done what they can: descriptors and tasks."""
    await wait_all_tasks_blocked(0.002)
    return open_descriptors(), trio.lowlevel.current_statistics().tasks_living
