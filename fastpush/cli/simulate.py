"""`fastpush simulate`: the fake APNs on a port, with faults on request."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import click
import trio

from fastpush.cli.account import counted
from fastpush.cli.running import Misuse, alone, on_interrupt, run, write_json, write_note
from fastpush.simulator import PROFILES, Simulator, open_simulator

__all__ = ["simulate"]

KEY_ID = "SIMULATOR1"


class Files(NamedTuple):
    """What a sender needs, as files."""

    key: Path
    ca: Path
    certificate: Path


@click.command(epilog="Profiles of faults: " + ", ".join(sorted(PROFILES)) + ".")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=2_197,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--topic", "topics", multiple=True, help="Bundle id that may be pushed to; repeatable. Else any."
)
@click.option(
    "--environment",
    type=click.Choice(["production", "development"]),
    default="production",
    show_default=True,
    help="Which APNs to be.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="PROFILE",
    help="What goes wrong, by name (see below); repeatable.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that happens by chance.")
@click.option(
    "--ledger",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append each request to this file, a line of JSON each.",
)
@click.option(
    "--print-credentials",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a key, a certificate and the trust root there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print where it listens as one JSON object.")
def simulate(
    host: str,
    port: int,
    topics: tuple[str, ...],
    environment: str,
    faults: tuple[str, ...],
    seed: int,
    ledger: Path | None,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Be APNs on this machine, until Ctrl-C.

    It takes real TLS connections and answers as Apple documents it, without a phone behind it. The line
    that sends to it is printed.
    """
    if unknown := [name for name in faults if name not in PROFILES]:
        raise click.UsageError(
            f"--fault {unknown[0]}: no such profile; there are {', '.join(sorted(PROFILES))}."
        )

    async def main() -> int:
        listening = False
        try:
            async with (
                trio.open_nursery() as nursery,
                open_simulator(
                    host=host,
                    port=port,
                    topics=topics or None,
                    environment=cast(Literal["production", "development"], environment),
                    faults=faults,
                    seed=seed,
                    ledger="counts",
                    ledger_file=ledger,
                ) as simulator,
            ):
                listening = True
                interrupted = trio.Event()
                await nursery.start(on_interrupt, interrupted.set)
                files = write_files(simulator, folder, topics)
                announce(simulator, files, topics, faults, as_json=as_json)
                await interrupted.wait()
                nursery.cancel_scope.cancel()
                write_note(summary(simulator))
        except (OSError, BaseExceptionGroup) as failed:
            error = alone(failed)
            if listening or not isinstance(error, OSError):
                raise
            raise Misuse(
                f"cannot listen on {host}:{port}: {error.strerror or error}; --port 0 takes a free port"
            ) from None
        return 0

    with credentials_folder(directory) as folder:
        run(main)


@contextlib.contextmanager
def credentials_folder(directory: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that goes with the simulator."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="fastpush-simulate-") as temporary:
            yield Path(temporary)
    else:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Misuse(f"--print-credentials {directory}: {error.strerror}") from None
        yield directory


def write_files(simulator: Simulator, folder: Path, topics: tuple[str, ...]) -> Files:
    """Write what a sender needs: a signing key, a provider certificate, and what it shall trust."""
    key = simulator.issue_signing_key(key_id=KEY_ID)
    certificate = simulator.issue_provider_certificate(topics[0] if topics else None)
    files = Files(
        folder / f"AuthKey_{KEY_ID}.p8", folder / "simulator-ca.pem", folder / "simulator-certificate.pem"
    )
    write_secret(files.key, key.p8)
    write_secret(files.certificate, certificate.certificate_pem + certificate.key_pem)
    files.ca.write_bytes(simulator.ca_pem)
    return files


def write_secret(path: Path, octets: bytes) -> None:
    """Write a file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(octets)


def announce(
    simulator: Simulator,
    files: Files,
    topics: tuple[str, ...],
    faults: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Say where it listens, and what to type to send to it."""
    where: dict[str, Any] = {
        "host": simulator.host,
        "port": simulator.port,
        "environment": simulator.environment,
        "topics": list(topics) or None,
        "faults": list(faults),
        "key_file": str(files.key),
        "key_id": KEY_ID,
        "team_id": simulator.team_id,
        "ca_file": str(files.ca),
        "certificate_file": str(files.certificate),
    }
    if as_json:
        write_json(where)
        return
    click.echo(
        f"APNs ({simulator.environment}), simulated, on {simulator.host} port {simulator.port}\n"
        f"  topics: {', '.join(topics) or 'any'}\n"
        f"  faults: {', '.join(faults) or 'none'}\n"
        f"Send to it from another terminal; Ctrl-C ends it.\n\n" + example(where)
    )


def example(where: dict[str, Any]) -> str:
    """The `fastpush send` line for this simulator."""
    topic = where["topics"][0] if where["topics"] else "com.example.app"
    lines = [
        ["fastpush", "send", "--key", where["key_file"], "--team-id", where["team_id"]],
        ["--ca-file", where["ca_file"]],
        ["--host", where["host"], "--port", str(where["port"]), "--topic", topic],
        *([["--environment", where["environment"]]] if where["environment"] != "production" else []),
        ["--title", "Core switch down", "--body", "sw-core-01: no answer"],
        ["a1" * 32],
    ]
    return " \\\n    ".join(shlex.join(words) for words in lines)


def summary(simulator: Simulator) -> str:
    """One line on what it has seen."""
    statistics = simulator.statistics()
    fates = [f"{count:,} {fate}" for fate, count in statistics.fates.items() if count]
    return (
        f"{counted(statistics.requests, 'request')} on "
        f"{counted(statistics.connections_opened, 'connection')}: {', '.join(fates) or 'none'}"
    )
