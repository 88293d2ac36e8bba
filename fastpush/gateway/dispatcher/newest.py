"""Which of the notifications for one device under one collapse id is the newest. Without I/O."""

from __future__ import annotations

from hashlib import blake2b
from typing import final

from fastpush.gateway.outbox import Audience

__all__ = ["Newest"]

MOST_PAIRS = 200_000  # of device token and collapse id, some 150 octets each
MOST_FANOUTS = 10_000


@final
class Newest:
    """Remembers, in bounded memory, the newest that was seen for each pair, and the fan-outs by collapse id.

    What was not seen, or is forgotten because newer ones came in too large a number, supersedes nothing:
    then the older is sent, too. Places are batch and index, which grow with the time of acceptance.
    """

    def __init__(self) -> None:
        self._pairs: dict[bytes, int] = {}
        self._fanouts: dict[str, tuple[int, Audience]] = {}
        self._audiences: dict[int, Audience] = {}

    def see(self, device_token: str, collapse_id: str, batch: int, index: int) -> None:
        """Take note of a notification for one device."""
        key, place = _key(device_token, collapse_id), _place(batch, index)
        pairs = self._pairs
        if place > pairs.get(key, 0):
            pairs.pop(key, None)  # so that the first is the one that was not seen for the longest time
            pairs[key] = place
            if len(pairs) > MOST_PAIRS:
                del pairs[next(iter(pairs))]

    def see_fanout(self, fanout: int, collapse_id: str, audience: Audience) -> None:
        """Take note of a fan-out."""
        self._audiences[fanout] = audience
        if fanout > self._fanouts.get(collapse_id, (0, audience))[0]:
            self._fanouts.pop(collapse_id, None)
            self._fanouts[collapse_id] = (fanout, audience)
        if len(self._audiences) > MOST_FANOUTS:
            del self._audiences[next(iter(self._audiences))]
        if len(self._fanouts) > MOST_FANOUTS:
            del self._fanouts[next(iter(self._fanouts))]

    def is_superseded(self, device_token: str, collapse_id: str, batch: int, index: int) -> bool:
        """Whether a newer one for this device was seen, by itself or in a fan-out to the same audience.

        The index -1 is a device of the fan-out `batch`.
        """
        if self._pairs.get(_key(device_token, collapse_id), 0) > _place(batch, index):
            return True
        if index >= 0:
            return False
        newest, audience = self._fanouts.get(collapse_id, (0, None))
        return newest > batch and audience == self._audiences.get(batch)


def _key(device_token: str, collapse_id: str) -> bytes:
    return blake2b(f"{device_token} {collapse_id}".encode(), digest_size=16).digest()


def _place(batch: int, index: int) -> int:
    return batch << 24 | max(index, 0)
