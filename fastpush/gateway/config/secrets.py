"""Files that hold secrets: who may read them, and what is in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["SecretUnusable", "read_secret", "refusal"]

MAX_SECRET_OCTETS = 65_536


class SecretUnusable(ValueError):
    """The message names the file and the cure, never what is in it."""


def refusal(path: Path) -> str | None:
    """Say why a file may not hold a secret, and what to run; None where it may.

    The group may read it where the group is one of ours, as systemd and Kubernetes hand files out; others
    never. A symbolic link is followed: what counts is the file.
    """
    text = os.fspath(path)
    if "\n" in text or "-----BEGIN" in text:
        return "is the secret itself; put it into a file and name the file"
    try:
        found = path.stat()
    except OSError as error:
        return f"{text}: {error.strerror}"
    if stat.S_ISDIR(found.st_mode):
        return f"{text}: is a directory"
    ours = os.geteuid()
    if ours and found.st_uid not in (0, ours):
        return f"{text}: belongs to another user (id {found.st_uid}); chown {ours} {text}"
    if found.st_mode & 0o007:
        return f"{text}: everybody may read or write it (mode {found.st_mode & 0o777:04o}); chmod o= {text}"
    if found.st_mode & 0o070:
        if found.st_gid not in {os.getegid(), *os.getgroups()}:
            return f"{text}: a group that is not ours may read it (id {found.st_gid}); chmod 600 {text}"
        if found.st_mode & 0o020:
            return f"{text}: its group may write it (mode {found.st_mode & 0o777:04o}); chmod g-w {text}"
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        return f"{text}: we may not read it (user id {ours}); chown {ours} {text}"
    return None


def read_secret(path: Path) -> str:
    """Read a password, key or URL from its file; white space around it does not count.

    Raises:
      SecretUnusable: it may not be used, is empty, too large, or no text.
    """
    reason = refusal(path)
    if reason is not None:
        raise SecretUnusable(reason)
    try:
        with path.open("rb") as file:
            octets = file.read(MAX_SECRET_OCTETS + 1)
        text = octets.decode().strip()
    except OSError as error:
        raise SecretUnusable(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SecretUnusable(f"{path}: is not text in UTF-8") from None
    if len(octets) > MAX_SECRET_OCTETS:
        raise SecretUnusable(f"{path}: is larger than {MAX_SECRET_OCTETS:,} octets")
    if not text:
        raise SecretUnusable(f"{path}: is empty")
    return text
