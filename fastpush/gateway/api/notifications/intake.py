"""POST /v1/notifications.

A request is one JSON object, an array of them (all or none are accepted), or lines of any number (each for
itself, see `upload`). It is answered when what it brought is on disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final
from urllib.parse import parse_qs

import msgspec
import trio

from fastpush.gateway.api import (
    JSON_BODY_OCTETS,
    Answer,
    Gateway,
    Parameter,
    Receive,
    Scope,
    Send,
    decode,
    operation,
    problem_of,
    read_body,
)
from fastpush.gateway.api.notifications import answers
from fastpush.gateway.api.notifications.body import (
    Invalid,
    NotificationBody,
    Translator,
    decoder,
)
from fastpush.gateway.api.notifications.upload import Room, Upload, Uploaded
from fastpush.gateway.outbox import Acceptance, Entry, Idempotency, OutboxBusy
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import StorageError
from fastpush.notification import TOPIC_SUFFIXES

if TYPE_CHECKING:
    from fastpush.gateway.auth import Principal

__all__ = ["PATH", "Intake"]

PATH = "/v1/notifications"
BATCH_OCTETS = 4 << 20
"""The largest body of an array."""

MAX_NOTIFICATIONS = 1_000
"""Of one request that is no upload, device tokens counted one by one."""

HELD_OCTETS = 64 << 20
"""Of bodies and chunks that are in memory for all requests together."""

LONGEST_WAIT = 10
"""Seconds of `Prefer: wait`."""

UPLOAD_WAITS = 5.0
"""Seconds for an earlier upload under the same Idempotency-Key to end."""

LINES = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl"))
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,9})', re.IGNORECASE)

many = msgspec.json.Decoder(list[msgspec.Raw])
encode = msgspec.json.Encoder().encode

ACCEPTED_HEADERS = {
    "Location": "Where to ask what became of it.",
    "Preference-Applied": "The wait that was granted, of `Prefer: wait`.",
    "Idempotency-Replayed": "`true`: it was accepted before, under the same key; nothing was added now.",
}


@final
class Intake:
    """POST /v1/notifications."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._room = Room(HELD_OCTETS)
        self._uploads: dict[tuple[str, str], trio.Event] = {}  # under way, by principal and key

    @operation(
        "Send notifications",
        description=(
            "One object, an array of at most 1,000 (all or none), or lines of any number"
            " (`application/x-ndjson`, each for itself, no audiences). The answer comes when all of it is on"
            " disk."
        ),
        scope="notify",
        parameters=(
            Parameter("app", description="Which app; a notification's own `app` must be the same."),
            Parameter(
                "Idempotency-Key",
                "header",
                description="Makes a repeated request one acceptance, and a cut upload one that can go on.",
            ),
            Parameter(
                "Prefer",
                "header",
                description="`wait=N`: answer with the outcomes if all have ended in N seconds (10 at most).",
            ),
        ),
        body={
            "application/json": NotificationBody | list[NotificationBody],
            "application/x-ndjson": str,
        },
        answers={
            200: Answer(answers.Outcomes, "All have ended.", headers=ACCEPTED_HEADERS),
            202: Answer(
                (answers.BatchBody, answers.UploadBody), "Accepted, and on disk.", headers=ACCEPTED_HEADERS
            ),
        },
        refusals=(404, 409, 507),
        tag="notifications",
    )
    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        content_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        is_lines = content_type in LINES
        if not is_lines and content_type != "application/json":
            raise Problem(
                415,
                detail="Content-Type must be application/json, or application/x-ndjson for lines.",
                field="Content-Type",
            )
        keys = self._gateway.keys
        if keys.is_signed(scope):
            body = await read_body(receive, BATCH_OCTETS)
            principal = await keys.authenticate(scope, body=body)
            receive = _already_read(body)
        else:
            principal = await keys.authenticate(scope)
        principal.require("notify")
        if not scope["state"].get("owned_by", _anybody)(principal.key_id):
            raise Problem(429, "too many connections", "This key has too many connections open.")
        self._gateway.quotas.check(principal.key_id)
        if is_lines:
            await self._take_lines(scope, headers, principal, receive, send)
        else:
            await self._take_json(scope, headers, principal, receive, send)

    # JSON: one or several, all or none.

    async def _take_json(
        self,
        scope: Scope,
        headers: Mapping[bytes, str],
        principal: Principal,
        receive: Receive,
        send: Send,
    ) -> None:
        length = headers.get(b"content-length", "")
        octets = int(length) if length.isdigit() else BATCH_OCTETS
        if self._room.held + octets > HELD_OCTETS:
            raise OutboxBusy("too many large requests are under way", 1.0)
        self._room.take(octets)
        try:
            body = await read_body(receive, BATCH_OCTETS)
            acceptance, app, audience = await self._accept_json(scope, headers, principal, body)
        finally:
            self._room.give(octets)
        answer_headers = []
        if acceptance.repeated:
            answer_headers.append((b"idempotency-replayed", b"true"))
        wait = _wanted_wait(headers)
        if wait and not audience:
            answer_headers.append((b"preference-applied", b"wait=%d" % wait))
            ends = await self._gateway.dispatcher.wait_for(acceptance, wait)
            if len(ends) == acceptance.count:
                await _answer(send, 200, encode(answers.outcomes(acceptance, app, ends)), answer_headers)
                return
        ids = [answers.uuid_text(acceptance.apns_id(index)) for index in range(acceptance.count)]
        batch = str(acceptance.batch)
        where = f"{PATH}/{ids[0]}" if len(ids) == 1 else f"/v1/batches/{batch}"
        answer_headers.append((b"location", where.encode()))
        told = answers.BatchBody(app=app, batch=batch, count=None if audience else acceptance.count, ids=ids)
        await _answer(send, 202, encode(told), answer_headers)

    async def _accept_json(
        self, scope: Scope, headers: Mapping[bytes, str], principal: Principal, body: bytes
    ) -> tuple[Acceptance, str, bool]:
        """The acceptance, the app, and whether it is a fan-out."""
        several = body[:64].lstrip()[:1] == b"["
        if several:
            bodies = _several(body)
        elif len(body) > JSON_BODY_OCTETS:
            raise Problem(
                413, detail=f"The body exceeds {JSON_BODY_OCTETS:,} octets, the limit of one notification."
            )
        else:
            bodies = [decode(body, decoder)]
        named = _named_app(scope)
        app = principal.choose_app(bodies[0].app if named is None else named, self._gateway.apps)
        translator = self._translator(app, scope)
        idempotency = _idempotency(headers, principal, app.encode() + b"\n" + body)
        outbox, source = self._gateway.outbox, principal.name
        if not several and bodies[0].audience is not None:
            try:
                audience, entry = translator.fanout(bodies[0])
            except Invalid as invalid:
                raise invalid.problem() from None
            accepted = await outbox.accept_fanout(
                app, audience, entry, source=source, idempotency=idempotency
            )
            self._count(app, 1, accepted, principal)
            return accepted, app, True
        entries = _entries(translator, bodies, several=several)
        accepted = await outbox.accept(app, entries, source=source, idempotency=idempotency)
        self._count(app, len(entries), accepted, principal)
        return accepted, app, False

    # Lines: any number, each for itself.

    async def _take_lines(
        self,
        scope: Scope,
        headers: Mapping[bytes, str],
        principal: Principal,
        receive: Receive,
        send: Send,
    ) -> None:
        app = principal.choose_app(_named_app(scope), self._gateway.apps)
        idempotency = _idempotency(headers, principal, b"")
        key = None if idempotency is None else (idempotency.principal, idempotency.key)
        if key is not None:
            await self._wait_for_earlier(key)
            self._uploads[key] = trio.Event()
        try:
            await self._upload(app, scope, principal, idempotency, receive, send)
        finally:
            if key is not None:
                self._uploads.pop(key).set()

    async def _wait_for_earlier(self, key: tuple[str, str]) -> None:
        """A sender whose upload was cut may be back before the gateway is done with what had come."""
        with trio.move_on_after(UPLOAD_WAITS):
            while key in self._uploads:
                await self._uploads[key].wait()
        if key in self._uploads:
            raise Problem(
                409,
                "upload under way",
                "Another upload under this Idempotency-Key is still under way.",
                headers={"Retry-After": "5"},
                field="Idempotency-Key",
            )

    async def _upload(
        self,
        app: str,
        scope: Scope,
        principal: Principal,
        idempotency: Idempotency | None,
        receive: Receive,
        send: Send,
    ) -> None:
        upload = Upload(
            self._gateway.outbox,
            self._translator(app, scope),
            self._room,
            source=principal.name,
            idempotency=idempotency,
            charge=lambda count: self._gateway.quotas.charge(principal.key_id, count),
        )
        try:
            uploaded = await upload.run(receive)
            told = uploaded.replayed
            if told is None:
                told = encode(_uploaded(uploaded))
                await upload.keep(told)
        except (StorageError, OutboxBusy) as error:
            raise _cut_short(error, upload) from error
        finally:
            self._gateway.counters.notifications[app] += upload.accepted
        answer_headers = [(b"location", b"/v1/batches/%d" % (uploaded.batch or 0))]
        if uploaded.replayed is not None:
            answer_headers.append((b"idempotency-replayed", b"true"))
        await _answer(send, 202, told, answer_headers)

    # Both.

    def _translator(self, app: str, scope: Scope) -> Translator:
        own = self._gateway.apps[app].settings.topic
        return Translator(
            app, self._gateway.clock(), lambda topic: _is_topic_of(topic, own), scope["state"]["request_id"]
        )

    def _count(self, app: str, count: int, acceptance: Acceptance, principal: Principal) -> None:
        if not acceptance.repeated:
            self._gateway.counters.notifications[app] += count
            self._gateway.quotas.charge(principal.key_id, count)


def _several(body: bytes) -> list[NotificationBody]:
    """The notifications of an array, each looked at by itself: one that is huge is not built in memory."""
    raw = decode(body, many)
    if not 1 <= len(raw) <= MAX_NOTIFICATIONS:
        raise Problem(
            422,
            "invalid value",
            f"The array has {len(raw):,} notifications; 1 to {MAX_NOTIFICATIONS:,} are taken at once, and any"
            " number as lines of application/x-ndjson.",
            field="notifications",
        )
    bodies = []
    for place, one in enumerate(raw):
        at = f"notifications[{place}]"
        view = memoryview(one)
        if len(view) > JSON_BODY_OCTETS:
            raise Problem(
                413,
                detail=f"It exceeds {JSON_BODY_OCTETS:,} octets, the limit of one.",
                field=at,
            )
        bodies.append(decode(bytes(view), decoder, at=at))
    return bodies


def _entries(translator: Translator, bodies: list[NotificationBody], *, several: bool) -> list[Entry]:
    entries: list[Entry] = []
    for place, body in enumerate(bodies):
        try:
            entries += translator.entries(body)
        except Invalid as invalid:
            raise invalid.problem(f"notifications[{place}]" if several else "") from None
        if len(entries) > MAX_NOTIFICATIONS:
            raise Problem(
                422,
                "invalid value",
                f"There are over {MAX_NOTIFICATIONS:,} device tokens; send lines of application/x-ndjson.",
                field=f"notifications[{place}].device_tokens" if several else "device_tokens",
            )
    return entries


def _anybody(owner: str) -> bool:
    return True


def _named_app(scope: Scope) -> str | None:
    query = scope["query_string"]
    if not query:
        return None
    named = parse_qs(query.decode("latin-1")).get("app")
    return named[0] if named else None


def _idempotency(headers: Mapping[bytes, str], principal: Principal, content: bytes) -> Idempotency | None:
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise Problem(
            400,
            detail=f"The Idempotency-Key of {len(key)} characters must be 1 to 255 visible ASCII characters.",
            field="Idempotency-Key",
        )
    return Idempotency(principal.key_id or principal.kind, key, hashlib.sha256(content).digest())


def _wanted_wait(headers: Mapping[bytes, str]) -> int:
    """Seconds, of `Prefer: wait=N` (RFC 7240 §4.3)."""
    wanted = WAIT.search(headers.get(b"prefer", ""))
    return 0 if wanted is None else min(int(wanted[1]), LONGEST_WAIT)


def _is_topic_of(topic: str, own: str) -> bool:
    return topic == own or any(topic == own + suffix for suffix in TOPIC_SUFFIXES.values())


def _uploaded(uploaded: Uploaded) -> answers.UploadBody:
    body = answers.upload_body(uploaded)
    if uploaded.count:
        return body
    raise Problem(
        422,
        "no notifications",
        "No line of the body is a notification.",
        lines=uploaded.lines,
        bad_lines=body.bad_lines,
        stored=False,
    )


def _cut_short(error: StorageError | OutboxBusy, upload: Upload) -> Exception:
    """The refusal of the rest of an upload of which some is stored."""
    problem = problem_of(error)
    if problem is None or not upload.stored_lines:
        return error
    problem.detail = (
        f"{upload.stored_lines:,} lines are stored, and the rest is not: the gateway cannot store more now."
        " Repeat the upload with the same Idempotency-Key, if it has one: it goes on where it ended."
    )
    problem.members |= {"stored": "partly", "stored_lines": upload.stored_lines, "batch": str(upload.stream)}
    return problem


def _already_read(body: bytes) -> Receive:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
