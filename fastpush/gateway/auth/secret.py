"""How keys look, and what is kept of them.

    fpk_7Gq2mXk9_4pJw…(43)…Qz0b1A2c
    │   │        │            └ CRC-32 of all before it, 6 digits of base 62
    │   │        └ the secret, 32 octets as 43 digits of base 62
    │   └ the key's id, public: lists, logs and the audit log name a key by it
    └ `fpk` a key for people and systems, `fpd` a phone's own secret

The fixed form and the checksum let scanners find a key that leaked into a repository or a log, without
asking us and without false alarms: `fp[kd]_[0-9A-Za-z]{8,16}_[0-9A-Za-z]{49}`. A mistyped key is told from a
wrong one.

Of the secret only SHA-256 is kept, over a label, the id and the secret. A slow hash as for passwords would
add nothing: those slow the guessing of what people choose, and nobody guesses 128 random bits.

Half of a phone's secret is drawn, the other half is a seal over it, made with a key that stays here. Phones
are too many to be in memory: a secret that somebody made up is told by its seal, and never costs a look at
the disk.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from binascii import crc32
from typing import Literal, NamedTuple

__all__ = [
    "CODE_DIGITS",
    "KEY",
    "Secret",
    "draw_code",
    "draw_sealed",
    "draw_secret",
    "is_sealed",
    "read_code",
    "read_secret",
]

Kind = Literal["fpk", "fpd"]

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_DIGITS = {"fpk": 8, "fpd": 16}  # a few hundred keys, and a million phones
SECRET_OCTETS, SECRET_DIGITS, CHECK_DIGITS = 32, 43, 6
KEY = re.compile(r"(fpk_[0-9A-Za-z]{8}|fpd_[0-9A-Za-z]{16})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})", re.ASCII)

CODE_DIGITS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Of enrolment codes: without 0 and O, 1, I and L, and U, which reads as V."""
CODE_ID, CODE_SECRET = 4, 6  # 810,000 names for codes that are valid at once, and 2**29 secrets for each
_CODE_FOLDED = str.maketrans({" ": None, "-": None})
_CODE = re.compile(f"[{CODE_DIGITS}]{{{CODE_ID + CODE_SECRET}}}")


class Secret(NamedTuple):
    """What a key says. Its repr is that of the id alone."""

    kind: Kind
    id: str
    secret: str

    def digest(self) -> bytes:
        """What is kept of it."""
        label = b"fastpush api key" if self.kind == "fpk" else b"fastpush device secret"
        return hashlib.sha256(b"%b\0%b\0%b" % (label, self.id.encode(), self.secret.encode())).digest()

    def is_of(self, digest: bytes) -> bool:
        """Whether this is the secret of which the digest was kept; takes as long for every wrong one."""
        return hmac.compare_digest(self.digest(), digest)

    def __repr__(self) -> str:
        return f"<Secret {self.id}>"

    def __str__(self) -> str:
        return f"<Secret {self.id}>"

    def text(self) -> str:
        """The whole key. To be shown once."""
        head = f"{self.id}_{self.secret}"
        return head + _checksum(head)


def draw_secret() -> Secret:
    """That of a new key."""
    return Secret("fpk", _draw_id("fpk"), _base62(secrets.token_bytes(SECRET_OCTETS), SECRET_DIGITS))


def draw_sealed(seal_key: bytes) -> Secret:
    """That of a phone."""
    name, drawn = _draw_id("fpd"), secrets.token_bytes(SECRET_OCTETS // 2)
    return Secret("fpd", name, _base62(drawn + _seal(seal_key, name, drawn), SECRET_DIGITS))


def is_sealed(secret: Secret, seal_key: bytes) -> bool:
    """Whether a phone's secret was drawn here."""
    number = 0
    for digit in secret.secret:
        number = number * 62 + DIGITS.index(digit)
    if number >> 8 * SECRET_OCTETS:
        return False
    octets = number.to_bytes(SECRET_OCTETS, "big")
    drawn, seal = octets[: SECRET_OCTETS // 2], octets[SECRET_OCTETS // 2 :]
    return hmac.compare_digest(_seal(seal_key, secret.id, drawn), seal)


def _draw_id(kind: Kind) -> str:
    return f"{kind}_" + "".join(secrets.choice(DIGITS) for _ in range(ID_DIGITS[kind]))


def _seal(seal_key: bytes, name: str, drawn: bytes) -> bytes:
    return hmac.digest(seal_key, b"fastpush seal\0" + name.encode() + drawn, "sha256")[: SECRET_OCTETS // 2]


def read_secret(text: str) -> Secret | None:
    """The parts of a key, or None for what cannot be one: another form, or a wrong checksum."""
    found = KEY.fullmatch(text)
    if found is None:
        return None
    name, secret, check = found.groups()
    if _checksum(f"{name}_{secret}") != check:
        return None
    return Secret("fpk" if name.startswith("fpk") else "fpd", name, secret)


def _checksum(head: str) -> str:
    return _base62(crc32(head.encode()).to_bytes(4, "big"), CHECK_DIGITS)


def _base62(octets: bytes, digits: int) -> str:
    number, text = int.from_bytes(octets, "big"), ""
    while number:
        number, digit = divmod(number, 62)
        text = DIGITS[digit] + text
    return text.rjust(digits, "0")


def draw_code() -> tuple[str, str]:
    """An enrolment code's id and secret; shown as `K7QM-3XPD9R`."""
    drawn = "".join(secrets.choice(CODE_DIGITS) for _ in range(CODE_ID + CODE_SECRET))
    return drawn[:CODE_ID], drawn[CODE_ID:]


def read_code(text: str) -> tuple[str, str] | None:
    """Id and secret of a code as people type it: in any case, with blanks and hyphens anywhere."""
    if len(text) > 40:
        return None
    folded = text.translate(_CODE_FOLDED).upper()
    if _CODE.fullmatch(folded) is None:
        return None
    return folded[:CODE_ID], folded[CODE_ID:]
