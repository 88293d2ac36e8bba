"""Another configuration for a gateway that runs: what can change does, the rest is named and stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import trio

from fastpush.credentials import Credential
from fastpush.errors import FastpushError, InvalidCredential
from fastpush.gateway.api import Gateway
from fastpush.gateway.apps import App, Role
from fastpush.gateway.config import AppSettings, Config, NoticeSettings
from fastpush.gateway.http import ServerTLS
from fastpush.gateway.notices import Carrier
from fastpush.gateway.notices.channels import why_unusable
from fastpush.gateway.routes import Routes

__all__ = ["Change", "reload"]

_ROLES: tuple[tuple[Role, str], ...] = (("main", "credential"), ("standby", "standby"))


class Change(NamedTuple):
    """What became of an option that differs.

    Attributes:
      key: the option, `apps.opmanager.credential`.
      result: "changed", or it stays because it "needs a restart" or was "refused".
      reason: of a refusal.
    """

    key: str
    result: Literal["changed", "needs a restart", "refused"]
    reason: str = ""

    def __str__(self) -> str:
        if self.result == "refused":
            return f"{self.key}: refused, and the old one stays: {self.reason}"
        return f"{self.key}: {self.result}" + ("; it stays as it is" if self.result != "changed" else "")


async def reload(
    gateway: Gateway,
    old: Config,
    new: Config,
    certificates: Sequence[ServerTLS],
    carriers: Callable[[Config], list[Carrier]],
) -> tuple[Config, list[Change]]:
    """Go by a new configuration as far as that is possible.

    Credentials and certificates are read again also where their options are the same, since their files
    may have changed. A credential is proved to APNs before it is used.

    Args:
      gateway: what is to change.
      old: what holds now.
      new: what is wanted.
      certificates: of the listeners.
      carriers: gives what a configuration's notices are told by.

    Returns:
      What holds from now on, and what differed.
    """
    changes: list[Change] = []
    kept = old
    if (old.routes, old.alarms.admin_tag) != (new.routes, new.alarms.admin_tag):
        changes.append(Change("routes", "changed"))
    if old.alarms.look != new.alarms.look:
        changes.append(Change("alarms.look", "changed"))
    alarms = msgspec.structs.replace(
        old.alarms, admin_tag=new.alarms.admin_tag, look=new.alarms.look
    )  # not its app
    kept = msgspec.structs.replace(kept, routes=new.routes, alarms=alarms)
    gateway.alarms.configure(Routes(kept.routes, alarms.admin_tag), alarms.look.look())
    apps = dict(kept.apps)
    for name in kept.apps:
        if name in new.apps:
            apps[name] = await _change_app(gateway, kept.apps[name], new.apps[name], changes)
    notices = await trio.to_thread.run_sync(_change_notices, old.notices, new.notices, changes)
    kept = msgspec.structs.replace(kept, apps=apps, notices=notices)
    if (kept.notices, kept.alarms.admin_tag) != (old.notices, old.alarms.admin_tag):
        gateway.notices.use_carriers(carriers(kept))
    if gateway.watchdog is not None:
        # Of the same files, whose content may be another; what came by HTTP stays until they change.
        for verdict in await gateway.watchdog.renewal.look():
            option = "credential" if verdict.role == "main" else "standby"
            result: Literal["changed", "refused"] = "changed" if verdict.taken else "refused"
            changes.append(Change(f"apps.{verdict.app}.{option}", result, verdict.reason))
        gateway.watchdog.configure(kept)
    for certificate in certificates:
        try:
            if await trio.to_thread.run_sync(certificate.reload):
                changes.append(Change("tls", "changed"))
        except OSError as error:
            changes.append(Change("tls", "refused", str(error)))
    before, after = dict(_options(kept)), dict(_options(new))
    refused = tuple(change.key for change in changes if change.result == "refused")
    for key in [*before, *(key for key in after if key not in before)]:
        if before.get(key) != after.get(key) and not key.startswith(refused):
            changes.append(Change(key, "needs a restart"))
    return kept, changes


def _change_notices(old: NoticeSettings, new: NoticeSettings, changes: list[Change]) -> NoticeSettings:
    """Judge each table of `[notices]` by itself, and return them as they now hold. Reads their files."""
    kept = old
    for table in new.__struct_fields__:
        wanted = getattr(new, table)
        if wanted == getattr(old, table):
            continue
        reason = None if wanted is None else why_unusable(wanted)
        if reason is None:
            kept = msgspec.structs.replace(kept, **{table: wanted})
        result: Literal["changed", "refused"] = "changed" if reason is None else "refused"
        changes.append(Change(f"notices.{table}", result, reason or ""))
    return kept


async def _change_app(
    gateway: Gateway, old: AppSettings, new: AppSettings, changes: list[Change]
) -> AppSettings:
    """Change topic, credentials and limits of an app, and return its settings as they now hold."""
    app: App = gateway.apps[old.name]
    kept = old
    before = {role: app.credential(role) for role, _ in _ROLES}
    if old.topic != new.topic:
        try:
            await app.use_topic(new.topic, await _for_topic(app, old, new))
        except (FastpushError, OSError) as error:
            changes.append(Change(f"apps.{old.name}.topic", "refused", str(error)))
        else:
            kept = msgspec.structs.replace(kept, topic=new.topic)
            if gateway.watchdog is not None:
                gateway.watchdog.renewal.judge_again(old.name)
            changes.append(Change(f"apps.{old.name}.topic", "changed"))
    for role, option in _ROLES:
        wanted = getattr(new, option)
        if wanted is None:
            if getattr(old, option) is not None:
                kept = msgspec.structs.replace(kept, standby=None)
                changes.append(Change(f"apps.{old.name}.{option}", "changed"))
            continue
        if wanted == getattr(old, option) and gateway.watchdog is not None:
            continue
        try:
            credential = await trio.to_thread.run_sync(wanted.load)
            if credential != app.credential(role):
                await app.use_credential(credential, role=role)
            if credential != before[role]:
                changes.append(Change(f"apps.{old.name}.{option}", "changed"))
        except (FastpushError, OSError) as error:
            changes.append(Change(f"apps.{old.name}.{option}", "refused", str(error)))
        else:
            kept = msgspec.structs.replace(kept, **{option: wanted})
    if old.max_waiting != new.max_waiting:
        kept = msgspec.structs.replace(kept, max_waiting=new.max_waiting)
        gateway.outbox.max_waiting[old.name] = new.max_waiting
        changes.append(Change(f"apps.{old.name}.max_waiting", "changed"))
    app.settings = kept
    return kept


async def _for_topic(app: App, old: AppSettings, new: AppSettings) -> dict[Role, Credential]:
    """What is to push for a new topic: the credentials in use, where they can, or else what is configured."""
    found: dict[Role, Credential] = {}
    for role, option in _ROLES:
        wanted, used = getattr(new, option), app.credential(role)
        if used is not None and wanted == getattr(old, option) and _covers(used, new.topic):
            found[role] = used
        elif wanted is not None:
            found[role] = await trio.to_thread.run_sync(wanted.load)
    return found


def _covers(credential: Credential, topic: str) -> bool:
    try:
        credential.check_topic(topic)
    except InvalidCredential:
        return False
    return True


def _options(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each option by its name, and a list as one."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _options(each, f"{key}.{name}" if key else name)
    elif value is not None:
        yield key, value
