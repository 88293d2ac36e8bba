"""Send an alert to many devices, and collect the device tokens that are no longer good.

    python examples/send_many.py AuthKey_ABC123DEFG.p8 TEAM_ID TOPIC [HOST PORT CA_FILE] < device_tokens.txt

The input may be of any length: it is read as connections have room, and the payload is encoded once.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import trio

import fastpush

DEAD = {"BadDeviceToken", "DeviceTokenNotForTopic", "ExpiredToken", "Unregistered"}


async def main(key_file: str, team_id: str, topic: str, *where: str) -> None:
    elsewhere: dict[str, Any] = {}
    if where:
        host, port, ca_file = where
        elsewhere = {"host": host, "port": int(port), "ca_file": ca_file}
    key = fastpush.SigningKey.from_file(key_file, team_id=team_id)
    payload = fastpush.Payload(alert="Maintenance tonight from 22:00 to 23:00")
    notifications = (fastpush.Notification(line.strip(), payload) for line in sys.stdin)
    outcomes: Counter[str] = Counter()
    async with (
        fastpush.open_client(key, topic=topic, **elsewhere) as client,
        client.send_many(notifications) as responses,
    ):
        async for response in responses:
            outcomes[response.outcome] += 1
            if response.reason in DEAD:
                print(response.notification.device_token)
    for outcome, count in outcomes.items():
        print(f"{count:,} {outcome}", file=sys.stderr)


trio.run(main, *sys.argv[1:])
