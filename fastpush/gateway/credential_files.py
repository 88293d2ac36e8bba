"""The files that a configured credential is made of: which they are, what is in them, where they change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fastpush.credentials import Credential, ProviderCertificate, SigningKey
from fastpush.errors import InvalidCredential
from fastpush.gateway.config import CredentialSettings, read_secret

__all__ = ["digest_of", "directories_of", "files_of", "load_configured"]

MAX_OCTETS = 1 << 20


def load_configured(settings: CredentialSettings, now: float) -> Credential:
    """Load what is configured, with its time looked at.

    Raises:
      InvalidCredential, SecretUnusable, OSError
    """
    if settings.key_file is not None:
        if settings.team_id is None:
            raise InvalidCredential("key_file needs team_id")
        return SigningKey.from_file(settings.key_file, key_id=settings.key_id, team_id=settings.team_id)
    if settings.certificate_file is None:
        raise InvalidCredential("neither key_file nor certificate_file is given")
    password = None if settings.password_file is None else read_secret(settings.password_file)
    return ProviderCertificate.from_file(
        settings.certificate_file, password=password, key_file=settings.private_key_file, now=now
    )


def files_of(settings: CredentialSettings) -> tuple[Path, ...]:
    """The files that a credential is made of."""
    named = (
        settings.key_file,
        settings.certificate_file,
        settings.private_key_file,
        settings.password_file,
    )
    return tuple(Path(path) for path in named if path is not None)


def digest_of(paths: Iterable[Path]) -> str:
    """What changes when the content of any of these files does, or when one comes or goes."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                octets = file.read(MAX_OCTETS + 1)
        except OSError as error:
            digest.update(b"error %d;" % (error.errno or 0))
        else:
            digest.update(b"%d;" % len(octets) + hashlib.sha256(octets).digest())
    return digest.hexdigest()


def directories_of(paths: Iterable[Path]) -> frozenset[Path]:
    """The directories in which a change may change what the paths lead to: along every symbolic link."""
    found = set()
    for path in paths:
        current = Path(os.path.abspath(path))
        for _ in range(40):  # as many links as the kernel follows
            for parent in (current, *current.parents):
                # Kubernetes: the file is a link into `..data`, which is the link that is swapped.
                if parent.is_symlink():
                    found.add(parent.parent)
            found.add(current.parent)
            try:
                target = os.readlink(current)
            except OSError:
                break
            current = Path(os.path.abspath(current.parent / target))
        with suppress(OSError):
            found.add(current.resolve().parent)
    return frozenset(directory for directory in found if directory.is_dir())
