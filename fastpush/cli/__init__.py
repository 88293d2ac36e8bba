"""The command line: `fastpush send` and `fastpush simulate`.

Exit codes: 0 done, 1 something was rejected or failed, 2 used wrongly, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import click

from fastpush.cli.running import show_warnings
from fastpush.cli.send import send
from fastpush.cli.simulate import simulate

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="fastpush", message="%(prog)s %(version)s")
def main() -> None:
    """Send Apple push notifications, or pretend to be APNs."""
    show_warnings()


main.add_command(send)
main.add_command(simulate)
