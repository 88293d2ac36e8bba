"""The command line: `fastpush demo`, `serve`, `send` and the others.

Exit codes: 0 done, 1 something was rejected or failed, 2 used wrongly, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import click

from fastpush.cli.backup import backup
from fastpush.cli.bench import bench
from fastpush.cli.demo import demo
from fastpush.cli.devices import devices
from fastpush.cli.doctor import doctor
from fastpush.cli.keys import keys
from fastpush.cli.notices import notices
from fastpush.cli.outbox import outbox
from fastpush.cli.running import Program, show_warnings
from fastpush.cli.send import send
from fastpush.cli.serve import serve
from fastpush.cli.simulate import simulate

__all__ = ["main"]

WITH_LOG = {"demo", "serve"}
"""Commands with a log of their own; the others write the library's warnings as plain lines."""


def show_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """Print it and exit; in a checkout that is not installed there is none."""
    if not asked:
        return
    from importlib import metadata  # takes 40 ms

    try:
        version = metadata.version("fastpush")
    except metadata.PackageNotFoundError:
        version = "not installed, from its sources"
    click.echo(f"fastpush {version}")
    context.exit()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """Send Apple push notifications: by hand, or as a gateway; or pretend to be APNs."""
    if context.invoked_subcommand not in WITH_LOG:
        show_warnings()


main.add_command(backup)
main.add_command(bench)
main.add_command(devices)
main.add_command(demo)
main.add_command(doctor)
main.add_command(keys)
main.add_command(notices)
main.add_command(outbox)
main.add_command(send)
main.add_command(serve)
main.add_command(simulate)
