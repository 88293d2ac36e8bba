"""Names as they are taken: of people and systems, users, apps and tags."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from fastpush.gateway.problems import Problem

__all__ = ["MAX_TAGS", "checked_app", "checked_name", "checked_tags", "checked_user"]

MAX_NAME, MAX_USER, MAX_TAG, MAX_TAGS = 64, 128, 64, 32
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def checked_name(name: str, field: str, longest: int = MAX_NAME) -> str:
    """A name in its composed form (NFC), of characters that can be printed: no controls, no reversed text.

    Raises:
      Problem: 422
    """
    composed = unicodedata.normalize("NFC", name) if len(name) <= 4 * longest else name
    if not 0 < len(composed) <= longest:
        raise Problem(
            422, "invalid value", f"has {len(composed)} characters; 1 to {longest} are taken.", field=field
        )
    if not composed.isprintable() or composed != composed.strip():
        raise Problem(
            422,
            "invalid value",
            "holds a character that cannot be printed, or a blank at an end.",
            field=field,
        )
    return composed


def checked_user(user: str) -> str:
    """The same of a user, who may also be "", nobody in particular."""
    return checked_name(user, "user", MAX_USER) if user else ""


def checked_app(app: str, field: str = "app") -> str:
    """An app as the configuration calls it. Raises Problem: 422."""
    if _APP.fullmatch(app) is None:
        raise Problem(
            422,
            "invalid value",
            "An app's name has 1 to 128 letters, digits, dots, hyphens and underlines.",
            field=field,
        )
    return app


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags, each once, in order. Raises Problem: 422."""
    if len(tags) > MAX_TAGS:
        raise Problem(422, "invalid value", f"{len(tags)} tags; {MAX_TAGS} are taken.", field="tags")
    for index, tag in enumerate(tags):
        if ";" in tag or "," in tag:
            detail = "holds a comma or semicolon, which part tags in files and parameters."
            raise Problem(422, "invalid value", detail, field=f"tags[{index}]")
    return tuple(sorted({checked_name(tag, f"tags[{index}]", MAX_TAG) for index, tag in enumerate(tags)}))
