"""Our own alarm inside OpManager comes back to us by its webhook: it is known by its entity and its words."""

from __future__ import annotations

from fastpush.gateway.sources import Event

__all__ = ["ENTITIES", "SIGNATURE", "is_echo", "signed"]

ENTITIES = ("apns-cert-", "fastpush-")
"""What the entities of our own alarms begin with."""

SIGNATURE = "fastpush: "
"""What their messages begin with: some templates carry no entity."""


def signed(message: str) -> str:
    """A message as it goes to OpManager."""
    return SIGNATURE + message


def is_echo(event: Event) -> bool:
    """Whether an event is our own alarm, of which those it concerns have been told already."""
    if event.entity:
        return event.entity.startswith(ENTITIES)
    return event.message.startswith(SIGNATURE)
