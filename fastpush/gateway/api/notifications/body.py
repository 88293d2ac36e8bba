"""A notification as senders write it in JSON, and the entries of the outbox that it becomes.

The types are those that msgspec validates and that the OpenAPI document shows; what a value may be is
checked by the library's own `Payload` and `Notification`, so that a sender over HTTP reads the same messages
as one who imports the library. This runs once a notification; `python -m benchmarks micro` has its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fastpush.errors import InvalidNotification
from fastpush.gateway.outbox import Audience, Entry
from fastpush.gateway.problems import Problem
from fastpush.notification import Alert, Notification, Payload, Sound

__all__ = [
    "DEFAULT_LIFETIME",
    "MAX_DEVICE_TOKENS",
    "AlertBody",
    "AudienceBody",
    "Invalid",
    "NotificationBody",
    "SoundBody",
    "Translator",
    "decoder",
]

DEFAULT_LIFETIME = 86_400
"""Seconds until a notification without an expiration has expired."""

MAX_DEVICE_TOKENS = 1_000
"""Of one notification."""

MAX_TAGS = 64
MAX_DEPTH = 16
"""Of a payload's JSON, the outermost object being 1."""


class AlertBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What the user reads; `loc_key` names a localised text of the app, `loc_args` fill its `%@`."""

    title: str | None = None
    subtitle: str | None = None
    body: str | None = None
    launch_image: str | None = None
    title_loc_key: str | None = None
    title_loc_args: list[str] | None = None
    subtitle_loc_key: str | None = None
    subtitle_loc_args: list[str] | None = None
    loc_key: str | None = None
    loc_args: list[str] | None = None
    action_loc_key: str | None = None
    summary_arg: str | None = None
    summary_arg_count: Annotated[int | None, Meta(extra_json_schema={"minimum": 0})] = None


class SoundBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """A sound with more than its name; critical ones need Apple's entitlement."""

    name: str = "default"
    critical: bool = False
    volume: Annotated[float | None, Meta(extra_json_schema={"minimum": 0, "maximum": 1})] = None


Tag = Annotated[str, Meta(min_length=1, max_length=128)]
Tags = Annotated[list[Tag], Meta(max_length=MAX_TAGS)]


class AudienceBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Devices of the app by their tags: with one of `any_of` at least, all of `all_of`, none of `none_of`.

    Without any tag it is every device of the app, which must be said: `"everyone": true`.
    """

    any_of: Tags = []
    all_of: Tags = []
    none_of: Tags = []
    everyone: bool = False


class NotificationBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One notification for a device token, several of them, or an audience.

    Its content is either given field by field, `alert` to `data`, or as ready JSON in `payload`.
    """

    device_token: Annotated[
        str | None,
        Meta(description="Hexadecimal.", extra_json_schema={"pattern": "^([0-9A-Fa-f]{2})+$"}),
    ] = None
    device_tokens: Annotated[
        list[str] | None,
        Meta(
            description="The same notification for each of them.",
            extra_json_schema={"minItems": 1, "maxItems": MAX_DEVICE_TOKENS},
        ),
    ] = None
    audience: AudienceBody | None = None
    app: Annotated[
        str | None, Meta(description="Which app of the gateway's; the key's own, or the only one.")
    ] = None

    alert: Annotated[str | AlertBody | None, Meta(description="A text is the body alone.")] = None
    badge: Annotated[int | None, Meta(extra_json_schema={"minimum": 0, "maximum": 2**63 - 1})] = None
    sound: Annotated[str | SoundBody | None, Meta(description="A text is the sound's name.")] = None
    thread_id: str | None = None
    category: str | None = None
    content_available: bool = False
    mutable_content: bool = False
    target_content_id: str | None = None
    interruption_level: Annotated[
        str | None,
        Meta(extra_json_schema={"enum": ["passive", "active", "time-sensitive", "critical", None]}),
    ] = None
    relevance_score: Annotated[float | None, Meta(extra_json_schema={"minimum": 0, "maximum": 1})] = None
    filter_criteria: str | None = None
    content_changed: bool = False
    url_args: list[str] | None = None
    data: Annotated[
        dict[str, Any] | None,
        Meta(description="Custom keys beside `aps`.", extra_json_schema={"not": {"required": ["aps"]}}),
    ] = None
    payload: Annotated[
        msgspec.Raw,
        Meta(description="Ready JSON, sent as it is.", extra_json_schema={"type": "object"}),
    ] = msgspec.field(default_factory=msgspec.Raw)

    topic: Annotated[str | None, Meta(description="The app's, with or without the push type's suffix.")] = (
        None
    )
    push_type: Annotated[str, Meta(extra_json_schema={"minLength": 1})] = "alert"
    priority: Annotated[
        int | None, Meta(description="APNs' own.", extra_json_schema={"enum": [10, 5, 1, None]})
    ] = None
    expiration: Annotated[
        int | None,
        Meta(description="UNIX seconds; 0 is one attempt. Without it the notification has 24 hours."),
    ] = None
    collapse_id: Annotated[
        str | None,
        Meta(
            description="Replaces the notification that has the same one. Alerts without one have their"
            " apns-id for it, so that sending one again never shows it twice.",
            extra_json_schema={"minLength": 1, "maxLength": 64},
        ),
    ] = None
    apns_id: Annotated[
        str | None,
        Meta(description="A UUID of the sender's; otherwise drawn.", extra_json_schema={"format": "uuid"}),
    ] = None
    delivery: Annotated[
        Literal["resend", "once"],
        Meta(
            description="`resend` sends again what may have been lost, under the same apns-id; `once` never"
            " does, and the outcome may be `unknown`."
        ),
    ] = "resend"
    urgent: Annotated[bool, Meta(description="Overtakes in the gateway what is not.")] = False


decoder = msgspec.json.Decoder(NotificationBody)
"""Of one notification: of a whole body, an array's element, or a line."""


class Invalid(Exception):
    """A notification that cannot be accepted.

    Attributes:
      detail: a sentence; never a text of the sender's or a device token.
      field: within the notification, as in `alert.loc_args[2]`; None where no single one is at fault.
      status: of an answer that is about this one alone.
    """

    def __init__(self, detail: str, field: str | None = None, status: int = 422) -> None:
        super().__init__(detail)
        self.detail, self.field, self.status = detail, field, status

    def problem(self, at: str = "") -> Problem:
        """The refusal of the whole request; `at` says where in it the notification stands."""
        title = "invalid notification" if self.status == 422 else ""
        field = ".".join(part for part in (at, self.field) if part)
        return Problem(self.status, title, self.detail, field=field or None)


class Translator:
    """Makes entries of notifications for one app, of one request.

    Args:
      now: UNIX seconds; decides the expiration of what has none.
      allows_topic: whether the app may send to a topic.
      trace: the request's id.
    """

    def __init__(self, app: str, now: float, allows_topic: Callable[[str], bool], trace: str) -> None:
        self.app = app
        self._expiration = int(now) + DEFAULT_LIFETIME
        self._allows_topic = allows_topic
        self._trace = trace

    def entries(self, body: NotificationBody) -> list[Entry]:
        """One for each device token.

        Raises:
          Invalid: with the field.
        """
        if body.device_token is not None:
            if body.device_tokens is not None or body.audience is not None:
                raise Invalid(
                    "device_token is given: device_tokens and audience must be left out.", "device_token"
                )
            return [self._entry(body, payload_of(body), body.device_token)]
        if body.device_tokens is not None:
            return self._entries(body, body.device_tokens)
        if body.audience is not None:
            raise Invalid("An audience is for a request of one notification, one JSON object.", "audience")
        raise Invalid("One of device_token, device_tokens and audience is needed.", "device_token")

    def _entries(self, body: NotificationBody, device_tokens: list[str]) -> list[Entry]:
        if body.audience is not None:
            raise Invalid("device_tokens is given: audience must be left out.", "audience")
        if not 1 <= len(device_tokens) <= MAX_DEVICE_TOKENS:
            raise Invalid(
                f"device_tokens has {len(device_tokens):,} elements; 1 to {MAX_DEVICE_TOKENS:,} are taken at"
                " once.",
                "device_tokens",
            )  # fmt: skip
        if body.apns_id is not None and len(device_tokens) > 1:
            raise Invalid("apns_id is for one device token.", "apns_id")
        payload, entries = payload_of(body), []
        for place, device_token in enumerate(device_tokens):
            try:
                entries.append(self._entry(body, payload, device_token))
            except Invalid as invalid:
                if invalid.field == "device_token":
                    invalid.field = f"device_tokens[{place}]"
                raise
        return entries

    def fanout(self, body: NotificationBody) -> tuple[Audience, Entry]:
        """The audience, and the entry that all its devices get.

        Raises:
          Invalid: with the field.
        """
        audience = body.audience
        assert audience is not None
        if body.device_tokens is not None or body.device_token is not None:
            raise Invalid("audience is given: device_token and device_tokens must be left out.", "audience")
        if body.apns_id is not None:
            raise Invalid("apns_id is for one device token.", "apns_id")
        some = bool(audience.any_of or audience.all_of or audience.none_of)
        if some is audience.everyone:
            raise Invalid(
                "everyone is for an audience without tags." if some
                else "The audience has no tags; where all devices of the app are meant, say everyone.",
                "audience.everyone",
            )  # fmt: skip
        entry = self._entry(body, payload_of(body), "00")
        entry.device_token = None
        meant = Audience(
            any_of=tuple(audience.any_of), all_of=tuple(audience.all_of), none_of=tuple(audience.none_of)
        )
        return meant, entry

    def _entry(self, body: NotificationBody, payload: Payload, device_token: str) -> Entry:
        if body.app is not None and body.app != self.app:
            raise Invalid("The app is another one than that of this request.", "app")
        if body.topic is not None and not self._allows_topic(body.topic):
            raise Invalid("The topic is not one of the app's.", "topic", 403)
        try:
            checked = Notification(
                device_token,
                payload,
                topic=body.topic,
                push_type=body.push_type,
                priority=body.priority,
                expiration=body.expiration,
                collapse_id=body.collapse_id,
                apns_id=body.apns_id,
            )
        except InvalidNotification as error:
            raise Invalid(f"{error}.", error.field) from None
        expiration = body.expiration
        return Entry(
            checked.device_token,
            payload.encode(),
            body.push_type,
            body.priority or (5 if body.push_type == "background" else 10),
            self._expiration if expiration is None else expiration,
            body.collapse_id,
            body.topic,
            body.delivery,
            body.urgent,
            None if checked.apns_id is None else bytes.fromhex(checked.apns_id.replace("-", "")),
            self._trace,
        )


def payload_of(body: NotificationBody) -> Payload:
    """The content, checked as the library does.

    Raises:
      Invalid: with the field.
    """
    try:
        if body.payload:
            payload = _raw_payload(body)
        else:
            alert, sound = body.alert, body.sound
            payload = Payload(
                alert=_alert(alert) if type(alert) is AlertBody else alert,  # type: ignore[arg-type]
                badge=body.badge,
                sound=_sound(sound) if type(sound) is SoundBody else sound,  # type: ignore[arg-type]
                thread_id=body.thread_id,
                category=body.category,
                content_available=body.content_available,
                mutable_content=body.mutable_content,
                target_content_id=body.target_content_id,
                interruption_level=body.interruption_level,
                relevance_score=body.relevance_score,
                filter_criteria=body.filter_criteria,
                content_changed=body.content_changed,
                url_args=body.url_args,
                data=body.data,
            )
    except InvalidNotification as error:
        raise Invalid(f"{error}.", error.field) from None
    octets = payload.encode()
    if body.push_type == "alert" and octets == b'{"aps":{}}':
        raise Invalid("The notification has no content: give alert, badge, sound … or payload.", "alert")
    if octets.count(b"{") + octets.count(b"[") > MAX_DEPTH and depth(octets) > MAX_DEPTH:
        raise Invalid(
            f"The payload is nested more than {MAX_DEPTH} deep.", "payload" if body.payload else "data"
        )
    return payload


def _raw_payload(body: NotificationBody) -> Payload:
    if (
        body.alert is not None or body.badge is not None or body.sound is not None or body.data is not None
        or body.thread_id is not None or body.category is not None or body.content_available
        or body.mutable_content or body.target_content_id is not None or body.interruption_level is not None
        or body.relevance_score is not None or body.filter_criteria is not None or body.content_changed
        or body.url_args is not None
    ):  # fmt: skip
        raise Invalid("payload is given: alert, badge, sound, data and the like must be left out.", "payload")
    try:
        return Payload.raw(memoryview(body.payload))
    except InvalidNotification as error:
        raise Invalid(f"{str(error).replace('json', 'payload', 1)}.", "payload") from None


def _alert(alert: AlertBody) -> Alert:
    try:
        return Alert(
            title=alert.title,
            subtitle=alert.subtitle,
            body=alert.body,
            launch_image=alert.launch_image,
            title_loc_key=alert.title_loc_key,
            title_loc_args=alert.title_loc_args,
            subtitle_loc_key=alert.subtitle_loc_key,
            subtitle_loc_args=alert.subtitle_loc_args,
            loc_key=alert.loc_key,
            loc_args=alert.loc_args,
            action_loc_key=alert.action_loc_key,
            summary_arg=alert.summary_arg,
            summary_arg_count=alert.summary_arg_count,
        )
    except InvalidNotification as error:
        raise Invalid(f"{error}.", f"alert.{error.field}") from None


def _sound(sound: SoundBody) -> Sound:
    try:
        return Sound(sound.name, critical=sound.critical, volume=sound.volume)
    except InvalidNotification as error:
        raise Invalid(f"{error}.", f"sound.{error.field}") from None


def depth(json: bytes) -> int:
    """How deep valid JSON is nested."""
    deepest = now = 0
    in_string = escaped = False
    for octet in json:
        if in_string:
            if escaped:
                escaped = False
            elif octet == 0x5C:
                escaped = True
            elif octet == 0x22:
                in_string = False
        elif octet == 0x22:
            in_string = True
        elif octet in b"{[":
            now += 1
            deepest = max(deepest, now)
        elif octet in b"}]":
            now -= 1
    return deepest
