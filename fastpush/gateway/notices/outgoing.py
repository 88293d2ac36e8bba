"""Notices by HTTP: an alarm inside OpManager, and a signed webhook."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import httpx2
import msgspec
import trio

from fastpush.gateway import signatures
from fastpush.gateway.config import RestSettings, SecretUnusable, WebhookSettings, read_secret
from fastpush.gateway.notices.echo import signed
from fastpush.gateway.notices.store import NotTold, Telling
from fastpush.gateway.notices.values import CATEGORY, Channel

__all__ = ["CLEAR", "OpManagerCarrier", "WebhookCarrier"]

WITHIN = 15.0  # seconds for all of a request
MAX_ANSWER_OCTETS = 64 << 10
CLEAR = 5
"""OpManager's severity for "all is well again"."""


@final
class OpManagerCarrier:
    """Raises an alarm inside OpManager, and clears it, by `POST events/addEvent` of its REST interface.

    The key goes in the header `apiKey`, and nowhere else.
    """

    channel: Channel = "opmanager"

    def __init__(self, settings: RestSettings) -> None:
        self._settings = settings

    async def tell(self, telling: Telling) -> str:
        notice = telling.notice
        over = telling.change != "raised"  # of a trial nothing is to stay
        words = {"withdrawn": f"Over: {notice.title}", "trial": f"{notice.title}. {notice.body}"}
        message = words.get(telling.change, f"{notice.title}. {notice.body} {notice.cure}")
        form = {
            "source": self._settings.source,
            "severity": str(CLEAR if over else notice.severity),
            "message": signed(message)[:1_000],
            "alarmCode": f"fastpush {notice.kind}",
            "entity": notice.entity,
            "eventType": "fastpush",
        }
        try:
            answer = await self._ask("POST", "events/addEvent", form)
        except NotTold as error:
            # A refused key is mended sooner or later, and then the alarm is to come, or to go, after all.
            raise NotTold(str(error)) from None
        return f"{self._settings.url}: {answer}"

    async def check_key(self) -> None:
        """Ask for something small that needs the key.

        Raises:
          NotTold: with the reason; `lasting` where the key is at fault.
        """
        await self._ask("GET", "admin/listDownTimeSchedules", None)

    async def _ask(self, method: str, call: str, form: Mapping[str, str] | None) -> str:
        settings = self._settings
        try:
            key = await trio.to_thread.run_sync(read_secret, settings.api_key_file)
        except SecretUnusable as error:
            raise NotTold(str(error)) from None
        status, body = await _request(
            method,
            f"{str(settings.url).rstrip('/')}/api/json/{call}",
            headers={"apiKey": key, "Accept": "application/json"},
            ca_file=settings.ca_file,
            form=form,
        )
        if status in (401, 403):
            raise NotTold(
                f"{status}: OpManager refuses the key, or REST access is off for its user", lasting=True
            )
        if not 200 <= status < 300:
            raise NotTold(f"OpManager answered {status}")
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise NotTold(f"OpManager answered {status} and no JSON: a page for people?") from None
        problem = answer.get("error") if isinstance(answer, dict) else None
        if problem is not None:  # OpManager may say no with 200
            told = problem.get("message", "") if isinstance(problem, dict) else problem
            raise NotTold(f"OpManager answered {_short(told, key)}", lasting=_is_about_key(problem))
        result = answer.get("result") if isinstance(answer, dict) else None
        told = result.get("message") if isinstance(result, dict) else None
        return f"{status} {_short(told, key)}" if told else str(status)


def _is_about_key(problem: Any) -> bool:
    return isinstance(problem, dict) and problem.get("code") in (401, 403, 5000, "401", "403")


def _short(text: object, secret: str) -> str:
    """Words of a server, without control characters and without what must not be shown."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return line.replace(secret, "…")[:200] if secret else line[:200]


@final
class WebhookCarrier:
    """Posts the notice as JSON, signed as `signatures` says; the same id each time it is sent again."""

    channel: Channel = "webhook"

    def __init__(self, settings: WebhookSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock

    async def tell(self, telling: Telling) -> str:
        notice = telling.notice
        try:
            text = await trio.to_thread.run_sync(read_secret, self._settings.secret_file)
            secret = signatures.read_signing_secret(text)
        except (SecretUnusable, ValueError) as error:
            raise NotTold(f"{self._settings.secret_file}: {error}") from None
        now = int(self._clock())
        document = {
            "type": f"notice.{telling.change}",
            "timestamp": int(telling.at),
            "notice": {
                "id": notice.id,
                "kind": notice.kind,
                "category": CATEGORY,
                "severity": notice.severity,
                "title": notice.title,
                "body": notice.body,
                "cure": notice.cure,
                "apps": notice.apps,
                "topic": notice.topic,
                "stage": notice.stage,
                "expires_at": notice.expires_at,
            },
        }
        body = msgspec.json.encode(document)
        message = f"notice-{telling.number}-{int(telling.at)}"
        headers = {
            "content-type": "application/json",
            signatures.ID.decode(): message,
            signatures.TIMESTAMP.decode(): str(now),
            signatures.SIGNATURE.decode(): signatures.sign(secret, message, now, body),
        }
        status, _ = await _request("POST", str(self._settings.url), headers=headers, body=body)
        if not 200 <= status < 300:
            redirect = ", a redirect, which is not followed" if 300 <= status < 400 else ""
            raise NotTold(f"the server answered {status}{redirect}")
        return f"the server answered {status}"


async def _request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    ca_file: Path | None = None,
    form: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """One request on a connection of its own, no redirect followed; status and the beginning of the answer.

    Raises:
      NotTold: no answer.
    """
    try:
        context = await trio.to_thread.run_sync(lambda: ssl.create_default_context(cafile=ca_file))
        # httpx2's own limit is one for each read; an answer that drips in is to end too.
        with trio.fail_after(WITHIN):
            async with (
                httpx2.AsyncClient(verify=context, timeout=WITHIN, trust_env=False) as client,
                client.stream(method, url, headers=dict(headers), data=form, content=body) as response,
            ):
                received = bytearray()
                async for part in response.aiter_bytes():
                    received += part
                    if len(received) > MAX_ANSWER_OCTETS:
                        break
                return response.status_code, bytes(received[:MAX_ANSWER_OCTETS])
    except (httpx2.TimeoutException, trio.TooSlowError):
        raise NotTold(f"no answer within {WITHIN:g} s") from None
    except httpx2.HTTPError as error:
        # httpx2's words name the address and the cause, never a header.
        raise NotTold(str(error) or type(error).__name__) from None
    except OSError as error:
        raise NotTold(f"ca_file {ca_file}: {error.strerror or error}") from None
