"""`fastpush demo`: everything on this machine, with nothing configured."""

from __future__ import annotations

import io
import logging
import signal
import sys
from typing import TYPE_CHECKING

import click
import trio

from fastpush.cli.running import Failure, alone, on_interrupt, run

if TYPE_CHECKING:
    from fastpush.gateway.demo import Stage

__all__ = ["demo"]


@click.command()
@click.option("--once", is_flag=True, help="End after the last scene, and do not wait for Ctrl-C.")
def demo(once: bool) -> None:
    """Show the gateway at work: a simulated APNs, a phone, and OpManager's alarms.

    Nothing is configured, and nothing is left behind.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    logging.getLogger("fastpush").setLevel(logging.ERROR)
    run(lambda: main(once=once))


async def main(*, once: bool) -> int:
    """Play all scenes, then go on until Ctrl-C."""
    from fastpush.gateway.demo import DemoFailed

    interrupted = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            playing = trio.CancelScope()

            def interrupt() -> None:
                interrupted.set()
                playing.cancel()

            # A closed terminal too: the gateway is a process of its own, and would stay.
            await nursery.start(on_interrupt, interrupt, signal.SIGHUP)
            with playing:
                await play(once=once)
            nursery.cancel_scope.cancel()
    except (DemoFailed, BaseExceptionGroup) as failed:
        error = alone(failed)
        if not isinstance(error, DemoFailed):
            raise
        raise Failure(f"the demo failed: {error}") from None
    return 0


async def play(*, once: bool) -> None:
    """Play the scenes; whatever ends it, the last line is the sum."""
    from fastpush.gateway.demo import SCENES, DemoFailed, closing, draw_all, open_stage, opening

    async with open_stage(say) as stage:
        try:
            opening(stage)
            for scene in SCENES:
                try:
                    await scene(stage)
                except (OSError, ExceptionGroup) as error:
                    raise DemoFailed(f"{alone(error)}; {stage.complaint()}") from error
            closing(stage)
            if not once:
                await draw_all(stage)
        finally:
            say(summary(stage))


def say(text: str) -> None:
    click.echo(text)


def summary(stage: Stage) -> str:
    """One line on all of it."""
    waiting = stage.alarms - stage.accepted - stage.lost
    return (
        f"{stage.alarms:,} alarm{'' if stage.alarms == 1 else 's'} accepted, {stage.accepted:,} delivered, "
        + (f"{waiting:,} waiting, " if waiting else "")
        + f"{stage.lost} lost, {stage.doubled} doubled (simulator's count)"
    )
