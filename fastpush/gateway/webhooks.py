"""Telling other servers: one signed POST, delivered or not.

Signed as Standard Webhooks are (see `fastpush.gateway.signatures`). The address comes from the configuration
and never from a request. A redirect is an answer that is no success: who may be told is for the configuration
to say. Trying again is the caller's business, with `Backoff`; the message's id stays the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, final

import httpx2
import trio

from fastpush.gateway import signatures

__all__ = ["Backoff", "NotDelivered", "Webhook", "WebhookSender", "open_webhook_sender"]

POST_WITHIN = 15.0  # seconds, from the connect to the head of the answer
LONGEST_WAIT = 3_600.0  # that an answer may ask for
AGENT = "fastpush"


class Webhook(NamedTuple):
    """Where to, and the secret that signs. Its repr shows neither."""

    url: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<Webhook to {httpx2.URL(self.url).host}>"


class NotDelivered(Exception):
    """The other side has not taken the message, as far as we know.

    Attributes:
      retry_after: seconds that its answer asked for; None if it did not.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@asynccontextmanager
async def open_webhook_sender(
    *,
    clock: Callable[[], float] = time.time,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AsyncGenerator[WebhookSender]:
    """Open what sends; it keeps connections.

    Args:
      transport: another way to the other side than the network.
    """
    async with httpx2.AsyncClient(
        follow_redirects=False,
        trust_env=False,
        timeout=None,
        headers={"User-Agent": AGENT},
        transport=transport,
    ) as client:
        yield WebhookSender(client, clock)


@final
class WebhookSender:
    """Made by `open_webhook_sender`."""

    def __init__(self, client: httpx2.AsyncClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock

    async def post(
        self, webhook: Webhook, message_id: str, body: bytes, content_type: str = "application/json"
    ) -> None:
        """Send one message, and return once the other side has said that it took it (2xx).

        Args:
          message_id: the same each time this message is sent again.

        Raises:
          NotDelivered: with the reason, which holds nothing that the other side wrote.
        """
        now = int(self._clock())
        headers = {
            "Content-Type": content_type,
            signatures.ID.decode(): message_id,
            signatures.TIMESTAMP.decode(): str(now),
            signatures.SIGNATURE.decode(): signatures.sign(webhook.secret, message_id, now, body),
        }
        with trio.move_on_after(POST_WITHIN) as scope:
            try:
                async with self._client.stream("POST", webhook.url, content=body, headers=headers) as answer:
                    status, asked = answer.status_code, answer.headers.get("retry-after", "")
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
                raise NotDelivered(f"{type(error).__name__}: {error}") from error
        if scope.cancelled_caught:
            raise NotDelivered(f"no answer within {POST_WITHIN:.0f} s")
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise NotDelivered(f"it answered {status}, a redirect, which is not followed")
        wait = float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else None
        raise NotDelivered(f"it answered {status}", None if wait is None else min(wait, LONGEST_WAIT))


class Backoff:
    """How long to wait before the next try: `first` seconds doubled up to `longest`, more or less."""

    def __init__(self, first: float = 5.0, longest: float = 900.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def after(self, failure: NotDelivered) -> float:
        """Seconds to wait; never less than the other side asked for."""
        wait = self._next * random.uniform(0.8, 1.2)
        self._next = min(2 * self._next, self._longest)
        return max(wait, failure.retry_after or 0.0)

    def reset(self) -> None:
        """After a success."""
        self._next = self._first
