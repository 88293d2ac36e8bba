"""`fastpush doctor`: proves a configuration, or one credential, step by step, and says what helps."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec
import trio

from fastpush.gateway.config import AppSettings, Config, CredentialSettings, SecretUnusable
from fastpush.gateway.doctor.files import check_files, check_time, check_use, load, topic_of
from fastpush.gateway.doctor.ingest import check_ingest
from fastpush.gateway.doctor.network import check_clock, check_network, check_request, check_trust
from fastpush.gateway.doctor.values import Check, Target

__all__ = ["Check", "Target", "examine", "examine_config", "targets_of"]


async def examine(target: Target, *, clock: Callable[[], float] = time.time) -> AsyncGenerator[Check, None]:
    """Check one credential from its files to APNs' answer, in this order, each line as soon as it is known.

    Args:
      clock: UNIX seconds, as this machine has them.
    """
    async for check in _examine(target, clock):
        yield msgspec.structs.replace(check, about=target.about)


async def _examine(target: Target, clock: Callable[[], float]) -> AsyncIterator[Check]:
    usable = True
    for check in await trio.to_thread.run_sync(lambda: list(check_files(target))):
        usable &= not (check.state == "failed" and "there is no such file" in check.found)
        yield check
    credential = None
    if usable:
        credential, check = await trio.to_thread.run_sync(load, target)
        yield check
    topic = target.topic
    wrong = []  # by the file itself
    if credential is not None:
        for check in [check_time(credential, clock()), *check_use(credential, target)]:
            wrong += [check.name] * (check.state == "failed")
            yield check
        topic = topic_of(credential, target)
    yield await check_trust(target, clock())
    reached = False
    async for check in check_network(target):
        reached = check.name == "TLS" and check.state == "ok"
        yield check
    answer = None
    if credential is not None and topic is not None and reached:
        check, answer = await check_request(credential, topic, target)
        if check.state == "failed" and wrong:
            cure = f"This follows from what is said of {' and '.join(wrong)} above: mend that first."
            check = msgspec.structs.replace(check, cure=cure)
        yield check
    else:
        lacks = "no connection" if not reached else "no credential" if credential is None else "no topic"
        yield Check("request", "skipped", f"{lacks}: see above")
    yield check_clock(answer, clock())


async def examine_config(
    config: Config,
    *,
    name: str | None = None,
    ca_file: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Check]:
    """Check every credential of a configuration, and the ingest's certificate.

    Args:
      name: the host name by which senders know the ingest.
      ca_file: the authorities that senders trust, in place of this machine's.
    """
    for target in targets_of(config):
        async for check in examine(target, clock=clock):
            yield check
    tls = config.ingest.tls
    for check in await trio.to_thread.run_sync(
        lambda: list(check_ingest(tls, clock(), name=name, ca_file=ca_file))
    ):
        yield check


def targets_of(config: Config) -> Iterable[Target]:
    """Each credential with each environment that it is used for."""
    for name, app in config.apps.items():
        for role, credential in (("", app.credential), (" standby", app.standby)):
            if credential is not None:
                for environment in app.environments:
                    which = f", {environment}" if len(app.environments) > 1 else ""
                    yield _target(f"{name}{role}{which}", app, credential, environment)


def _target(about: str, app: AppSettings, credential: CredentialSettings, environment: str) -> Target:
    development = environment == "development"
    try:
        proxy = app.proxy_url()
    except SecretUnusable:
        proxy = None  # the configuration's own check has told of it
    return Target(
        about=about,
        topic=app.topic,
        environment="development" if development else "production",
        key_file=credential.key_file,
        key_id=credential.key_id,
        team_id=credential.team_id,
        certificate_file=credential.certificate_file,
        private_key_file=credential.private_key_file,
        password_file=credential.password_file,
        host=app.development_host if development and app.development_host else app.host,
        port=app.development_port if development and app.development_port else app.port,
        ca_file=app.ca_file,
        proxy=proxy,
    )
