"""Refusals as RFC 9457 has them: what is wrong, with which field, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

__all__ = ["CONTENT_TYPE", "Problem"]

CONTENT_TYPE = "application/problem+json"

_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """An answer that says no. Routes raise it; whoever serves them writes it.

    Args:
      status: 400 to 599.
      title: the kind of problem in a few words, the same each time; the status' own phrase when empty.
      detail: this one: what was found, the limit, the cure. Never a secret or a whole device token.
      field: the place in the body or the parameter at fault, as in `notifications[3].alert.title`.
      headers: of the answer, e.g. `Retry-After`.
      members: further members of the body, e.g. `stored=False`.
    """

    def __init__(
        self,
        status: int,
        title: str = "",
        detail: str = "",
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.title = title or HTTPStatus(status).phrase
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})
        self.members = members

    def body(self) -> bytes:
        """The JSON of the answer, as `application/problem+json`."""
        document: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        if self.field is not None:
            document["field"] = self.field
        return _encode(document | self.members)
