from fastpush._encode import Payload
from fastpush._notification import Notification
from fastpush.gateway.outbox import Entry

def make_notifications(
    device_tokens: list[str], payload: Payload, entry: Entry, base: bytes, key: bytes, own_collapse_id: bool
) -> list[Notification]: ...
