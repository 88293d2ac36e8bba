"""A new credential without a restart: its files are watched, or it comes by HTTP.

    files changed ─> read ─> is it another one? ─> checks on this machine ─> proved to APNs ─> in use
                                                        │ no                     │ no
                                                        └──> refused, the reason told, the old one stays

What nobody answers about is taken on the local checks alone and proved later; a later no puts the old one
back. A file that cannot be read is looked at again a moment later: it may still be being written.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, final

import msgspec
import trio
import watchfiles

from fastpush.credentials import Credential, SigningKey
from fastpush.errors import CredentialRefused, FastpushError, InvalidCredential
from fastpush.gateway.apps import Role
from fastpush.gateway.config import AppSettings, CredentialSettings, SecretUnusable
from fastpush.gateway.credential_files import digest_of, directories_of, files_of, load_configured
from fastpush.gateway.http import ServerTLS
from fastpush.gateway.log import get_logger
from fastpush.gateway.problems import Problem
from fastpush.gateway.uploads import KEPT, UPLOAD, Offer, place_of, publish, write_draft

__all__ = ["Renewal", "Slot", "Verdict", "all_but"]

logger = get_logger("fastpush.gateway.renewal")

POLL_EVERY = 60.0  # seconds; network file systems tell nothing of a change
SETTLE = 1.0  # seconds after which a bad file is looked at again before it is refused
PROVE_EVERY = 60.0  # seconds between tries to prove what nobody answered about
STEP_MS = 50  # in which changes are gathered
WATCHED_AFTER = 1.0  # seconds after which a directory is surely watched; what came before is looked for then


class App(Protocol):
    """Of `apps.App`: what is asked here."""

    settings: AppSettings

    def credential(self, role: Role = "main") -> Credential | None: ...
    async def use_credential(
        self, credential: Credential, *, role: Role = "main", prove: bool = True
    ) -> None: ...


class Verdict(NamedTuple):
    """What became of a credential.

    Attributes:
      taken: it is in use.
      proved: APNs has taken it.
      reason: of a refusal; else "".
      source: the file, or "upload".
    """

    app: str
    role: Role
    credential: Credential | None
    taken: bool
    proved: bool
    reason: str
    source: str


@final
class Slot:
    """One place for a credential: an app's own or its standby.

    Attributes:
      verdict: of the last file, or of the last upload that was taken.
      proved: what is in use was taken by APNs, as far as it was asked.
    """

    def __init__(self, app: str, role: Role, settings: Callable[[], CredentialSettings]) -> None:
        self.app, self.role, self._settings = app, role, settings
        self.verdict: Verdict | None = None
        self.proved = True
        self.digest: str | None = None  # of the files when they were last judged
        self.previous: Credential | None = None  # to go back to, while the new one is not proved
        self.busy = trio.Lock()

    def __repr__(self) -> str:
        return f"<{self.role} credential of {self.app}>"

    @property
    def settings(self) -> CredentialSettings:
        """Those in force."""
        return self._settings()

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that it is made of."""
        return files_of(self.settings)

    @property
    def source(self) -> str:
        """The file that a new one goes to."""
        return os.fspath(self.settings.certificate_file or self.settings.key_file or "")


@final
class Renewal:
    """Watches, checks, proves and takes. `run` it; `look` and `offer` may be called from other tasks.

    Args:
      apps: by name.
      directory: for what comes by HTTP; made where it is missing.
      certificates: of our own listeners, with the files of each.
      told: called with each verdict; it must return at once.
      clock: UNIX seconds, the best that is known.
    """

    def __init__(
        self,
        apps: Mapping[str, App],
        directory: Path,
        *,
        certificates: Sequence[tuple[ServerTLS, Sequence[Path]]] = (),
        told: Callable[[Verdict], object] = lambda verdict: None,
        reloaded: Callable[[str | None], object] = lambda reason: None,
        clock: Callable[[], float] = time.time,
        database: Path | None = None,
    ) -> None:
        self._apps = apps
        self._matters = all_but(database)
        self._directory = directory
        self._certificates = tuple(certificates)
        self._certificate_digests: dict[int, str] = {}
        self._told, self._reloaded = told, reloaded
        self._clock = clock
        self._unproved = trio.Event()
        self.slots: dict[tuple[str, Role], Slot] = {}
        for name, app in apps.items():
            self.slots[name, "main"] = Slot(name, "main", partial(_settings_of, app, "main"))
            if app.settings.standby is not None:
                self.slots[name, "standby"] = Slot(name, "standby", partial(_settings_of, app, "standby"))

    async def run(self, *, task_status: trio.TaskStatus[Renewal] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled. What the files are now is taken for known."""
        for slot in self.slots.values():
            slot.digest = await trio.to_thread.run_sync(digest_of, slot.files)
        for number, (_, paths) in enumerate(self._certificates):
            self._certificate_digests[number] = await trio.to_thread.run_sync(digest_of, paths)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch)
            nursery.start_soon(self._prove_later)
            task_status.started(self)

    # Files.

    async def _watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at all files whenever one of their directories changes, and now and then besides."""
        changed = trio.Event()
        watching: frozenset[Path] = frozenset()
        scope: trio.CancelScope | None = None

        async def watch(directories: frozenset[Path], cancelled: trio.CancelScope) -> None:
            stopped = trio.Event()
            with cancelled:
                async with trio.open_nursery() as nursery:
                    # The thread that waits hears of a cancellation by this event only.
                    nursery.start_soon(_set_at_the_end, stopped)
                    try:
                        async for _ in watchfiles.awatch(
                            *directories,
                            watch_filter=self._matters,
                            recursive=False,
                            step=STEP_MS,
                            debounce=4 * STEP_MS,
                            stop_event=stopped,
                        ):
                            changed.set()
                    except (OSError, RuntimeError) as error:
                        # A directory was removed, or the kernel has no watches left.
                        logger.warning(
                            "files cannot be watched, and are looked at once a minute", error=str(error)
                        )

        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                wanted = await trio.to_thread.run_sync(directories_of, self._watched_files())
                again_after = POLL_EVERY
                if wanted != watching:
                    if scope is not None:
                        scope.cancel()
                    watching, scope = wanted, trio.CancelScope()
                    if wanted:
                        nursery.start_soon(watch, wanted, scope)
                        again_after = WATCHED_AFTER
                with trio.move_on_after(again_after):
                    await changed.wait()
                changed = trio.Event()
                try:
                    await self.look()
                except Exception:
                    logger.exception("a new credential could not be judged, and is tried again")

    def _watched_files(self) -> tuple[Path, ...]:
        own = (path for _, paths in self._certificates for path in paths)
        return tuple(path for slot in self.slots.values() for path in slot.files) + tuple(own)

    def judge_again(self, app: str) -> None:
        """Let the next `look` at an app's files judge again what was refused, since its topic is another."""
        for slot in self.slots.values():
            if slot.app == app and slot.verdict is not None and not slot.verdict.taken:
                slot.digest = None

    async def look(self) -> list[Verdict]:
        """Look at all files now; what was found of those that had changed."""
        found = []
        for slot in self.slots.values():
            verdict = await self._look_at(slot)
            if verdict is not None:
                found.append(verdict)
        for number, (tls, paths) in enumerate(self._certificates):
            await self._look_at_own(number, tls, paths)
        return found

    async def _look_at(self, slot: Slot) -> Verdict | None:
        async with slot.busy:
            digest = await trio.to_thread.run_sync(digest_of, slot.files)
            if digest == slot.digest:
                return None
            credential, reason = await self._load(lambda: load_configured(slot.settings, self._clock()))
            if credential is None:
                # It may be half written; then it changes again.
                await trio.sleep(SETTLE)
                again = await trio.to_thread.run_sync(digest_of, slot.files)
                if again != digest:
                    digest = again
                    credential, reason = await self._load(
                        lambda: load_configured(slot.settings, self._clock())
                    )
            slot.digest = digest
            if credential is None:
                return self._tell(slot, None, reason, source=slot.source)
            if credential == self._apps[slot.app].credential(slot.role):
                if slot.verdict is None or slot.verdict.taken:
                    return None  # another copy of the same
                return self._tell(slot, credential, "", proved=slot.proved, source=slot.source)
            verdict = await self._take(slot, credential, slot.source)
        if verdict.taken:
            # The configured file has changed since, so what came by HTTP has served its time.
            await trio.to_thread.run_sync(shutil.rmtree, self._place(slot), True)
        return verdict

    async def _look_at_own(self, number: int, tls: ServerTLS, paths: Sequence[Path]) -> None:
        digest = await trio.to_thread.run_sync(digest_of, paths)
        if digest == self._certificate_digests.get(number):
            return
        reason: str | None = None
        try:
            await trio.to_thread.run_sync(tls.reload)
        except (OSError, ValueError) as error:
            # Certificate and key are two files: between the two replacements they do not match.
            await trio.sleep(SETTLE)
            digest = await trio.to_thread.run_sync(digest_of, paths)
            try:
                await trio.to_thread.run_sync(tls.reload)
            except (OSError, ValueError):
                reason = f"{paths[0]}: {getattr(error, 'reason', None) or error.__class__.__name__}"
                reason = reason.replace("_", " ").lower()
        self._certificate_digests[number] = digest
        if reason is None:
            logger.info("the listener serves a new certificate", path=str(paths[0]))
        else:
            logger.error(
                "the listener keeps its certificate, the new one is refused",
                path=str(paths[0]),
                reason=reason,
            )
        self._reloaded(reason)

    async def _load(self, load: Callable[[], Credential]) -> tuple[Credential | None, str]:
        try:
            return await trio.to_thread.run_sync(load), ""
        except (InvalidCredential, SecretUnusable) as error:
            return None, str(error)
        except OSError as error:
            return None, f"{error.filename}: {error.strerror}"

    # Taking.

    async def _take(self, slot: Slot, credential: Credential, source: str) -> Verdict:
        """Check and prove a credential, and use it; what is wrong with it leaves the old one in place."""
        app = self._apps[slot.app]
        try:
            credential.check_topic(app.settings.topic)
            for environment in app.settings.environments:
                credential.check_environment(environment)
        except InvalidCredential as error:
            return self._tell(slot, credential, str(error), source=source)
        previous = app.credential(slot.role)
        proved = True
        try:
            await app.use_credential(credential, role=slot.role)
        except (CredentialRefused, InvalidCredential) as error:
            return self._tell(slot, credential, str(error), source=source)
        except FastpushError as error:
            # Nobody answered. What works on this machine is better than what is about to end.
            try:
                await app.use_credential(credential, role=slot.role, prove=False)
            except FastpushError as problem:
                return self._tell(slot, credential, str(problem), source=source)
            logger.warning(
                "a credential is used and not proved yet", app=slot.app, credential=credential.identity,
                error=str(error),
            )  # fmt: skip
            proved = False
        slot.proved = proved
        slot.previous = None if proved else previous
        if not proved:
            self._unproved.set()
        return self._tell(slot, credential, "", proved=proved, source=source)

    def _tell(
        self, slot: Slot, credential: Credential | None, reason: str, *, proved: bool = False, source: str
    ) -> Verdict:
        verdict = Verdict(slot.app, slot.role, credential, not reason, proved, reason, source)
        if not reason or source != UPLOAD:
            slot.verdict = verdict  # what was refused of an upload hears whoever has sent it
        if reason:
            logger.error("the new credential is refused, the old one stays", app=slot.app, reason=reason)
        elif credential is not None:
            logger.info("a credential is in use", app=slot.app, credential=credential.identity)
        self._told(verdict)
        return verdict

    async def _prove_later(self) -> None:
        """Ask again about what was taken unproved, until there is an answer."""
        while True:
            waiting = [slot for slot in self.slots.values() if not slot.proved]
            if not waiting:
                self._unproved = trio.Event()
                await self._unproved.wait()
                continue
            await trio.sleep(PROVE_EVERY)
            for slot in waiting:
                async with slot.busy:
                    await self._prove(slot)

    async def _prove(self, slot: Slot) -> None:
        app = self._apps[slot.app]
        credential = app.credential(slot.role)
        if slot.proved or credential is None:
            return
        source = slot.verdict.source if slot.verdict is not None else slot.source
        try:
            await app.use_credential(credential, role=slot.role)
        except (CredentialRefused, InvalidCredential) as error:
            slot.proved = True
            if slot.previous is not None:
                await app.use_credential(slot.previous, role=slot.role, prove=False)
                slot.previous = None
            if source == UPLOAD:
                await trio.to_thread.run_sync(shutil.rmtree, self._place(slot), True)
            slot.verdict = self._tell(slot, credential, str(error), source=source)
        except FastpushError:
            return  # still nobody
        else:
            slot.proved, slot.previous = True, None
            self._tell(slot, credential, "", proved=True, source=source)

    # Uploads.

    def _place(self, slot: Slot) -> Path:
        return place_of(self._directory, slot.app, slot.role)

    async def offer(self, app: str, role: Role, offer: Offer) -> Verdict:
        """Take a credential that came by HTTP, so that it survives a restart.

        Raises:
          KeyError: there is no such app or role.
          OSError: it cannot be written; then it is not used either.
        """
        slot = self.slots[app, role]
        async with slot.busy:
            now = self._clock()
            credential, reason = await self._load(lambda: offer.load(now=now))
            if credential is None:
                return self._tell(slot, None, reason, source=UPLOAD)
            configured = await trio.to_thread.run_sync(digest_of, slot.files)
            kept = msgspec.structs.replace(offer, configured=configured)
            place = self._place(slot)
            draft = await trio.to_thread.run_sync(write_draft, place, msgspec.msgpack.encode(kept))
            try:
                verdict = await self._take(slot, credential, UPLOAD)
                if verdict.taken:
                    await trio.to_thread.run_sync(publish, draft, place / KEPT)
            finally:
                with trio.CancelScope(shield=True), suppress(FileNotFoundError):
                    await trio.to_thread.run_sync(os.unlink, draft)
            return verdict

    async def accept(
        self,
        app: str,
        octets: bytes,
        *,
        password: str | None = None,
        key_id: str | None = None,
        team_id: str | None = None,
        by: object = None,
    ) -> str:
        """Do the same with a file that somebody has chosen in the console, and say what was done.

        Raises:
          Problem: 422, it was refused.
        """
        name = getattr(by, "name", "somebody")
        if key_id or team_id:
            used = self._apps[app].credential()
            if team_id is None and isinstance(used, SigningKey):
                team_id = used.team_id
            offer = Offer(key=octets, key_id=key_id, team_id=team_id)
        else:
            offer = Offer(certificate=octets, password=password)
        verdict = await self.offer(app, "main", offer)
        if not verdict.taken or verdict.credential is None:
            raise Problem(422, "credential refused", f"The old one stays in use. {verdict.reason}.")
        logger.info("a credential was uploaded", app=app, credential=verdict.credential.identity, by=name)
        if verdict.proved:
            return f"In use and proved: {verdict.credential.identity}."
        return f"In use: {verdict.credential.identity}. APNs did not answer; it will be proved later."


def all_but(database: Path | None) -> Callable[[object, str], bool] | None:
    """A filter of changes: all of a directory, without the database that may lie there and its files.

    These change with every commit. Of others nothing is known: a credential may be exchanged by a link whose
    name is not its own.
    """
    if database is None:
        return None
    name = database.name
    return lambda change, path: not os.path.basename(path).startswith(name)


async def _set_at_the_end(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


def _settings_of(app: App, role: Role) -> CredentialSettings:
    """Those in force; a standby that the configuration has no more is read as the app's own."""
    return (app.settings.standby if role == "standby" else None) or app.settings.credential
