"""`fastpush notices`: what the watchdog has to say, and whether it would be heard."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from fastpush.cli.control import Control, Where, gateway_options, run_with
from fastpush.cli.running import write_json

__all__ = ["notices"]

_WIDTH = 80
_BY = {"push": "APNs", "email": "SMTP", "opmanager": "HTTP", "webhook": "HTTP", "log": "log"}


@click.group()
def notices() -> None:
    """Show what the watchdog has to say, or try out whether it is heard."""


@notices.command("list")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_notices(where: Where, as_json: bool) -> None:
    """Show the notices that stand, the worst first, with the cure and who was told."""

    async def body(control: Control) -> int:
        answer: dict[str, Any] = await control.ask("GET", "/v1/notices")
        if as_json:
            write_json(answer)
            return 0
        for notice in answer["notices"]:
            click.echo(_paragraph(notice["title"], ""))
            click.echo(_paragraph(notice["body"], "    "))
            click.echo(_paragraph(f"-> {notice['cure']}", "    "))
            for told in notice["told"]:
                said = f": {told['detail']}" if told["detail"] else ""
                click.echo(_paragraph(f"{told['channel']} {told['state']}{said}", "      "))
        if not answer["notices"]:
            click.echo("Nothing to tell.")
        return 0

    run_with(where, body)


@notices.command("test")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def test_notices(where: Where, as_json: bool) -> None:
    """Send a marked trial by every channel, and say which APNs, SMTP or HTTP have taken.

    Exit code 1 says that one was not. The gateway must be running.
    """

    async def body(control: Control) -> int:
        answer: dict[str, Any] = await control.ask("POST", "/v1/notices/trials")
        if as_json:
            write_json(answer)
        else:
            for trial in answer["trials"]:
                mark = "ok" if trial["told"] else "FAILED"
                by = _BY.get(trial["channel"], "")
                lines = textwrap.wrap(trial["detail"], _WIDTH - 26, break_on_hyphens=False) or [""]
                click.echo(f"{mark:<7} {trial['channel']:<10} {by:<6} {lines[0]}")
                for more in lines[1:]:
                    click.echo(" " * 26 + more)
        return 0 if all(trial["told"] for trial in answer["trials"]) else 1

    run_with(where, body)


def _paragraph(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  " * bool(indent))
