"""`fastpush outbox`: what waits to be sent, and an operator's hand on it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from fastpush.cli.control import Control, Where, gateway_options, quote, run_with
from fastpush.cli.running import Misuse, write_json

__all__ = ["outbox"]

APP_COLUMNS = 34


@click.group()
def outbox() -> None:
    """Look at what waits to be sent; pause, resume or purge an app.

    It works on a running gateway and on a stopped one.
    """


def json_option(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


@outbox.command("list")
@gateway_options
@json_option
def list_(where: Where, as_json: bool) -> None:
    """Show what waits, by app."""

    async def body(control: Control) -> int:
        found = await control.ask("GET", "/v1/outbox")
        if as_json:
            write_json(found)
        else:
            show(found, running=control.running)
        return 0

    run_with(where, body)


@outbox.command()
@click.argument("app")
@gateway_options
@json_option
def pause(where: Where, app: str, as_json: bool) -> None:
    """Send nothing of APP until it is resumed; accepting goes on."""
    change(where, app, "pause", as_json)


@outbox.command()
@click.argument("app")
@gateway_options
@json_option
def resume(where: Where, app: str, as_json: bool) -> None:
    """Send what waits of APP again."""
    change(where, app, "resume", as_json)


@outbox.command()
@click.argument("app")
@click.option("--yes", is_flag=True, help="Do not ask.")
@gateway_options
@json_option
def purge(where: Where, app: str, yes: bool, as_json: bool) -> None:
    """End all that waits of APP, unsent.

    Each ends as failed, with the reason "Purged". What is in flight gets its own
    end. It cannot be undone.
    """
    if not yes and not sys.stdin.isatty():
        raise Misuse("it cannot be undone: say --yes where nobody can be asked")
    if not yes:
        click.confirm(f"End all that waits of {app}, unsent?", abort=True, err=True)

    async def body(control: Control) -> int:
        done = await control.ask("POST", f"/v1/outbox/{quote(app, safe='')}/purge")
        if as_json:
            write_json(done)
        else:
            click.echo(f"{app}: {done['purged']:,} ended unsent")
        return 0

    run_with(where, body)


def change(where: Where, app: str, action: str, as_json: bool) -> None:
    async def body(control: Control) -> int:
        done = await control.ask("POST", f"/v1/outbox/{quote(app, safe='')}/{action}")
        if as_json:
            write_json(done)
        else:
            state = "paused" if done["paused"] else "sending" if control.running else "to be sent"
            click.echo(f"{app}: {state}, {done['waiting']:,} waiting")
        return 0

    run_with(where, body)


def show(found: dict[str, Any], *, running: bool) -> None:
    """A line for each app, and what is wrong."""
    if not running:
        click.echo("The gateway is stopped.", err=True)
    if not found["apps"]:
        click.echo("Nothing was accepted yet.")
        return
    click.echo(f"{'app':{APP_COLUMNS}} {'waiting':>12} {'fan-outs':>8} {'oldest':>9}  state")
    now = time.time()
    for app in found["apps"]:
        name, oldest = app["app"], app["oldest_at"]
        if len(name) > APP_COLUMNS:
            name = name[: APP_COLUMNS - 1] + "…"
        click.echo(
            f"{name:{APP_COLUMNS}} {app['waiting']:>12,} {app['fanouts']:>8,} "
            f"{'' if oldest is None else age(now - oldest):>9}  {'paused' if app['paused'] else ''}".rstrip()
        )
    if found["disk_full"]:
        click.echo("The disk is nearly full: nothing new is accepted.", err=True)


def age(seconds: float) -> str:
    """Three digits at most, and a unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
