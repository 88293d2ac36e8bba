"""Credentials that came by HTTP, on disk: so that they survive a restart, until the configured files change.

Each lies in the *state directory*, readable by us only, with the digest of the configured files as they were
when it came. When these change it has served its time.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from fastpush.credentials import Credential, ProviderCertificate, SigningKey
from fastpush.errors import InvalidCredential
from fastpush.gateway.apps import Role
from fastpush.gateway.config import AppSettings, CredentialSettings, SecretUnusable
from fastpush.gateway.credential_files import digest_of, files_of, load_configured
from fastpush.gateway.log import get_logger

__all__ = ["KEPT", "UPLOAD", "Offer", "kept_credentials", "place_of", "publish", "write_draft"]

logger = get_logger("fastpush.gateway.uploads")

UPLOAD = "upload"
"""The source of such a credential, where others name their file."""
KEPT = "credential"
"""The name of its file."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A credential as it comes by HTTP, and as it lies in the state directory.

    Attributes:
      certificate: a .p12, or certificate (and key) in PEM.
      private_key: PEM, where `certificate` has none.
      password: of either.
      key: a .p8, with `key_id` and `team_id`.
      configured: digest of the configured files when this came.
    """

    certificate: bytes | None = None
    private_key: bytes | None = None
    password: str | None = None
    key: bytes | None = None
    key_id: str | None = None
    team_id: str | None = None
    configured: str = ""

    def __repr__(self) -> str:
        return "<Offer>"  # never what is in it

    def load(self, *, now: float | None = None, allow_expired: bool = False) -> Credential:
        """Make the credential. Raises InvalidCredential."""
        if (self.key is None) == (self.certificate is None):
            raise InvalidCredential("give either `certificate` or `key`")
        if self.key is not None:
            if self.key_id is None or self.team_id is None:
                raise InvalidCredential("`key` needs `key_id` and `team_id`")
            return SigningKey.from_bytes(self.key, key_id=self.key_id, team_id=self.team_id)
        assert self.certificate is not None
        return ProviderCertificate.from_bytes(
            self.certificate,
            password=self.password,
            key=self.private_key,
            allow_expired=allow_expired,
            now=now,
        )


def kept_credentials(
    apps: Mapping[str, AppSettings], directory: Path
) -> tuple[dict[str, Credential], dict[str, Credential]]:
    """Credentials that came by HTTP and still count, for the start: main ones and standbys, by app.

    Reads files.

    One whose configured files have changed since gives way, unless what is configured now cannot be used.
    """
    found: dict[Role, dict[str, Credential]] = {"main": {}, "standby": {}}
    for name, app in apps.items():
        roles: list[tuple[Role, CredentialSettings | None]] = [
            ("main", app.credential),
            ("standby", app.standby),
        ]
        for role, settings in roles:
            path = place_of(directory, name, role) / KEPT
            if settings is None or not path.exists():
                continue
            try:
                offer = msgspec.msgpack.decode(path.read_bytes(), type=Offer)
                credential = offer.load(allow_expired=True)
            except (OSError, msgspec.MsgspecError, InvalidCredential) as error:
                logger.error("an uploaded credential cannot be used any more", app=name, error=str(error))
                continue
            if offer.configured == digest_of(files_of(settings)) or not _is_usable(settings):
                found[role][name] = credential
            else:
                logger.info("the configured credential is newer than the uploaded one", app=name)
                shutil.rmtree(path.parent, ignore_errors=True)
    return found["main"], found["standby"]


def _is_usable(settings: CredentialSettings) -> bool:
    try:
        load_configured(settings, time.time())
    except (InvalidCredential, SecretUnusable, OSError):
        return False
    return True


def place_of(directory: Path, app: str, role: Role) -> Path:
    """Where an uploaded credential lies; names of apps may have dots, and none is a path."""
    return directory / f"{app.replace('/', '_')}.{role}"


def write_draft(place: Path, octets: bytes) -> Path:
    """Write a file that only we may read, and make it durable."""
    place.parent.mkdir(mode=0o700, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    for directory in (place.parent, place):
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            directory.chmod(0o700)
    draft = place / f".draft-{os.getpid()}"
    with suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    return draft


def publish(draft: Path, path: Path) -> None:
    """Put the draft in place of the file, in one step, and make that durable."""
    draft.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
