"""The options that say with what, and to which APNs: of `send` and `doctor`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

__all__ = ["Destination", "destination_options"]

_FILE = click.Path(dir_okay=False, path_type=Path)


class Destination(NamedTuple):
    """What was given: one credential, or parts of one, and where it is to be used."""

    key: Path | None
    key_id: str | None
    team_id: str | None
    certificate: Path | None
    certificate_key: Path | None
    password_file: Path | None
    topic: str | None
    environment: str
    host: str | None
    port: int | None
    ca_file: Path | None
    proxy: str | None


_OPTIONS: dict[str, dict[str, Any]] = {
    "--key": {"type": _FILE, "help": "Signing key, a .p8 file."},
    "--key-id": {"help": "Its id, where the file's name does not have it."},
    "--team-id": {"help": "The team that the key belongs to."},
    "--certificate": {"type": _FILE, "help": "Provider certificate instead of a key: .p12, or PEM."},
    "--certificate-key": {"type": _FILE, "help": "Its private key, where that is in a file of its own."},
    "--password-file": {
        "type": _FILE,
        "help": "File with the certificate's password; or set FASTPUSH_PASSWORD.",
    },
    "--topic": {"help": "The app's bundle id."},
    "--environment": {
        "type": click.Choice(["production", "development", "sandbox"]),
        "default": "production",
        "show_default": True,
        "help": "Development is for apps run from Xcode.",
    },
    "--host": {"help": "Another host than APNs."},
    "--port": {"type": click.IntRange(1, 65_535), "help": "Another port than 443."},
    "--ca-file": {"type": _FILE, "help": "Trust these authorities only (PEM)."},
    "--proxy": {"help": "http://… or socks5://… to go through."},
}


def destination_options(*, from_environment: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command these options, as its argument `destination`.

    Args:
      from_environment: what is not given is taken from FASTPUSH_KEY, FASTPUSH_TOPIC and so on.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(*arguments: Any, **given: Any) -> Any:
            destination = Destination(**{name: given.pop(name) for name in Destination._fields})
            return command(*arguments, destination=destination, **given)

        for name, settings in reversed(_OPTIONS.items()):
            variable = f"FASTPUSH_{name[2:].replace('-', '_').upper()}" if from_environment else None
            wrapped = click.option(name, envvar=variable, **settings)(wrapped)
        return wrapped

    return decorate
