"""What Apple would answer: one pure function from a request and what is known to a verdict.

Sources: Apple, "Sending notification requests to APNs", "Handling notification responses from APNs",
"Establishing a token-based connection to APNs", "Establishing a certificate-based connection to APNs".
Apple does not publish the order of its checks. Here it is that of `judge`, from the outside in: method,
path, repeated headers, credential, device token, headers, topic, payload, and last the device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

from fastpush.simulator.provider_tokens import Claims, TokenRefused, TrustedKey, read_provider_token

__all__ = [
    "MAX_COLLAPSE_ID_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_VOIP_PAYLOAD_BYTES",
    "REASONS",
    "SUFFIXES",
    "Binding",
    "Certificate",
    "Device",
    "Environment",
    "Malformed",
    "Request",
    "Verdict",
    "World",
    "judge",
    "read_request",
]

Environment: TypeAlias = Literal["production", "development"]
Field: TypeAlias = tuple[bytes, bytes]

MAX_COLLAPSE_ID_BYTES = 64
MAX_PAYLOAD_BYTES = 4096
MAX_VOIP_PAYLOAD_BYTES = 5120
MAX_TOPIC_BYTES = 255

PROVIDER_TOKEN_GOOD_FOR = 3_600.0
"""Seconds after `iat`; an older provider token is expired."""
PROVIDER_TOKEN_RENEWED_AFTER = 1_200
"""Seconds between the `iat` of two provider tokens on one connection; a sooner one is one update too many."""

SUFFIXES: Mapping[str, str] = {
    "alert": "",
    "background": "",
    "voip": ".voip",
    "complication": ".complication",
    "fileprovider": ".pushkit.fileprovider",
    "mdm": "",
    "location": ".location-query",
    "liveactivity": ".push-type.liveactivity",
    "pushtotalk": ".voip-ptt",
    "widgets": ".push-type.widgets",
    "controls": ".push-type.controls",
}
"""The known push types, each with what its topic ends in."""

REASONS: Mapping[str, int] = {
    "BadCertificate": 403,
    "BadCertificateEnvironment": 403,
    "BadCollapseId": 400,
    "BadDeviceToken": 400,
    "BadEnvironmentKeyIdInToken": 403,
    "BadExpirationDate": 400,
    "BadMessageId": 400,
    "BadPath": 404,
    "BadPriority": 400,
    "BadTopic": 400,
    "DeviceTokenNotForTopic": 400,
    "DuplicateHeaders": 400,
    "ExpiredProviderToken": 403,
    "ExpiredToken": 410,
    "Forbidden": 403,
    "IdleTimeout": 400,
    "InternalServerError": 500,
    "InvalidProviderToken": 403,
    "InvalidPushType": 400,
    "MethodNotAllowed": 405,
    "MissingDeviceToken": 400,
    "MissingProviderToken": 403,
    "MissingTopic": 400,
    "PayloadEmpty": 400,
    "PayloadTooLarge": 413,
    "ServiceUnavailable": 503,
    "Shutdown": 503,
    "TooManyProviderTokenUpdates": 429,
    "TooManyRequests": 429,
    "TopicDisallowed": 400,
    "UnrelatedKeyIdInToken": 403,
    "Unregistered": 410,
}
"""Every reason of Apple's table, with its status."""

_PATH_PREFIX = b"/3/device/"
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2})+")
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TOPIC = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXPIRATION = re.compile(rb"[0-9]{1,18}")
_PRIORITIES = (b"10", b"5", b"1")
_PSEUDO = (b":method", b":scheme", b":authority", b":path")
_CONNECTION_SPECIFIC = (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
_BAD_IN_VALUE = re.compile(rb"[\x00\r\n]")
_BAD_IN_NAME = re.compile(rb"[^!-9;-@\[-~]")


class Malformed(Exception):
    """A request that is no HTTP/2 message (RFC 9113 §8.1.1): a stream error, never an answer."""


class Request(NamedTuple):
    """One whole request, its fields taken apart."""

    method: bytes
    path: bytes
    headers: Mapping[bytes, bytes]
    """The regular fields; of a repeated one the first."""
    repeated: frozenset[bytes]
    """Names of regular fields that came more than once."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class Device:
    """What the simulator knows of one device token. Of a device token it does not know, all is good."""

    topic: str | None = None
    """The bundle id whose app has it; None: any."""
    environment: Environment | None = None
    """None: the simulator's."""
    dead_since: float | None = None
    """UNIX seconds; None: alive."""
    dead_reason: str = "Unregistered"


class Delivery(NamedTuple):
    """One push as a phone gets it, with the header fields that tell the phone what to do."""

    device_token: str
    apns_id: str | None
    """None where the request had none."""
    push_type: str | None
    priority: int
    collapse_id: str | None
    topic: str | None
    payload: bytes
    at: float
    """UNIX seconds."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a client's certificate allows."""

    topics: tuple[str, ...]
    environments: tuple[str, ...]
    expires_at: float = float("inf")
    """UNIX seconds."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What the accepted requests of one connection have tied it to; None and empty on a new one."""

    certificate: Certificate | None = None
    team_id: str | None = None
    key_id: str | None = None
    issued: tuple[int, ...] = ()
    """The `iat` of every provider token taken on this connection."""


@dataclass(slots=True)
class World:
    """What the simulator believes in. The owner changes it at any time; `judge` only reads."""

    environment: Environment = "production"
    topics: frozenset[str] | None = None
    """Bundle ids without suffix; None: any."""
    keys: dict[str, TrustedKey] = field(default_factory=dict)
    """By key id."""
    devices: dict[bytes, Device] = field(default_factory=dict)
    """By device token in lower-case hex."""
    verify: bool = True
    """Off: a provider token's signature and key id are not looked at, its age still is."""
    ahead: float = 300.0
    """Seconds that a provider token's `iat` may lie in the future. Apple documents nothing on this."""


class Verdict(NamedTuple):
    """What is answered, and what it means for the connection."""

    status: int
    reason: str | None = None
    timestamp: int | None = None
    """Milliseconds since the epoch, for 410."""
    binding: Binding | None = None
    """The connection's new binding; None where the request changed nothing."""
    good_until: float = 0.0
    """A request with the same constant headers needs no second look before this UNIX second."""
    payload_limit: int = MAX_PAYLOAD_BYTES
    wedged: bool = False
    """From now on this connection gets one stream at a time."""


def read_request(fields: Sequence[Field], payload: bytes) -> Request:
    """Check the message itself (RFC 9113 §8.2, §8.3) and take its fields apart.

    Raises:
      Malformed: to be answered with RST_STREAM, PROTOCOL_ERROR.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    repeated: set[bytes] = set()
    for name, value in fields:
        if _BAD_IN_VALUE.search(value) or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
            raise Malformed("a field's value has a forbidden octet")
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or headers:
                raise Malformed("a pseudo-header field is unknown, repeated or late")
            pseudo[name] = value
        elif not name or _BAD_IN_NAME.search(name) or name in _CONNECTION_SPECIFIC:
            raise Malformed("a field's name is not allowed")
        elif name == b"te" and value != b"trailers":
            raise Malformed("te may only be trailers")
        elif name in headers:
            repeated.add(name)
        else:
            headers[name] = value
    if not pseudo.get(b":method") or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise Malformed("a pseudo-header field is missing")
    repeated.discard(b"cookie")
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or int(length) != len(payload)):
        raise Malformed("content-length is not that of the body")
    if b":authority" in pseudo and headers.get(b"host", pseudo[b":authority"]) != pseudo[b":authority"]:
        raise Malformed("host differs from :authority")
    return Request(pseudo[b":method"], pseudo[b":path"], headers, frozenset(repeated), payload)


def _refuse(reason: str, **more: object) -> Verdict:
    return Verdict(REASONS[reason], reason, **more)  # type: ignore[arg-type]


def judge(request: Request, binding: Binding, world: World, now: float) -> Verdict:
    """Answer as APNs would.

    Args:
      binding: what this connection's earlier requests left; never changed.
      now: UNIX seconds.
    """
    if request.method != b"POST":
        return _refuse("MethodNotAllowed")
    if not request.path.startswith(_PATH_PREFIX[:-1]):
        return _refuse("BadPath")
    device_token = request.path[len(_PATH_PREFIX) :]
    if not device_token:
        return _refuse("MissingDeviceToken")
    if not request.path.startswith(_PATH_PREFIX) or b"/" in device_token:
        return _refuse("BadPath")
    if request.repeated:
        return _refuse("DuplicateHeaders")
    claims: Claims | None = None
    if binding.certificate is None:
        judged = _judge_provider_token(request, binding, world, now)
        if isinstance(judged, Verdict):
            return judged
        claims, binding = judged
    refusal = _judge_headers(request) or _judge_topic(request, binding, world, claims)
    if refusal is None and not _HEX.fullmatch(device_token):
        refusal = "BadDeviceToken"
    limit = MAX_VOIP_PAYLOAD_BYTES if _is_voip(request) else MAX_PAYLOAD_BYTES
    if refusal is None:
        refusal = _judge_payload(request.payload, limit)
    if refusal is not None:
        return _refuse(refusal, binding=binding)
    device = world.devices.get(device_token.lower())
    if device is not None and (verdict := _judge_device(request, device, world)) is not None:
        return verdict._replace(binding=binding)
    good_until = claims.issued_at + PROVIDER_TOKEN_GOOD_FOR if claims is not None else float("inf")
    return Verdict(200, binding=binding, good_until=good_until, payload_limit=limit)


def _judge_provider_token(
    request: Request, binding: Binding, world: World, now: float
) -> Verdict | tuple[Claims | None, Binding]:
    """Refuse, or tell the claims and the connection's binding with this provider token in it."""
    authorization = request.headers.get(b"authorization", b"")
    scheme, _, provider_token = authorization.partition(b" ")
    if not authorization or (scheme.lower() == b"bearer" and not provider_token):
        return _refuse("MissingProviderToken")
    if scheme.lower() != b"bearer":
        return _refuse("InvalidProviderToken")
    try:
        claims = read_provider_token(provider_token, world.keys if world.verify else None)
    except TokenRefused:
        return _refuse("InvalidProviderToken")
    if binding.team_id is not None and claims.team_id != binding.team_id:
        return _refuse("InvalidProviderToken")
    if now - claims.issued_at > PROVIDER_TOKEN_GOOD_FOR:
        return _refuse("ExpiredProviderToken", wedged=True)
    if claims.issued_at - now > world.ahead:
        return _refuse("InvalidProviderToken")
    key = world.keys.get(claims.key_id)
    if key is not None and world.environment not in key.environments:
        return _refuse("BadEnvironmentKeyIdInToken")
    if binding.key_id not in (None, claims.key_id):
        first = world.keys.get(binding.key_id or "")
        if first is None or first.related_key_id != claims.key_id:
            return _refuse("UnrelatedKeyIdInToken")
    if claims.issued_at not in binding.issued:
        if any(abs(claims.issued_at - other) < PROVIDER_TOKEN_RENEWED_AFTER for other in binding.issued):
            return _refuse("TooManyProviderTokenUpdates")
        binding = replace(
            binding,
            team_id=claims.team_id,
            key_id=binding.key_id or claims.key_id,
            issued=(*binding.issued, claims.issued_at),
        )
    return claims, binding


def _judge_headers(request: Request) -> str | None:
    headers = request.headers
    if not _UUID.fullmatch(headers.get(b"apns-id", b"00000000-0000-0000-0000-000000000000")):
        return "BadMessageId"
    if not _EXPIRATION.fullmatch(headers.get(b"apns-expiration", b"0")):
        return "BadExpirationDate"
    if not 0 < len(headers.get(b"apns-collapse-id", b"-")) <= MAX_COLLAPSE_ID_BYTES:
        return "BadCollapseId"
    push_type = headers.get(b"apns-push-type")
    if push_type is not None and push_type.decode("latin-1") not in SUFFIXES:
        return "InvalidPushType"
    priority = headers.get(b"apns-priority")
    if priority is not None and (
        priority not in _PRIORITIES or (priority == b"10" and push_type == b"background")
    ):
        return "BadPriority"
    return None


def _judge_topic(request: Request, binding: Binding, world: World, claims: Claims | None) -> str | None:
    given = request.headers.get(b"apns-topic")
    certificate = binding.certificate
    if given is None:
        # Only a certificate of one topic has a default.
        return "MissingTopic" if certificate is None or len(certificate.topics) != 1 else None
    if not given:
        return "MissingTopic"
    if len(given) > MAX_TOPIC_BYTES or not _TOPIC.fullmatch(given):
        return "BadTopic"
    topic = given.decode("ascii")
    push_type = request.headers.get(b"apns-push-type", b"").decode("latin-1")
    bundle_id = _bundle_id(topic)
    if push_type and topic != bundle_id + SUFFIXES[push_type] and SUFFIXES[push_type]:
        return "BadTopic"
    if push_type and not SUFFIXES[push_type] and push_type != "mdm" and topic != bundle_id:
        return "BadTopic"
    if certificate is not None:
        return None if topic in certificate.topics and push_type != "location" else "TopicDisallowed"
    if world.topics is not None and bundle_id not in world.topics:
        return "TopicDisallowed"
    key = world.keys.get(claims.key_id) if claims is not None else None
    if key is not None and key.topics is not None and bundle_id not in key.topics:
        return "TopicDisallowed"
    return None


def _bundle_id(topic: str) -> str:
    for suffix in SUFFIXES.values():
        if suffix and topic.endswith(suffix):
            return topic[: -len(suffix)]
    return topic


def _is_voip(request: Request) -> bool:
    return request.headers.get(b"apns-push-type") == b"voip" or request.headers.get(
        b"apns-topic", b""
    ).endswith(b".voip")


def _judge_payload(payload: bytes, limit: int) -> str | None:
    if not payload:
        return "PayloadEmpty"
    if len(payload) > limit:
        return "PayloadTooLarge"
    # What APNs says to a body that is no JSON object is not documented; that it does not go through is.
    stripped = payload.strip()
    return None if stripped[:1] == b"{" and stripped[-1:] == b"}" else "PayloadEmpty"


def _judge_device(request: Request, device: Device, world: World) -> Verdict | None:
    if device.environment not in (None, world.environment):
        return _refuse("BadDeviceToken")
    topic = request.headers.get(b"apns-topic", b"").decode("ascii")
    if device.topic is not None and topic and _bundle_id(topic) != device.topic:
        return _refuse("DeviceTokenNotForTopic")
    if device.dead_since is not None:
        return _refuse(device.dead_reason, timestamp=int(device.dead_since * 1000))
    return None
