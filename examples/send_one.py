"""Send one notification.

    python examples/send_one.py AuthKey_ABC123DEFG.p8 TEAM_ID TOPIC DEVICE_TOKEN [HOST PORT CA_FILE]

With the last three it goes to another host than APNs, such as a `fastpush simulate`.
"""

from __future__ import annotations

import sys
from typing import Any

import trio

import fastpush


async def main(key_file: str, team_id: str, topic: str, device_token: str, *where: str) -> None:
    elsewhere: dict[str, Any] = {}
    if where:
        host, port, ca_file = where
        elsewhere = {"host": host, "port": int(port), "ca_file": ca_file}
    key = fastpush.SigningKey.from_file(key_file, team_id=team_id)
    async with fastpush.open_client(key, topic=topic, **elsewhere) as client:
        payload = fastpush.Payload(
            alert=fastpush.Alert(title="Core switch down", body="sw-core-01: no answer to 5 polls"),
            sound="default",
            interruption_level="time-sensitive",
        )
        notification = fastpush.Notification(device_token, payload, collapse_id="sw-core-01")
        try:
            response = await client.send(notification)
        except fastpush.OutcomeUnknown as error:
            print(f"may have been delivered: {error}")
        except fastpush.FastpushError as error:
            print(f"not delivered: {error}")
        else:
            print(response.outcome, response.reason or response.apns_id)


trio.run(main, *sys.argv[1:])
