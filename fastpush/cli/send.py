"""`fastpush send`: one notification by options, or a file of them."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import click
import orjson
import trio

from fastpush._begun_as_command import INTERRUPTED
from fastpush.cli.account import Account, Results, open_meter, reason_of
from fastpush.cli.destination import Destination, destination_options
from fastpush.cli.lines import Source
from fastpush.cli.running import Failure, Misuse, on_interrupt, run, write_json, write_note
from fastpush.client import Client, open_client
from fastpush.credentials import Credential, ProviderCertificate, SigningKey
from fastpush.errors import CredentialRefused, FastpushError, InvalidCredential, InvalidNotification
from fastpush.events import ClientEvent, CredentialWasRefused, Lost
from fastpush.notification import Alert, Notification, Payload, Response

__all__ = ["send"]

MOST_SHOWN = 10
"""So many single outcomes or bad lines are shown; the results file has them all."""

GRACE = 5.0
"""Seconds that what is in flight has after Ctrl-C; a second Ctrl-C takes them away."""

# What the answer to a single push means for the person at the keyboard. Apple, "Handling notification
# responses from APNs".
CURES = {
    "BadDeviceToken": "The device token is mistyped, or of the other environment: try --environment.",
    "BadTopic": "The topic is no bundle id that APNs knows.",
    "DeviceTokenNotForTopic": "The device token belongs to another app than --topic.",
    "ExpiredToken": "The device token is no longer in use.",
    "MissingTopic": "Give the app's bundle id with --topic.",
    "TopicDisallowed": "The key or certificate may not push to this --topic.",
    "Unregistered": "The app is gone from the device.",
}


class Options(NamedTuple):
    """What the run needs beside the notifications."""

    credential: Credential
    destination: Destination
    max_connections: int
    connect_within: float
    as_json: bool
    quiet: bool


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(no_args_is_help=True)
@click.argument("device_tokens", nargs=-1, metavar="[DEVICE_TOKEN]...")
@destination_options(from_environment=True)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="At most so many connections at once.",
)
@click.option(
    "--connect-within",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up when there is no connection by then.",
)
@click.option("--title", help="First line of the alert.")
@click.option("--subtitle", help="Second line of the alert.")
@click.option("--body", help="Text of the alert.")
@click.option("--badge", type=int, help="Number on the app's icon; 0 removes it.")
@click.option("--sound", help='"default", or a sound file of the app.')
@click.option("--category", help="Its actions, as the app has registered them.")
@click.option("--thread-id", help="Groups notifications on the phone.")
@click.option("--interruption-level", help="passive, active, time-sensitive or critical.")
@click.option("--content-available", is_flag=True, help="Wake the app in the background.")
@click.option("--mutable-content", is_flag=True, help="Run the app's service extension first.")
@click.option("--data", metavar="JSON", help="Object of custom keys beside aps.")
@click.option("--push-type", help="alert (the default), background, voip, …")
@click.option("--priority", type=int, help="10 now, 5 with regard to power, 1 lowest.")
@click.option("--expiration", metavar="WHEN", help="UNIX seconds, or 2027-01-31T12:00:00Z; 0: one attempt.")
@click.option("--collapse-id", help="Replaces the notification with the same id.")
@click.option(
    "--from", "source", type=click.File("rb"), metavar="FILE", help="One notification a line; or -."
)
@click.option("--results", type=_FILE, help="Write each outcome to this file, a line each.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def send(
    device_tokens: tuple[str, ...],
    destination: Destination,
    max_connections: int,
    connect_within: float,
    source: BinaryIO | None,
    results: Path | None,
    as_json: bool,
    quiet: bool,
    **content: Any,
) -> None:
    """Send a notification to each DEVICE_TOKEN, or those of a file.

    A file has one JSON object a line: device_token, payload, and where needed topic, push_type, priority,
    expiration, collapse_id, apns_id. It may be of any length, and - stands for standard input.
    """
    given = [name for name, value in content.items() if value is not None and value is not False]
    if source is not None and device_tokens:
        raise click.UsageError("Give device tokens or --from, not both.")
    if source is not None and given:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} cannot be used with --from: the lines say it."
        )
    if source is None and not device_tokens:
        raise click.UsageError("Give at least one device token, or --from FILE.")
    credential = load_credential(destination)
    if source is None and destination.topic is None and getattr(credential, "default_topic", None) is None:
        raise click.UsageError("Give --topic, the app's bundle id.")
    notifications = list(compose(device_tokens, content)) if source is None else source
    options = Options(credential, destination, max_connections, connect_within, as_json, quiet)
    with open_results(results) as file:
        run(lambda: Run(options, notifications, Results(file)).main())


def load_credential(given: Destination) -> Credential:
    """Load the one credential that the options name."""
    key, certificate = given.key, given.certificate
    if (key is None) == (certificate is None):
        raise click.UsageError("Give --key with --team-id, or --certificate.")
    try:
        if certificate is not None:
            password = os.environ.get("FASTPUSH_PASSWORD")
            if given.password_file is not None:
                password = given.password_file.read_text().rstrip("\r\n")
            return ProviderCertificate.from_file(
                certificate, password=password, key_file=given.certificate_key
            )
        assert key is not None
        if given.team_id is None:
            raise click.UsageError("--key needs --team-id; Apple's developer page shows it at the top right.")
        return SigningKey.from_file(key, key_id=given.key_id, team_id=given.team_id)
    except InvalidCredential as error:
        raise Misuse(str(error)) from None
    except OSError as error:
        raise Misuse(f"{error.filename}: {error.strerror}") from None


def compose(device_tokens: Iterable[str], content: dict[str, Any]) -> Iterator[Notification]:
    """Make one payload of the options, and a notification with it for each device token."""
    texts = {name: content.pop(name) for name in ("title", "subtitle", "body")}
    try:
        payload = Payload(
            alert=Alert(**texts) if any(text is not None for text in texts.values()) else None,
            data=parse_data(content.pop("data")),
            **{
                name: content.pop(name)
                for name in (
                    "badge", "sound", "category", "thread_id", "interruption_level", "content_available",
                    "mutable_content",
                )
            },
        )  # fmt: skip
        push_type = content.pop("push_type") or "alert"
        expiration = parse_expiration(content.pop("expiration"))
        for device_token in device_tokens:
            yield Notification(device_token, payload, push_type=push_type, expiration=expiration, **content)
    except InvalidNotification as error:
        raise Misuse(str(error)) from None
    if push_type == "alert" and payload == Payload():
        raise Misuse("nothing to show: give --title, --body, --badge, --sound or --data")


def parse_data(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Misuse(f"--data is not JSON: {error.msg} at column {error.colno}") from None
    if type(data) is not dict:
        raise Misuse('--data must be a JSON object, such as {"alarm": 4092}')
    return data


def parse_expiration(text: str | None) -> int | datetime.datetime | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise Misuse(f"--expiration is {text!r}; give UNIX seconds or 2027-01-31T12:00:00Z") from None
    if when.tzinfo is None:
        raise Misuse(f"--expiration is {text!r}; it needs a time zone, such as a Z at the end for UTC")
    return when


@contextlib.contextmanager
def open_results(path: Path | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise Misuse(f"--results {path}: {error.strerror}") from None
    with file:
        yield file


class Run:
    """One `fastpush send`, from the first connection to the summary."""

    def __init__(
        self, options: Options, notifications: list[Notification] | BinaryIO, results: Results
    ) -> None:
        self.options = options
        self.results = results
        self.account = Account()
        self.notes = 0
        self.last_trouble = ""
        self.interrupts = 0
        self.refused: CredentialRefused | None = None
        self.patience = trio.CancelScope()
        self.source: Source | None = None
        self.notifications: list[Notification] = []
        if isinstance(notifications, list):
            self.notifications = notifications
            self.numbers = {id(each): number for number, each in enumerate(notifications, 1)}
        else:
            self.source = Source(notifications, self.take_bad_line)
            self.numbers = self.source.numbers

    async def main(self) -> int:
        """Send everything, print the summary, and return the exit code."""
        async with trio.open_nursery() as nursery:
            await nursery.start(on_interrupt, self.interrupt)
            with self.patience:
                async with contextlib.AsyncExitStack() as stack:
                    client = await self.open(stack)
                    await self.connect(client)
                    await self.send_all(client)
            nursery.cancel_scope.cancel()
        self.close_account()
        return self.report()

    async def open(self, stack: contextlib.AsyncExitStack) -> Client:
        """Open the client; what it refuses is the fault of an option."""
        options = self.options
        try:
            return await stack.enter_async_context(
                open_client(
                    options.credential,
                    topic=options.destination.topic,
                    environment=options.destination.environment,
                    host=options.destination.host,
                    port=options.destination.port,
                    ca_file=options.destination.ca_file,
                    proxy=options.destination.proxy,
                    max_connections=options.max_connections,
                    listener=self.listen,
                )
            )
        except ValueError as error:
            raise Misuse(str(error)) from None

    async def connect(self, client: Client) -> None:
        """Wait for the first connection, so that a wrong host is told and not waited for."""
        options = self.options
        try:
            with trio.fail_after(options.connect_within):
                await client.wait_ready()
        except trio.TooSlowError:
            cause = f": {self.last_trouble}" if self.last_trouble else ""
            raise Failure(f"no connection within {options.connect_within:g} s{cause}") from None
        except FastpushError as error:
            raise Failure(str(error)) from None

    async def send_all(self, client: Client) -> None:
        """Send what there is to send and account for each response."""
        source, account = self.source, self.account
        notifications = self.notifications if source is None else source.notifications()
        total = None if source is None else source.total_octets
        quiet = self.options.quiet or source is None
        with open_meter(sys.stderr, total, quiet=quiet) as meter:
            async with client.send_many(notifications) as responses:
                async for batch in responses.batches():
                    for response in batch:
                        self.take(response)
                    self.results.flush()
                    if source is not None:
                        meter.show(account.total, source.octets)

    def take(self, response: Response) -> None:
        line = self.numbers.pop(id(response.notification))
        self.account.add(response)
        self.results.write(line, response)
        if isinstance(response.error, CredentialRefused) and self.refused is None:
            self.refused = response.error
            self.stop()
        if self.source is None and not self.options.as_json:
            self.note(describe(response))

    def take_bad_line(self, line: int, reason: str) -> None:
        self.account.invalid += 1
        self.results.write_invalid(line, reason)
        self.note(f"line {line:,}: {reason}")

    def note(self, text: str) -> None:
        self.notes += 1
        if self.notes <= MOST_SHOWN:
            write_note(text)
        elif self.notes == MOST_SHOWN + 1:
            write_note("… and more; --results FILE gets them all")

    def listen(self, event: ClientEvent) -> None:
        """Keep what the connections complain of, for the message that may become necessary."""
        if isinstance(event, Lost):
            self.last_trouble = f"{event.host}: {event.reason}"
        elif isinstance(event, CredentialWasRefused):
            self.last_trouble = event.reason

    def interrupt(self) -> None:
        """The first Ctrl-C reads no further, the second waits no longer."""
        self.interrupts += 1
        self.stop()
        if self.interrupts == 1:
            self.patience.deadline = trio.current_time() + GRACE
            if self.numbers:
                write_note(f"waiting for {len(self.numbers):,} on their way; Ctrl-C again leaves at once")
        else:
            self.patience.cancel()

    def stop(self) -> None:
        if self.source is not None:
            self.source.stop()

    def close_account(self) -> None:
        """What was handed over and not answered before the end is of unknown outcome."""
        for line in self.numbers.values():
            self.results.write_unfinished(line)
        self.results.flush()
        self.account.add_unfinished(len(self.numbers))

    def report(self) -> int:
        account, source = self.account, self.source
        interrupted = self.interrupts > 0
        if self.options.as_json:
            write_json(account.as_json(interrupted=interrupted, read=None if source is None else source.read))
        else:
            click.echo(account.as_text())
        if interrupted:
            where = "" if source is None else f" after line {source.read:,}"
            given_up = "; did not wait for what was on its way" if self.patience.cancelled_caught else ""
            write_note(f"interrupted{where}{given_up}")
            return INTERRUPTED
        if self.refused is not None:
            write_note(f"APNs refuses the credential: {self.refused}")
            if source is not None:
                write_note(f"nothing was read after line {source.read:,}")
        return 0 if account.good else 1


def describe(response: Response) -> str:
    """One line on one notification, with the cure where there is a usual one."""
    device_token = response.notification.device_token
    shown = f"{device_token[:4]}…{device_token[-4:]}"
    if response.accepted:
        return f"{shown}  accepted, apns-id {response.apns_id}"
    words = [str(word) for word in (response.status, reason_of(response)) if word]
    cure = CURES.get(response.reason or "", "")
    return f"{shown}  {response.outcome.replace('_', ' ')}: {' '.join(words)}" + (
        f"\n  {cure}" if cure else ""
    )
