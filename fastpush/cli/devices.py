"""`fastpush devices`: registered devices, listed and moved, and codes to enrol phones with."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

import click
import orjson
import trio

from fastpush.cli.control import Control, Refused, Where, gateway_options, run_with
from fastpush.cli.running import Failure, write_json
from fastpush.cli.tables import DURATION, day, table

__all__ = ["devices"]

READ_OCTETS = 256 << 10
SHOWN_PROBLEMS = 20
TYPES = {"csv": "text/csv", "ndjson": "application/x-ndjson"}

app_option = click.option("--app", help="The app; may be left out where there is only one.")
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(sorted(TYPES)),
    help="Without it: csv if the file is called so, else ndjson.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.group()
def devices() -> None:
    """List, import and export registered devices; enrol phones."""


@devices.command("list")
@app_option
@click.option("--user", help="Only this user's.")
@click.option("--tag", help="Only living ones with this tag.")
@click.option("--after", help="Begin behind this device token.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many."
)
@json_option
@gateway_options
def list_devices(
    where: Where,
    app: str | None,
    user: str | None,
    tag: str | None,
    after: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List devices in the order of their device tokens. Whole ones are in --json only."""

    async def body(control: Control) -> int:
        found = await control.ask("GET", "/v1/devices", app=app, user=user, tag=tag, after=after, limit=limit)
        if as_json:
            write_json(found)
            return 0
        if not found["devices"]:
            click.echo("There is no such device.")
            return 0
        click.echo(
            table(
                ("DEVICE TOKEN", "USER", "TAGS", "ENVIRONMENT", "REGISTERED", "STATE"),
                [
                    (
                        f"{device['device_token'][:4]}…{device['device_token'][-4:]}", device["user"],
                        " ".join(device["tags"]), device["environment"], day(device["registered_at"]),
                        device["dead_reason"] or "lives",
                    )
                    for device in found["devices"]
                ],
            )
        )  # fmt: skip
        if found["next"] is not None:
            click.echo(f"There are more: --after {found['next']}", err=True)
        return 0

    run_with(where, body)


@devices.command("import")
@click.argument("file", type=click.File("rb"))
@app_option
@format_option
@json_option
@gateway_options
def import_devices(where: Where, file: BinaryIO, app: str | None, form: str | None, as_json: bool) -> None:
    """Register the devices of FILE, CSV or NDJSON of any length; - is standard input.

    Wrong lines are told by their numbers, and the others are taken: the exit code is 1 then.
    """

    async def chunks() -> AsyncGenerator[bytes]:
        while chunk := await trio.to_thread.run_sync(file.read, READ_OCTETS, abandon_on_cancel=True):
            yield chunk

    async def body(control: Control) -> int:
        kind = TYPES[_form(form, str(getattr(file, "name", "-")))]
        try:
            async with control.stream("POST", "/v1/devices", chunks(), content_type=kind, app=app) as answer:
                done = orjson.loads(b"".join([part async for part in answer]))
        except Refused as refused:
            if "problems" not in refused.members:
                raise
            done = refused.members
        if as_json:
            write_json({name: done[name] for name in ("imported", "refused", "problems")})
        else:
            click.echo(f"Devices registered: {done['imported']:,}. Lines refused: {done['refused']:,}.")
            for problem in done["problems"][:SHOWN_PROBLEMS]:
                field = f" {problem['field']}" if problem["field"] else ""
                click.echo(f"line {problem['line']}:{field} {problem['detail']}", err=True)
            if done["refused"] > SHOWN_PROBLEMS:
                click.echo(f"and {done['refused'] - SHOWN_PROBLEMS:,} more", err=True)
        return 1 if done["refused"] else 0

    run_with(where, body)


@devices.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@app_option
@format_option
@click.option("--json", "as_json", is_flag=True, help="The same as --format ndjson.")
@gateway_options
def export(where: Where, file: Path, app: str | None, form: str | None, as_json: bool) -> None:
    """Write all living devices to FILE, in a form that `import` reads; - is standard output."""

    async def body(control: Control) -> int:
        chosen = "ndjson" if as_json else _form(form, str(file))
        async with control.stream("GET", f"/v1/devices.{chosen}", app=app) as answer:
            if str(file) == "-":
                standard = sys.stdout.buffer
                async for part in answer:
                    standard.write(part)
                standard.flush()
                return 0
            partial = file.with_name(file.name + ".partial")
            try:
                with _open_private(partial) as output:
                    async for part in answer:
                        output.write(part)
                partial.replace(file)
            except OSError as error:
                raise Failure(f"{file}: {error.strerror}") from error
            finally:
                partial.unlink(missing_ok=True)
        return 0

    run_with(where, body)


@devices.command()
@app_option
@click.option("--user", default="", help="Whose phone it is.")
@click.option("--tag", "tags", multiple=True, help="What it is granted; repeatable.")
@click.option(
    "--valid-for", type=DURATION, default="1d", show_default=True, help="30m, 12h or 7d; at most 30d."
)
@json_option
@gateway_options
def code(
    where: Where, app: str | None, user: str, tags: tuple[str, ...], valid_for: float, as_json: bool
) -> None:
    """Make an enrolment code: somebody types it into the app, once."""

    async def body(control: Control) -> int:
        wanted = {"app": app, "user": user, "tags": tags, "valid_for": valid_for}
        made = await control.ask("POST", "/v1/enrolment-codes", wanted)
        if as_json:
            write_json(made)
        else:
            click.echo(made["code"])
            click.echo(
                f"For one phone of {made['user'] or 'anybody'}, app {made['app']},"
                f" tags: {' '.join(made['tags']) or 'none'}; until {day(made['expires_at'])}.",
                err=True,
            )
        return 0

    run_with(where, body)


def _form(named: str | None, file: str) -> str:
    return named or ("csv" if file.lower().endswith(".csv") else "ndjson")


def _open_private(path: Path) -> BinaryIO:
    """Open a file to be written that nobody else may read: device tokens are people's."""
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))
