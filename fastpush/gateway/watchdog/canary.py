"""The canary: a silent push now and then to a phone of one's own, that shows whether others would arrive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

import trio

from fastpush.errors import FastpushError
from fastpush.gateway.apps import App, Apps
from fastpush.gateway.config import SecretUnusable, WatchdogSettings, read_secret
from fastpush.gateway.log import get_logger
from fastpush.gateway.watchdog.judge import Trouble
from fastpush.notification import Notification, Payload

__all__ = ["Canary"]

logger = get_logger("fastpush.gateway.watchdog")

ANSWERED_WITHIN = 60.0  # seconds


@final
class Canary:
    """Sends while it is `run`.

    Args:
      changed: called after each push.

    Attributes:
      trouble: what was wrong with the last push, None where nothing was.
      known: one was sent since the start.
    """

    def __init__(self, settings: WatchdogSettings, apps: Apps, changed: Callable[[], None]) -> None:
        self._settings, self._apps, self._changed = settings, apps, changed
        self.trouble: Trouble | None = None
        self.known = False

    async def run(self) -> None:
        """Send until cancelled; without a device token and an app there is nothing to send."""
        settings = self._settings
        path, name = settings.canary_device_token_file, settings.canary_app or next(iter(self._apps))
        if path is None or name not in self._apps:
            logger.error("no canary: canary_device_token_file and canary_app are needed")
            return
        while True:
            await trio.sleep(settings.canary_minutes * 60)
            reason = await _send(self._apps[name], path)
            self.known, self.trouble = True, None
            if reason:
                self.trouble = Trouble(
                    kind="canary",
                    subject="",
                    title="The canary push was not accepted",
                    body=f"{reason}. Other pushes of {name} may fare alike.",
                    cure="Run `fastpush doctor`; if all is well, register the canary's device anew.",
                    apps=(name,),
                )
            self._changed()


async def _send(app: App, path: Path) -> str:
    """Why it was not accepted, "" when it was."""
    try:
        device_token = await trio.to_thread.run_sync(read_secret, path)
        push = Notification(device_token, Payload(content_available=True), push_type="background")
        line = app.best_line(app.settings.environments[0])
        if line.client is None:
            return line.stopped or "there is no connection"
        with trio.fail_after(ANSWERED_WITHIN):
            response = await line.client.send(push)
    except (FastpushError, SecretUnusable) as error:
        return str(error)
    except trio.TooSlowError:
        return f"no answer within {ANSWERED_WITHIN:g} s"
    return "" if response.accepted else f"{response.status} {response.reason}"
