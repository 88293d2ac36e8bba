"""`fastpush serve`: the gateway, under a supervisor or by hand."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import trio

from fastpush.cli.running import Failure, Misuse, alone, run

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from fastpush.gateway.config import Config
    from fastpush.gateway.serve import Service
    from fastpush.gateway.supervisor import Notifier

__all__ = ["serve"]


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="FASTPUSH_CONFIG",
    help="The configuration; without it everything comes from the environment.",
)
@click.option("--check", is_flag=True, help="Only tell what is wrong with the configuration.")
def serve(file: Path | None, check: bool) -> None:
    """Run the gateway until SIGTERM or Ctrl-C.

    SIGHUP reads the configuration again. docs/configuration.md has its options, docs/serve.md the rest.
    """
    if check:
        check_only(file)
    from fastpush.gateway.supervisor import Notifier, inherited_sockets

    inherited, notifier = inherited_sockets(), Notifier()
    config = load(file)
    from fastpush.gateway.log import open_log
    from fastpush.gateway.serve import Service

    with open_log(config.log.level, config.log.format):
        run(partial(main, file, Service(config, inherited=inherited), notifier))


def load(file: Path | None) -> Config:
    """Read the configuration; what is wrong is the command's fault, a line for each mistake."""
    from fastpush.gateway.config import InvalidConfig, load_config

    try:
        return load_config(file)
    except InvalidConfig as error:
        raise Misuse(str(error)) from None


def check_only(file: Path | None) -> NoReturn:
    """Say what is wrong, and leave: 2 for the configuration itself, 1 for what it names, or 0."""
    from fastpush.gateway.serve import check

    troubles = check(load(file))
    if troubles:
        raise Failure("\n".join(troubles))
    click.echo(f"{file or 'the environment'}: good")
    raise SystemExit(0)


async def main(file: Path | None, service: Service, notifier: Notifier) -> int:
    """Serve until a signal ends it, and return the exit code."""
    from fastpush.gateway.log import get_logger
    from fastpush.gateway.serve import StartFailed
    from fastpush.gateway.storage import StorageBroken

    log = get_logger("fastpush.gateway.serve")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen_to_signals, file, service, notifier, log)
            async with trio.open_nursery() as serving:
                started = await serving.start(service.run)
                log.info(
                    "started",
                    pid=os.getpid(),
                    ingest=", ".join(started.ingest),
                    admin=", ".join(started.admin),
                    apps=", ".join(service.config.apps),
                )
                notifier.tell("READY=1", "STATUS=serving")
                nursery.start_soon(notifier.beat)
            nursery.cancel_scope.cancel()
    except (StartFailed, StorageBroken, BaseExceptionGroup) as failed:
        error = alone(failed)
        if not isinstance(error, (StartFailed, StorageBroken)):
            raise
        raise Failure(str(error)) from None
    if service.cut_short:
        log.warning("ended before all was answered; what was accepted is sent after the next start")
        return 1
    log.info("ended")
    return 0


async def listen_to_signals(
    file: Path | None, service: Service, notifier: Notifier, log: BoundLogger
) -> None:
    """SIGTERM and Ctrl-C end the service, a second one at once; SIGHUP reads the configuration again."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                if not service.draining:
                    notifier.tell("STOPPING=1")
                    log.info("ending: what is in flight comes to its end", signal=signal.Signals(number).name)
                service.stop()
            elif service.started and not service.draining:
                notifier.reloading()
                await reload(file, service, log)
                notifier.tell("READY=1")


async def reload(file: Path | None, service: Service, log: BoundLogger) -> None:
    """Read the configuration again, and go by it as far as possible."""
    from fastpush.gateway.config import InvalidConfig, load_config

    try:
        config = await trio.to_thread.run_sync(load_config, file)
    except InvalidConfig as error:
        for mistake in error.mistakes:
            log.error("the configuration has a mistake and stays as it was", error=str(mistake))
        return
    changes = await service.reload(config)
    for change in changes:
        tell = log.info if change.result == "changed" else log.warning
        tell(
            "configuration read again", option=change.key, result=change.result, reason=change.reason or None
        )
    if not changes:
        log.info("configuration read again", result="nothing has changed")
