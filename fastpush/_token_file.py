"""One provider token for all processes of a user, where signatures are not deterministic.

One file per key and slot, in a directory that only the user can enter. Whoever finds none signs one
while holding a lock; whoever finds one uses it, after checking its signature: what somebody else wrote
there is never sent. Reading takes no lock, since a file appears whole or not at all (rename).
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["TokenDirectoryUnusable", "default_directory", "shared_token"]

MAX_TOKEN_OCTETS = 1_024
LOCK_PATIENCE = 1.0
LOCK_LOOK = 0.002  # seconds; flock has no limit of its own, and a lock is held for one read or write
"""Seconds to wait for another process that is signing. Signing takes well under a millisecond, so this
runs out only when that process was stopped in between."""


class TokenDirectoryUnusable(Exception):
    """The message says why; it holds no secret."""


def default_directory() -> Path:
    """Give $XDG_CACHE_HOME/fastpush/provider-tokens, the same under ~/.cache, or one in /tmp."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        home = os.path.expanduser("~")
        if not os.access(home, os.W_OK) or home == "/":  # a service without a home
            return Path(tempfile.gettempdir(), f"fastpush-{os.geteuid()}")
        cache = os.path.join(home, ".cache")
    return Path(cache, "fastpush", "provider-tokens")


def shared_token(
    directory: Path, name: str, slot: int, sign: Callable[[], bytes], is_ours: Callable[[bytes], bool]
) -> bytes:
    """Give the token of a slot that all processes of this user share.

    Args:
      directory: made when missing; must belong to the user, with no rights for others.
      name: tells keys apart; letters and digits.
      slot: start of the slot, POSIX seconds.
      sign: makes a token, when there is none.
      is_ours: whether octets found in the file are a token of this key and slot.

    Raises:
      TokenDirectoryUnusable: nothing was written, or what was written is of no use to the others.
    """
    path = directory / f"{name}.{slot}.jwt"
    try:
        _check_directory(directory)
        token = _read(path)
        if token is None or not is_ours(token):
            with _locked(directory / f"{name}.lock"):
                token = _read(path)
                if token is None or not is_ours(token):
                    token = sign()
                    _write(path, token)
                    _remove_older(directory, name, slot)
    except OSError as error:
        raise TokenDirectoryUnusable(
            f"{error.filename or directory}: {error.strerror or type(error).__name__}"
        ) from error
    return token


def _check_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise TokenDirectoryUnusable(f"{directory}: is not a directory")
    if found.st_uid != os.geteuid():
        raise TokenDirectoryUnusable(f"{directory}: belongs to another user")
    if found.st_mode & 0o077:
        raise TokenDirectoryUnusable(
            f"{directory}: others have rights in it (mode {found.st_mode & 0o777:04o}, must be 0700)"
        )


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        return file.read(MAX_TOKEN_OCTETS)


def _write(path: Path, token: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(token)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_older(directory: Path, name: str, slot: int) -> None:
    """Remove what is two hours old: by then no clock that APNs would put up with is in that slot."""
    for path in directory.glob(f"{name}.*.jwt"):
        start = path.name.split(".")[1]
        if start.isdecimal() and int(start) < slot - 7_200:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # POSIX only, as is this package; kept here so that the rest imports anywhere

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TokenDirectoryUnusable(
                        f"{path}: held by another process for more than {LOCK_PATIENCE:g} s"
                    ) from None
                time.sleep(LOCK_LOOK)
        yield
    finally:
        os.close(descriptor)  # and with it the lock
