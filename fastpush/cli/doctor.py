"""`fastpush doctor`: what is wrong, a line for each check, and the cure under each failure."""

from __future__ import annotations

import os
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from fastpush.cli.destination import Destination, destination_options
from fastpush.cli.running import run, write_json
from fastpush.credentials import normal_environment

if TYPE_CHECKING:
    from fastpush.gateway import doctor as checks

__all__ = ["doctor"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_MARKS = {"ok": "ok", "note": "note", "failed": "FAILED", "skipped": "-"}
_COLORS = {"ok": "green", "note": "yellow", "failed": "red", "skipped": None}
_INDENT = " " * 26
_WIDTH = 80


@click.command()
@click.option("--config", type=_FILE, envvar="FASTPUSH_CONFIG", help="The gateway's configuration.")
@destination_options(from_environment=False)
@click.option("--ingest-name", help="The host name by which OpManager knows the gateway.")
@click.option("--ingest-ca-file", type=_FILE, help="The authorities that OpManager trusts (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(
    config: Path | None,
    destination: Destination,
    ingest_name: str | None,
    ingest_ca_file: Path | None,
    as_json: bool,
) -> None:
    """Prove a configuration, or one credential, up to APNs' own answer.

    One line a check, with the cure under each failure. The request that is sent goes to a device token
    that is nobody's. Exit code 1 says that a check failed.
    """
    from fastpush.gateway import doctor as checks  # with all of the gateway

    if (config is not None) + (destination.key is not None) + (destination.certificate is not None) != 1:
        raise click.UsageError("Give --config, or --key with --team-id, or --certificate.")

    async def main() -> int:
        if config is not None:
            found = configured(config, ingest_name, ingest_ca_file)
        else:
            found = checks.examine(
                checks.Target(
                    topic=destination.topic,
                    environment="development"
                    if normal_environment(destination.environment) != "production"
                    else "production",
                    key_file=destination.key,
                    key_id=destination.key_id,
                    team_id=destination.team_id,
                    certificate_file=destination.certificate,
                    private_key_file=destination.certificate_key,
                    password_file=destination.password_file,
                    password=os.environ.get("FASTPUSH_PASSWORD"),
                    host=destination.host,
                    port=destination.port,
                    ca_file=destination.ca_file,
                    proxy=destination.proxy,
                )
            )
        return await show(found, as_json=as_json)

    run(main)


async def configured(
    path: Path, ingest_name: str | None, ingest_ca_file: Path | None
) -> AsyncIterator[checks.Check]:
    """The checks of a configuration; a mistake in it is a failed check too."""
    from fastpush.gateway import doctor as checks
    from fastpush.gateway.config import InvalidConfig, load_config

    try:
        config = load_config(path)
    except InvalidConfig as error:
        for mistake in error.mistakes:
            found, _, command = mistake.problem.partition("; ")
            cure = _cure(command)
            where = f"{mistake.where}:{mistake.line}" if mistake.line else mistake.where
            key = f"{mistake.key}: " if mistake.key else ""
            yield checks.Check("configuration", "failed", f"{where}: {key}{found}", cure)
        return
    yield checks.Check("configuration", "ok", str(path))
    async for check in checks.examine_config(config, name=ingest_name, ca_file=ingest_ca_file):
        yield check


def _cure(words: str) -> str:
    """As a sentence of its own; a command is given as it is to be typed."""
    if words.startswith(("chmod ", "chown ")):
        return f"Run: {words}"
    if not words:
        return "Correct it in the configuration."
    return words[:1].upper() + words[1:] + ("" if words.endswith(("?", ".")) else ".")


async def show(found: AsyncIterator[checks.Check], *, as_json: bool) -> int:
    """Print the checks as they come, and give the exit code."""
    all_of_them: list[checks.Check] = []
    about = ""
    async for check in found:
        all_of_them.append(check)
        if as_json:
            continue
        if check.about != about:
            about = check.about
            click.echo(f"\n{about}")
        click.echo(line_of(check))
    failed = sum(check.state == "failed" for check in all_of_them)
    if as_json:
        write_json({"failed": failed, "checks": [msgspec.to_builtins(check) for check in all_of_them]})
    else:
        click.echo(f"\n{failed} of {len(all_of_them)} checks failed." if failed else "\nAll is well.")
    return 1 if failed else 0


def line_of(check: checks.Check) -> str:
    """One check for a person, none of its lines wider than 80 columns."""
    mark = click.style(f"{_MARKS[check.state]:<7}", fg=_COLORS[check.state], bold=check.state == "failed")
    wrapped = textwrap.wrap(check.found, _WIDTH - len(_INDENT), break_on_hyphens=False) or [""]
    lines = [f"{mark} {check.name:<17} {wrapped[0]}", *(_INDENT + more for more in wrapped[1:])]
    if check.cure:
        cure = textwrap.wrap(check.cure, _WIDTH - len(_INDENT) - 3, break_on_hyphens=False)
        lines += [f"{_INDENT}-> {cure[0]}", *(f"{_INDENT}   {more}" for more in cure[1:])]
    return "\n".join(lines)
