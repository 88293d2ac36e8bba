"""`fastpush keys`: keys of people and systems are made, listed and revoked."""

from __future__ import annotations

import time
from typing import Any

import click

from fastpush.cli.control import Control, Where, gateway_options, quote, run_with
from fastpush.cli.running import write_json
from fastpush.cli.tables import EXPIRY, day, table

__all__ = ["keys"]

SCOPES = ("notify", "devices", "alarms", "admin", "console")


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that senders and people use."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="What it may do; repeatable.",
)
@click.option("--app", "apps", multiple=True, help="Only for this app; repeatable. Without it: all.")
@click.option("--expires", type=EXPIRY, default="365d", show_default=True, help="365d, 2027-12-31 or never.")
@click.option("--signed", is_flag=True, help="Requests carry a signature in place of the key.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@gateway_options
def create(
    where: Where,
    name: str,
    scopes: tuple[str, ...],
    apps: tuple[str, ...],
    expires: float | None,
    signed: bool,
    as_json: bool,
) -> None:
    """Make a key for NAME, a person or a system, and show it: this once."""
    wanted = {
        "name": name,
        "scopes": scopes,
        "apps": apps or None,
        "expires_at": expires,
        "signed": signed,
    }

    async def body(control: Control) -> int:
        created = await control.ask("POST", "/v1/keys", wanted)
        if as_json:
            write_json(created)
            return 0
        click.echo(created["secret"])
        if signed:
            told = f"Signing secret of {name}. Sign each request, with {created['key_id']} in place of a key."
        else:
            told = f"Key of {name}, with the id {created['key_id']}."
        click.echo(f"{told} Expires: {day(expires, 'never')}. It is not shown again.", err=True)
        return 0

    run_with(where, body)


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are revoked or have expired.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@gateway_options
def list_keys(where: Where, everything: bool, as_json: bool) -> None:
    """List the keys that are good."""

    async def body(control: Control) -> int:
        found = (await control.ask("GET", "/v1/keys"))["keys"]
        now = time.time()
        shown = [key for key in found if everything or _state(key, now) not in ("revoked", "expired")]
        if as_json:
            write_json({"keys": shown})
            return 0
        if not shown:
            click.echo("There is no key. `fastpush keys create NAME --scope notify` makes one.")
            return 0
        click.echo(
            table(
                ("ID", "NAME", "SCOPES", "APPS", "EXPIRES", "LAST USED"),
                [
                    (
                        key["key_id"], key["name"],
                        " ".join(key["scopes"]) + (" (signs)" if key["signed"] else ""),
                        "all" if key["apps"] is None else " ".join(key["apps"]),
                        _state(key, now), day(key["last_used_at"], "never"),
                    )
                    for key in shown
                ],
            )
        )  # fmt: skip
        return 0

    run_with(where, body)


@keys.command()
@click.argument("key_id")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@gateway_options
def revoke(where: Where, key_id: str, as_json: bool) -> None:
    """Let the key with the id KEY_ID be good for nothing, at once."""

    async def body(control: Control) -> int:
        # Somebody may paste the whole key; its first part is the id.
        revoked = await control.ask("DELETE", f"/v1/keys/{quote('_'.join(key_id.split('_')[:2]))}")
        if as_json:
            write_json(revoked)
        else:
            click.echo(f"{revoked['key_id']} ({revoked['name']}) is revoked.")
        return 0

    run_with(where, body)


def _state(key: dict[str, Any], now: float) -> str:
    """Its last day, or that it is over."""
    if key["revoked_at"] is not None:
        return "revoked"
    if key["expires_at"] is not None and key["expires_at"] <= now:
        return "expired"
    return day(key["expires_at"], "never")
