"""The two ways to prove to APNs who is sending: a signing key (.p8) or a provider certificate.

Reading a file takes 1 ms (.p8) to 50 ms (.p12, whose password is stretched on purpose), and the first
`ssl_context` about 30 ms for the system's trusted certificates: under trio, call these in a thread
(`trio.to_thread.run_sync`). Everything else here returns at once and takes the time as an argument.

docs/credentials.md says how to get the files and what each error means.
"""

from __future__ import annotations

import abc
import base64
import datetime
import hashlib
import hmac
import json
import logging
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NoReturn, final

from cryptography import __version__ as _cryptography_version
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fastpush import _credential_files as files
from fastpush import _tls_context, _token_file
from fastpush._apple_certificate import AppleFields, apple_fields
from fastpush.errors import InvalidCredential

__all__ = [
    "MAX_CLOCK_OFFSET",
    "SLOT_SECONDS",
    "Credential",
    "ProviderCertificate",
    "SigningKey",
    "normal_environment",
]

logger = logging.getLogger(__name__)

SLOT_SECONDS = 1_800
"""Length of a provider token's slot: Apple wants a new one after 20 to 60 minutes."""

MAX_CLOCK_OFFSET = 86_400.0
"""Seconds by which the server's clock is followed when ours is behind: a wrong time zone, a missed day."""

# Apple, "Sending notification requests to APNs": a push type's suffix to the bundle id.
_TOPIC_SUFFIXES = (
    ".voip",
    ".voip-ptt",
    ".complication",
    ".pushkit.fileprovider",
    ".location-query",
    ".push-type.liveactivity",
    ".push-type.widgets",
    ".push-type.controls",
)
_LOCATION_SUFFIX = ".location-query"  # "The location push type supports only token-based authentication"

_ID = re.compile(r"[A-Z0-9]{10}", re.ASCII)
_KEY_FILE_NAME = re.compile(r"AuthKey_([A-Z0-9]{10})\.p8", re.ASCII)

_Path = str | os.PathLike[str]
_Octets = bytes | bytearray | memoryview | str


def normal_environment(name: str) -> str:
    """Give an environment its one name, "production" or "development"; "sandbox" stands for the latter.

    Raises:
      ValueError: there is no such environment.
    """
    if name in ("production", "development"):
        return name
    if name == "sandbox":
        return "development"
    raise ValueError(f'environment must be "production" or "development" (also "sandbox"), not {name!r:.40}')


class Credential(abc.ABC):
    """What `SigningKey` and `ProviderCertificate` have in common; nothing else is one.

    Credentials do not change, are safe to share between threads, equal when key (or certificate) and
    ids are, and refuse to be pickled: they would carry a private key to who knows where.

    Attributes:
      kind: "key" or "certificate".
      expires_at: end of its validity, UTC; None for a key, which has none.
      topics: the topics it covers, where the file (or whoever loaded it) says; else None.
      environments: likewise, of "production" and "development".
      fingerprint: SHA-256 in lower-case hexadecimal, of the certificate or of the public key.
      identity: a short name for people, without a secret.
    """

    __slots__ = ("_contexts", "_lock", "environments", "expires_at", "fingerprint", "identity", "topics")

    kind: Literal["key", "certificate"]
    expires_at: datetime.datetime | None
    topics: frozenset[str] | None
    environments: frozenset[str] | None
    fingerprint: str
    identity: str
    _contexts: dict[tuple[object, ...], ssl.SSLContext]
    _lock: threading.Lock

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is made by from_file or from_bytes")

    @abc.abstractmethod
    def authorization(self, now: float) -> tuple[int, bytes] | None:
        """Give what the `authorization` header is to say; None for a certificate, which needs none.

        Args:
          now: POSIX time in seconds.

        Returns:
          When the slot of the provider token began (its `iat`), and the header's value.
        """

    @abc.abstractmethod
    def _add_identity(self, context: ssl.SSLContext) -> None: ...

    def ssl_context(
        self, *, ca_file: _Path | None = None, ca_data: bytes | str | None = None
    ) -> ssl.SSLContext:
        """Give the context for TLS connections to APNs with this credential.

        A client context: TLS 1.2 or later, ALPN h2, certificate and host name of the server always
        verified. It is kept and shared by every caller, so leave it as it is. It is made anew when the
        trusted certificates on disk have changed.

        Args:
          ca_file: trusted certificates in PEM, instead of the system's.
          ca_data: the same from memory.

        Raises:
          InvalidCredential: there is no certificate in `ca_file` or `ca_data`, or OpenSSL does not take
            the client certificate.
        """
        wanted = _tls_context.trust_fingerprint(ca_file, ca_data)
        known = self._contexts.get(wanted)
        if known is not None:
            return known
        # Made without the lock: a new provider token must not wait for it.
        context = _tls_context.client_context(ca_file, ca_data)
        self._add_identity(context)
        with self._lock:
            if len(self._contexts) >= 8:  # about 1 MB each with the system's certificates
                self._contexts.clear()
            return self._contexts.setdefault(wanted, context)

    def check_topic(self, topic: str) -> None:
        """Refuse a topic that this credential surely does not cover.

        A topic with a push type's suffix passes where the bundle id itself is covered: whether APNs
        takes it is for APNs to say.

        Raises:
          InvalidCredential: naming the topics that it covers.
        """
        if self.topics is not None and topic not in self.topics and _bundle_id(topic) not in self.topics:
            raise InvalidCredential(
                f"{self.identity} does not cover the topic {topic!r:.200}; it covers {_listed(self.topics)}"
            )

    def check_environment(self, environment: str) -> None:
        """Refuse an environment that this credential surely does not cover.

        Raises:
          InvalidCredential: naming the environments that it covers.
          ValueError: there is no such environment.
        """
        environment = normal_environment(environment)
        if self.environments is not None and environment not in self.environments:
            raise InvalidCredential(
                f"{self.identity} is not for the {environment} environment, only for "
                f"{_listed(self.environments)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credential):
            return NotImplemented
        return (self.fingerprint, self.identity) == (other.fingerprint, other.identity)

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.identity))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.identity}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a private key and cannot be pickled or copied; "
            "load it in each process from its file"
        )


@final
class SigningKey(Credential):
    """A signing key of Apple's (.p8) and the provider tokens made with it.

    A provider token is a JWT (RFC 7519) signed with ES256 in JOSE form. Its `iat` is the wall clock
    floored to half an hour, and the signature is deterministic (RFC 6979), so that the same key gives
    the same octets in every connection, process and machine, and after every restart: APNs answers
    429 `TooManyProviderTokenUpdates` to those who mint more often than each 20 minutes.

    Deterministic signing needs `cryptography` 43 or later built against OpenSSL 3.2 or later, not in
    FIPS mode; the wheels on PyPI are built so. Elsewhere the processes of one user share the token in a
    file (`token_cache_dir`); where that fails too, each process has its own, and a warning is logged.

    Attributes:
      key_id: 10 characters, as Apple's page shows them.
      team_id: 10 characters.
      deterministic: whether signatures are (RFC 6979).
    """

    __slots__ = (
        "_anchor",
        "_current",
        "_key",
        "_monotonic",
        "_prefix",
        "_recent",
        "_token_directory",
        "_warned",
        "deterministic",
        "key_id",
        "team_id",
    )

    kind = "key"
    key_id: str
    team_id: str
    deterministic: bool
    _key: ec.EllipticCurvePrivateKey
    _prefix: bytes  # of every token: the encoded header and a dot
    _current: tuple[
        int, bytes
    ]  # slot and header value last used; replaced as a whole, so read without a lock
    _recent: dict[int, tuple[int, bytes]]  # the same by slot, for the last few
    _anchor: (
        tuple[float, float, float] | None
    )  # server's date, monotonic time of it, offset; see follow_clock
    _monotonic: Callable[[], float]
    _token_directory: Path | None
    _warned: bool

    @classmethod
    def from_file(
        cls,
        path: _Path,
        *,
        key_id: str | None = None,
        team_id: str,
        topics: Iterable[str] | None = None,
        environments: Iterable[str] | None = None,
        deterministic: bool | None = None,
        token_cache_dir: _Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> SigningKey:
        """Load a .p8 file, PEM or DER.

        Args:
          path: of the file.
          key_id: 10 upper-case letters and digits; None takes it from Apple's file name, AuthKey_<key id>.p8.
          team_id: 10 upper-case letters and digits.
          topics: those of a topic-specific key, for `check_topic`; None for a key of the whole team.
          environments: those the key is for, where it is limited; the file does not say.
          deterministic: None finds out; False shares tokens by file; True insists.
          token_cache_dir: where tokens are shared; by default in the user's cache directory.
          monotonic: a clock that nobody sets, in seconds; see `follow_clock`.

        Raises:
          InvalidCredential: naming what was found and the cure.
        """
        source = os.fspath(path)
        data = files.read_file(path, files.MAX_SIGNING_KEY_OCTETS)
        if key_id is None:
            named = _KEY_FILE_NAME.fullmatch(os.path.basename(source))
            if named is None:
                with files.wiped(data):
                    raise InvalidCredential(
                        f"{source}: give key_id; it is not in the file's name, as in AuthKey_<key id>.p8"
                    )
            key_id = named[1]
        return cls._load(
            data, source, key_id, team_id, topics, environments, deterministic, token_cache_dir, monotonic
        )

    @classmethod
    def from_bytes(
        cls,
        data: _Octets,
        *,
        key_id: str,
        team_id: str,
        topics: Iterable[str] | None = None,
        environments: Iterable[str] | None = None,
        deterministic: bool | None = None,
        token_cache_dir: _Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> SigningKey:
        """Load the content of a .p8 file, PEM or DER; all else as in `from_file`."""
        octets = files.octets_of(data)
        del data  # not to be seen among the locals of a traceback
        return cls._load(
            octets,
            "signing key",
            key_id,
            team_id,
            topics,
            environments,
            deterministic,
            token_cache_dir,
            monotonic,
        )

    @classmethod
    def _load(
        cls,
        data: bytearray,
        source: str,
        key_id: str,
        team_id: str,
        topics: Iterable[str] | None,
        environments: Iterable[str] | None,
        deterministic: bool | None,
        token_cache_dir: _Path | None,
        monotonic: Callable[[], float],
    ) -> SigningKey:
        with files.wiped(data):
            _check_id("key_id", key_id)
            _check_id("team_id", team_id)
            covered = None if topics is None else _checked_topics(topics)
            environments_covered = _checked_environments(environments)
            key = files.signing_key(data, source)

        self = object.__new__(cls)
        self._key = key
        self.key_id = key_id
        self.team_id = team_id
        self.topics = covered
        self.environments = environments_covered
        self.expires_at = None
        self.fingerprint = hashlib.sha256(
            key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest()
        self.identity = f"key {key_id} of team {team_id}"
        self.deterministic = _choose_signature(deterministic, source)
        self._token_directory = None if token_cache_dir is None else Path(token_cache_dir)
        self._warned = False
        self._monotonic = monotonic
        self._anchor = None
        header = json.dumps({"alg": "ES256", "kid": key_id}, separators=(",", ":")).encode()
        self._prefix = _base64url(header) + b"."
        self._recent = {}
        self._current = (_NEVER, b"")
        self._lock = threading.Lock()
        self._contexts = {}
        return self

    @property
    def clock_offset(self) -> float:
        """Seconds by which our clock was behind when `follow_clock` last found it so; else 0."""
        anchor = self._anchor
        return 0.0 if anchor is None else anchor[2]

    @property
    def token_issued_at(self) -> int | None:
        """The `iat` of the provider token that was given last, POSIX time; None before the first."""
        issued_at, token = self._current
        return issued_at if token else None

    def slot_of(self, now: float) -> int:
        """Give the start of the slot that `now` is in: the `iat` of the token to use.

        Args:
          now: POSIX time in seconds. The result is never later, unless `follow_clock` has found this
            clock behind the server's.
        """
        if not 0 <= now < _NEVER:  # also NaN
            raise ValueError(f"now must be POSIX time in seconds, not {now!r:.40}")
        anchor = self._anchor
        if anchor is not None:
            server_date, measured_at, _ = anchor
            server_now = server_date + (self._monotonic() - measured_at)
            if server_now > now:
                now = server_now
            else:  # somebody has set our clock right
                self._anchor = None
        return int(now // SLOT_SECONDS) * SLOT_SECONDS

    def authorization(self, now: float) -> tuple[int, bytes]:
        current = self._current
        if self._anchor is None and current[0] <= now < current[0] + SLOT_SECONDS:
            return current
        return self._authorization_of(self.slot_of(now))

    def provider_token(self, now: float) -> bytes:
        """Give the provider token of the slot that `now` is in: the bare JWT, without "bearer"."""
        return self.authorization(now)[1][len(_BEARER) :]

    def follow_clock(self, server_date: float, now: float) -> None:
        """Tell the key what APNs takes for the time, after it called a current token expired.

        If our clock is behind the server's by so much that the token is another one, slots go by the
        server's clock from now on, in every connection with this key. Time since the measurement is
        taken from the monotonic clock, so that the key is not led astray when somebody sets the wall
        clock right: then slots go by that again. A clock ahead of the server's is not followed, and
        neither is one behind by more than `MAX_CLOCK_OFFSET`.

        Args:
          server_date: POSIX time of the `date` field of the server's answer.
          now: POSIX time by our clock.
        """
        slot = self.slot_of(now)
        offset = server_date - now
        if not math.isfinite(offset):
            raise ValueError(f"server_date must be POSIX time in seconds, not {server_date!r:.40}")
        if offset <= 0:
            self._anchor = None
            return
        if offset > MAX_CLOCK_OFFSET or slot <= server_date < slot + SLOT_SECONDS:
            return
        self._anchor = (server_date, self._monotonic(), offset)
        logger.warning(
            "the clock of this machine is %d s behind that of APNs; provider tokens of %s follow APNs",
            offset,
            self.identity,
        )

    def replacement(
        self, refused_iat: int, now: float, server_date: float | None = None
    ) -> tuple[int, bytes] | None:
        """Give what to use after 403 `ExpiredProviderToken`, or None when no token of ours can do.

        A token of an older slot gives way to the current one. If the current one was refused our clock
        is behind: then the server's `date` decides, where there is one.

        Args:
          refused_iat: of the token that was refused.
          now: POSIX time by our clock.
          server_date: POSIX time of the answer's `date` field, if it has one.

        Returns:
          As `authorization`, of a later slot; None means `CredentialRefused`, naming the clock.
        """
        slot = self.slot_of(now)
        if slot <= refused_iat and server_date is not None:
            self.follow_clock(server_date, now)
            slot = self.slot_of(now)
        return self._authorization_of(slot) if slot > refused_iat else None

    def _authorization_of(self, slot: int) -> tuple[int, bytes]:
        with self._lock:
            known = self._recent.get(slot)
            if known is None:
                known = (slot, _BEARER + self._token_of(slot))
                # A few, since a clock that is being set may go back and forth over a border, and a
                # signature that is not deterministic must not be made twice.
                while len(self._recent) >= 4:
                    del self._recent[min(self._recent)]
                self._recent[slot] = known
            self._current = known
            return known

    def _token_of(self, slot: int) -> bytes:
        if self.deterministic:
            return self._sign(slot)
        try:
            return _token_file.shared_token(
                self._token_directory or _token_file.default_directory(),
                hashlib.sha256(f"{self.fingerprint} {self.key_id} {self.team_id}".encode()).hexdigest()[:32],
                slot,
                lambda: self._sign(slot),
                lambda token: self._signed_by_us(token, slot),
            )
        except _token_file.TokenDirectoryUnusable as problem:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "provider tokens of %s are not shared with other processes, so APNs may answer 429 "
                    "TooManyProviderTokenUpdates if there are several: %s",
                    self.identity,
                    problem,
                )
            return self._sign(slot)

    def _sign(self, slot: int) -> bytes:
        signed = self._signed_part(slot)
        algorithm = ec.ECDSA(SHA256(), deterministic_signing=self.deterministic)
        r, s = decode_dss_signature(self._key.sign(signed, algorithm))
        # RFC 7518 §3.4: the two integers side by side, 32 octets each; not DER.
        return signed + b"." + _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def _signed_part(self, slot: int) -> bytes:
        claims = json.dumps({"iss": self.team_id, "iat": slot}, separators=(",", ":")).encode()
        return self._prefix + _base64url(claims)

    def _signed_by_us(self, token: bytes, slot: int) -> bool:
        signed, _, encoded = token.rpartition(b".")
        if not hmac.compare_digest(signed, self._signed_part(slot)) or len(encoded) != 86:
            return False
        try:
            signature = base64.b64decode(encoded + b"==", b"-_", validate=True)
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            self._key.public_key().verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
        except (ValueError, InvalidSignature):
            return False
        # The last character carries two bits only: other spellings of the same signature are not ours.
        return _base64url(signature) == encoded

    def _add_identity(self, context: ssl.SSLContext) -> None:
        """Add none: APNs asks for a certificate on every connection, and an empty answer is right."""


@final
class ProviderCertificate(Credential):
    """A provider certificate of Apple's with its private key (.p12, or PEM).

    What it covers is read from the certificate (Apple's own fields, see docs/credentials.md). Where a
    field is missing, as in certificates made for tests, the attribute is None and nothing is refused.

    Attributes:
      default_topic: the bundle id, from the subject's UID; None if there is none.
      not_before: start of its validity, UTC.
      expires_at: end of its validity, UTC.
      serial: the serial number.
    """

    __slots__ = ("_identity", "default_topic", "not_before", "serial")

    kind = "certificate"
    expires_at: datetime.datetime
    default_topic: str | None
    not_before: datetime.datetime
    serial: int
    _identity: files.Identity

    @classmethod
    def from_file(
        cls,
        path: _Path,
        *,
        password: str | bytes | None = None,
        key_file: _Path | None = None,
        allow_expired: bool = False,
        now: float | None = None,
    ) -> ProviderCertificate:
        """Load a .p12 file, or certificate and key in PEM from one file or two.

        Further certificates in it are sent along as intermediates.

        Args:
          path: of the .p12, or of the certificate.
          password: of the .p12 or the key, where they have one.
          key_file: the private key, when `path` has none.
          allow_expired: also take a certificate that is expired or not valid yet by our clock. APNs
            is the judge, and a watchdog must be able to show such a one.
          now: POSIX time in seconds; by default the wall clock's.

        Raises:
          InvalidCredential: naming what was found and the cure.
        """
        secret = files.password_octets(password)
        del password  # neither this nor any key is to be seen among the locals of a traceback
        source = os.fspath(path)
        key_source = "" if key_file is None else os.fspath(key_file)
        limit = files.MAX_CERTIFICATE_OCTETS
        with files.wiped(secret), files.wiped(data := files.read_file(path, limit)):
            key_data = None if key_file is None else files.read_file(key_file, limit)
            identity = files.identity(data, source, key_data, key_source, secret)
        return cls._load(identity, source, allow_expired, now)

    @classmethod
    def from_bytes(
        cls,
        data: _Octets,
        *,
        password: str | bytes | None = None,
        key: _Octets | None = None,
        allow_expired: bool = False,
        now: float | None = None,
    ) -> ProviderCertificate:
        """Load the content of such files; `key` is that of `key_file`, all else as in `from_file`."""
        secret = files.password_octets(password)
        octets = files.octets_of(data)
        key_octets = None if key is None else files.octets_of(key)
        del data, key, password
        source = "provider certificate"
        identity = files.identity(octets, source, key_octets, "key", secret)
        return cls._load(identity, source, allow_expired, now)

    @classmethod
    def _load(
        cls, identity: files.Identity, source: str, allow_expired: bool, now: float | None
    ) -> ProviderCertificate:
        certificate = identity.certificate
        try:
            fields = apple_fields(certificate)
        except ValueError as error:
            raise InvalidCredential(
                f"{source}: the certificate's subject or extensions are damaged"
            ) from error
        if fields.signs_code:
            raise InvalidCredential(
                f"{source}: a certificate for signing apps, not for push; export the one named "
                '"Apple Push Services", or make it on Apple\'s page "Certificates"'
            )
        if not allow_expired:
            _check_validity(certificate, source, time.time() if now is None else now)

        self = object.__new__(cls)
        self._identity = identity
        self.default_topic = fields.default_topic
        self.topics = fields.topics
        self.environments = fields.environments
        self.not_before = certificate.not_valid_before_utc
        self.expires_at = certificate.not_valid_after_utc
        self.serial = certificate.serial_number
        self.fingerprint = certificate.fingerprint(SHA256()).hex()
        self.identity = (
            f"certificate {_certificate_name(certificate, fields)}, serial {self.serial:X}, "
            f"until {self.expires_at:%Y-%m-%d}"
        )
        self._lock = threading.Lock()
        self._contexts = {}
        return self

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """Further certificates of its file, which are sent along."""
        return self._identity.intermediates

    def authorization(self, now: float) -> None:
        return None

    def check_topic(self, topic: str) -> None:
        if topic.endswith(_LOCATION_SUFFIX):
            raise InvalidCredential(
                f"{self.identity} does not cover the topic {topic!r:.200}: APNs takes location pushes with a "
                "signing key only"
            )
        super().check_topic(topic)

    def _add_identity(self, context: ssl.SSLContext) -> None:
        _tls_context.load_identity(context, self._identity, self.identity)


_BEARER = b"bearer "
_NEVER = 2**53
"""Later than any time of day: the largest integer that a float counts up to."""


def _base64url(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


def _bundle_id(topic: str) -> str:
    for suffix in _TOPIC_SUFFIXES:
        if topic.endswith(suffix):
            return topic.removesuffix(suffix)
    return topic


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _check_id(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if _ID.fullmatch(value):
        return
    if len(value) != 10:
        found = f"has {len(value)} characters"
    elif _ID.fullmatch(value.upper()):
        found = "has lower-case letters"
    else:
        found = "has other characters"
    raise InvalidCredential(
        f"{name} must be 10 upper-case letters and digits, as Apple's pages show it; this one {found}"
    )


def _checked_topics(topics: Iterable[str]) -> frozenset[str]:
    if isinstance(topics, str):
        raise TypeError("topics must be several, not one str")
    return frozenset(topics)


def _checked_environments(environments: Iterable[str] | None) -> frozenset[str] | None:
    if environments is None:
        return None
    if isinstance(environments, str):
        environments = (environments,)
    return frozenset(map(normal_environment, environments)) or None


def _choose_signature(wanted: bool | None, source: str) -> bool:
    if wanted is False:
        return False
    try:
        ec.ECDSA(SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm as error:
        if wanted:
            raise InvalidCredential(
                f"{source}: cryptography {_cryptography_version} cannot sign deterministically here; "
                "that needs OpenSSL 3.2 or later, not in FIPS mode"
            ) from error
        return False
    return True


def _check_validity(certificate: x509.Certificate, source: str, now: float) -> None:
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if at > certificate.not_valid_after_utc:
        raise InvalidCredential(
            f"{source}: the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            f'renew it on Apple\'s page "Certificates" (our clock says {at:%Y-%m-%d %H:%M} UTC)'
        )
    if at < certificate.not_valid_before_utc:
        raise InvalidCredential(
            f"{source}: the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, "
            f"and our clock says {at:%Y-%m-%d %H:%M} UTC; set the clock"
        )


def _certificate_name(certificate: x509.Certificate, fields: AppleFields) -> str:
    if fields.default_topic is not None:
        return fields.default_topic
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else "without a name"
