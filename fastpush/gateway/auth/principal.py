"""Who asks: the values that authentication gives, and what they may."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

from fastpush.gateway.problems import Problem

__all__ = ["CONTROL", "SCOPES", "Principal"]

SCOPES = ("notify", "devices", "alarms", "admin", "console")
"""What a key may be allowed: to send; to register and list devices; to read and acknowledge alarms; to
administer keys, apps and the outbox; to look at the console. None contains another."""


@final
@dataclass(frozen=True)
class Principal:
    """Who a request comes from.

    Attributes:
      name: of the person or system that the key was made for; of a phone its user, or its enrolment's id.
      kind: "key"; "device", a phone with a secret of its own; "control", who may open the control socket;
        "open", anybody, where the configuration asks for no key.
      scopes: a phone has none: its rights are its own registration, its user's alarms and notices, which the
        routes that serve phones grant by `kind`.
      apps: None is every app. A phone has exactly one.
      user, device_token: of a phone; None before it has registered.
      key_id: of the key or of the enrolment; public.
      address: where the request came from, for the audit log.
    """

    name: str
    kind: Literal["key", "device", "control", "open"]
    scopes: frozenset[str]
    apps: frozenset[str] | None = None
    user: str | None = None
    device_token: str | None = None
    key_id: str = ""
    address: str = ""

    @property
    def app(self) -> str | None:
        """The only app there is for this principal, None if there may be several."""
        return next(iter(self.apps)) if self.apps is not None and len(self.apps) == 1 else None

    def may(self, scope: str, app: str | None = None) -> bool:
        """Whether the principal has the scope, and the app where one is named."""
        return scope in self.scopes and (app is None or self.apps is None or app in self.apps)

    def require(self, scope: str, app: str | None = None) -> None:
        """Go on only if the principal has this scope, for this app where one is named.

        Raises:
          Problem: 403; it names what lacks, and nothing of what there is.
        """
        if scope not in self.scopes:
            what = "A phone's own secret" if self.kind == "device" else f"The key {self.name!r}"
            raise Problem(403, "not allowed", f"{what} does not have the scope {scope!r}, which this needs.")
        if app is not None and self.apps is not None and app not in self.apps:
            raise Problem(403, "not allowed", f"The key {self.name!r} is not for the app {app!r}.")

    def choose_app(self, named: str | None, configured: Iterable[str]) -> str:
        """The app that a request is about: the one it names, or the only one that it can be.

        Raises:
          Problem: 403, not one of the principal's; 404, no such app; 422, there are several.
        """
        known = list(configured)
        if named is None:
            mine = known if self.apps is None else [app for app in known if app in self.apps]
            if len(mine) == 1:
                return mine[0]
            if self.apps is not None and not mine:
                raise Problem(404, "no such app", "None of this key's apps is configured here.", field="app")
            raise Problem(
                422, "app missing", "There are several apps: say which one with `app`.", field="app"
            )
        if self.apps is not None and named not in self.apps:
            raise Problem(
                403, "not allowed", f"{self.name!r} is not for the app {named[:128]!r}.", field="app"
            )
        if named not in known:
            raise Problem(404, "no such app", f"No app {named[:128]!r} is configured here.", field="app")
        return named


CONTROL = Principal("control", "control", frozenset(SCOPES), key_id="control")
"""Whoever may open the control socket, or the file itself: may do everything."""
