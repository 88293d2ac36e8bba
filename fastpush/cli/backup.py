"""`fastpush backup`: one consistent copy of the gateway's file, also while it runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from fastpush.cli.control import Where, check_file, database_of, gateway_options
from fastpush.cli.running import Failure, write_json

__all__ = ["backup"]


@click.command()
@click.argument("destination", type=click.Path(path_type=Path))
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def backup(where: Where, destination: Path, as_json: bool) -> None:
    """Copy the gateway's file to DESTINATION, whether it runs or not.

    The copy is one consistent state, checked and flushed before it takes its
    place. An earlier backup there is replaced; any other file is not.
    """
    # SQLite lets another process read while the gateway writes: a gateway shut up in its own directories, as
    # under systemd, could not write to most places, and this costs it nothing.
    from fastpush.gateway.storage import StorageError, backup_database

    database = database_of(where)
    check_file(database)
    if destination.is_dir():
        destination /= f"{database.stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.db"
    started = time.perf_counter()
    try:
        octets = backup_database(database, destination)
    except StorageError as error:
        raise Failure(str(error)) from error
    seconds = time.perf_counter() - started
    told = os.fspath(destination.absolute())
    if as_json:
        write_json({"destination": told, "octets": octets, "seconds": round(seconds, 3)})
    else:
        click.echo(f"{told}: {octets:,} octets in {seconds:.1f} s")
