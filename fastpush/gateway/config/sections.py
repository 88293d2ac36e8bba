"""What can be configured: a Struct for each table of the file, with its units, limits and defaults.

A field's docstring is its line in docs/configuration.md; units are in the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fastpush.credentials import Credential, ProviderCertificate, SigningKey
from fastpush.errors import InvalidCredential
from fastpush.gateway import banners, storage
from fastpush.gateway.config.secrets import read_secret
from fastpush.gateway.outbox.history import Keep
from fastpush.gateway.outbox.sqlite import OutboxLimits
from fastpush.gateway.routes import Route

__all__ = [
    "SECRET",
    "AdminSettings",
    "AlarmSettings",
    "AppSettings",
    "AuthSettings",
    "Config",
    "CredentialSettings",
    "DeviceSettings",
    "DispatchSettings",
    "IngestSettings",
    "LogSettings",
    "LookSettings",
    "NoticeSettings",
    "RestSettings",
    "SmtpSettings",
    "StorageSettings",
    "StyleSettings",
    "TLSSettings",
    "TracingSettings",
    "WatchdogSettings",
    "WebhookSettings",
]

SECRET = "secret"
_MIB = 1 << 20
_HOUR = 3600.0

Secret = Annotated[Path, Meta(extra={SECRET: True})]
"""A file that holds a secret: nobody but its owner, and a group that is ours, may read it."""
Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+([/?][^\s#]*)?$")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TLSSettings(_Section, frozen=True):
    """TLS of a listener.

    Attributes:
      certificate_file: PEM, the server's certificate first, then its chain.
      key_file: PEM, its private key.
      client_ca_file: PEM of the authorities that sign client certificates.
      client_certificates: whether clients may, or must, show a certificate; needs `client_ca_file`.
    """

    certificate_file: Path
    key_file: Secret
    client_ca_file: Path | None = None
    client_certificates: Literal["none", "optional", "required"] = "none"


class IngestSettings(_Section, frozen=True):
    """Where senders and phones connect.

    Attributes:
      listen: `host:port`, `[::1]:port`, `:port` (all of IPv4), `unix:/path`, `fd://3`, or `fd://NAME` of a
        systemd socket with that FileDescriptorName.
      trusted_proxies: addresses and networks whose forwarded client addresses count; `unix` for whoever
        connects to a Unix socket.
      proxy_header: the one that these proxies write.
      max_connections, max_connections_per_address: more are refused with 503.
      max_per_key: notifications a second that one key may send, on average over ten seconds; more are refused
        with 429. 0 is no limit.
      tls: without it plain HTTP is spoken; Unix sockets always speak plain HTTP.
    """

    listen: tuple[str, ...] = ("127.0.0.1:8080",)
    trusted_proxies: tuple[str, ...] = ()
    proxy_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    max_connections: Count = 1024
    max_connections_per_address: Count = 512
    max_per_key: Amount = 0
    tls: TLSSettings | None = None


class AdminSettings(_Section, frozen=True):
    """Where console, metrics and administration are.

    Attributes:
      listen: as for `ingest`.
      tls: as for `ingest`.
    """

    listen: tuple[str, ...] = ("127.0.0.1:8081",)
    tls: TLSSettings | None = None


class StorageSettings(_Section, frozen=True):
    """The gateway's one file.

    Attributes:
      path: of the database, on a local disk; its directory must exist.
      low_water_mib, low_water_percent: below the larger of the two nothing new is accepted (507).
      max_file_mib: a larger file accepts nothing new (503).
      max_waiting: so many accepted and not ended, of all apps together; more are refused (503).
      bodies_hours, failed_bodies_hours: how long payloads are kept, and those of what failed.
      history_days, history_mib: how long outcomes are kept, at most so many.
      idempotency_hours: how long an `Idempotency-Key` is remembered.
    """

    path: Path = Path("gateway.db")
    low_water_mib: Amount = 256
    low_water_percent: Annotated[float, Meta(ge=0, le=90)] = 5.0
    max_file_mib: Count = 2048
    max_waiting: Count = 5_000_000
    bodies_hours: Annotated[float, Meta(ge=0)] = 24.0
    failed_bodies_hours: Annotated[float, Meta(ge=0)] = 168.0
    history_days: Annotated[float, Meta(gt=0)] = 30.0
    history_mib: Count = 1024
    idempotency_hours: Annotated[float, Meta(ge=1)] = 24.0

    def limits(self) -> storage.Limits:
        """For `open_storage`."""
        return storage.Limits(
            low_water_octets=self.low_water_mib * _MIB, low_water_share=self.low_water_percent / 100
        )

    def outbox_limits(self) -> OutboxLimits:
        """For `open_outbox`."""
        return OutboxLimits(waiting_entries=self.max_waiting, file_octets=self.max_file_mib * _MIB)

    def keep(self) -> Keep:
        """For `open_outbox`."""
        return Keep(
            bodies_after=self.bodies_hours * _HOUR,
            failed_bodies_after=self.failed_bodies_hours * _HOUR,
            history_after=self.history_days * 24 * _HOUR,
            history_octets=self.history_mib * _MIB,
            idempotency_after=self.idempotency_hours * _HOUR,
        )


class CredentialSettings(_Section, frozen=True):
    """What proves to APNs who is sending: a signing key (.p8) or a provider certificate.

    Attributes:
      key_file: the signing key as Apple gave it.
      key_id: 10 letters and digits; not needed where the file is still called `AuthKey_<key id>.p8`.
      team_id: 10 letters and digits, from the developer account.
      certificate_file: .p12, or PEM with the private key or beside it.
      private_key_file: PEM, where `certificate_file` has no private key.
      password_file: a file with the password of the .p12 or of the private key.
    """

    key_file: Secret | None = None
    key_id: Annotated[str, Meta(pattern="^[A-Z0-9]{10}$")] | None = None
    team_id: Annotated[str, Meta(pattern="^[A-Z0-9]{10}$")] | None = None
    certificate_file: Path | None = None
    private_key_file: Secret | None = None
    password_file: Secret | None = None

    def load(self) -> Credential:
        """Read the files. Raises InvalidCredential, OSError."""
        if self.key_file is not None:
            if self.team_id is None:
                raise InvalidCredential("key_file needs team_id")
            return SigningKey.from_file(self.key_file, key_id=self.key_id, team_id=self.team_id)
        if self.certificate_file is None:
            raise InvalidCredential("neither key_file nor certificate_file is given")
        # APNs judges its time; our own clock may be wrong.
        password = None
        if self.password_file is not None:
            password = Path(self.password_file).read_bytes().removesuffix(b"\n").removesuffix(b"\r")
        return ProviderCertificate.from_file(
            self.certificate_file, password=password, key_file=self.private_key_file, allow_expired=True
        )


class AppSettings(_Section, frozen=True):
    """One app, named by its table: `[apps.NAME]`.

    Attributes:
      name: the table's; not written in it.
      topic: the bundle id.
      environment: of its device tokens; "both" where some are of development builds. Which one a device
        token belongs to is then found out once and remembered.
      credential: see `[apps.NAME.credential]`.
      standby: takes over while APNs refuses the credential.
      host, port: another APNs than Apple's, such as the simulator; port 2197 is Apple's second.
      development_host, development_port: the same for the environment "development".
      ca_file: PEM of the authorities to trust in place of the system's.
      proxy: `http://host:port` or `socks5://host:port`, without a password.
      proxy_file: a file with the proxy's URL, where it has a password.
      max_connections: to APNs at once.
      max_in_flight: notifications in memory on their way.
      max_waiting: notifications without an end from which on no more are accepted (503); of it the last tenth
        is for high priority.
    """

    topic: Annotated[str, Meta(pattern="^[!-~]{1,200}$")]
    credential: CredentialSettings
    name: str = ""
    standby: CredentialSettings | None = None
    environment: Literal["production", "development", "both"] = "production"
    host: Name | None = None
    port: Port | None = None
    development_host: Name | None = None
    development_port: Port | None = None
    ca_file: Path | None = None
    proxy: str | None = None
    proxy_file: Secret | None = None
    max_connections: Annotated[int, Meta(ge=1, le=64)] = 4
    max_in_flight: Count = 12_288
    max_waiting: Count = 1_000_000

    @property
    def environments(self) -> tuple[Literal["production", "development"], ...]:
        """Those that it sends to, the usual one first."""
        return ("production", "development") if self.environment == "both" else (self.environment,)

    def proxy_url(self) -> str | None:
        """The proxy, with its password. Raises SecretUnusable."""
        return self.proxy if self.proxy_file is None else read_secret(self.proxy_file)


class DispatchSettings(_Section, frozen=True):
    """How long what APNs could not take is tried again: 429, 5xx and no answer, after the client's own tries.

    Attributes:
      first_retry_seconds, longest_retry_seconds: the wait before the first further try, which doubles up to
        the second. The wait is drawn between half of it and all of it.
      give_up_hours: after its acceptance; an expiration that is earlier counts.
    """

    first_retry_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 15.0
    longest_retry_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 900.0
    give_up_hours: Annotated[float, Meta(gt=0, le=720)] = 24.0


class StyleSettings(_Section, frozen=True):
    """How alarms of a severity come when they come loudly; what is left out stays as it is.

    Attributes:
      level: the interruption level.
      priority: 10 now, 5 when it suits the phone.
      sound: its name in the app, or "default"; "" for none.
      relevance: from 0 to 1; orders the summary.
      lifetime_hours: for which APNs keeps it for a phone that is away.
    """

    level: Literal["passive", "active", "time-sensitive"] | None = None
    priority: Literal[5, 10] | None = None
    sound: Annotated[str, Meta(max_length=100)] | None = None
    relevance: Share | None = None
    lifetime_hours: Annotated[float, Meta(gt=0, le=720)] | None = None


Severity = Literal["critical", "service_down", "trouble", "attention", "info", "clear", "unknown"]


class LookSettings(_Section, frozen=True):
    """What an alarm looks like on the phone.

    Attributes:
      private: nothing that names a device; the app's service extension fetches the rest.
      mutable_content: the app has a service extension.
      critical_alerts: the app has Apple's entitlement for critical alerts.
      critical_volume: of their sound, from 0 to 1.
      styles: by severity: `[alarms.look.styles.critical]`.
    """

    private: bool = False
    mutable_content: bool = False
    critical_alerts: bool = False
    critical_volume: Share = 0.8
    styles: Mapping[Severity, StyleSettings] = {}

    def look(self) -> banners.Look:
        """For `open_alarms`."""
        styles = dict(banners.STYLES)
        for severity, chosen in self.styles.items():
            changes: dict[str, Any] = {
                name: value
                for name in ("level", "priority", "relevance")
                if (value := getattr(chosen, name)) is not None
            }
            if chosen.sound is not None:
                changes["sound"] = chosen.sound or None
            if chosen.lifetime_hours is not None:
                changes["lifetime"] = int(chosen.lifetime_hours * _HOUR)
            styles[severity] = msgspec.structs.replace(styles[severity], **changes)
        return banners.Look(
            styles=styles,
            private=self.private,
            mutable_content=self.mutable_content,
            critical_alerts=self.critical_alerts,
            critical_volume=self.critical_volume,
        )


class AlarmSettings(_Section, frozen=True):
    """Alarms, from whichever source.

    Attributes:
      app: which app shows them; needed where there are several.
      admin_tag: devices with this tag are told what no route matches, and what the watchdog has to say.
      look: see `[alarms.look]`.
    """

    app: Name | None = None
    admin_tag: Name = "admin"
    look: LookSettings = LookSettings()


class AuthSettings(_Section, frozen=True):
    """Who may do what. Keys are made by `fastpush keys create`.

    Attributes:
      max_failures, failures_seconds: after so many wrong keys from an address in so many seconds, further
        wrong ones are answered with 429; right ones pass.
      blocked_seconds: for so long.
      signature_seconds: how far the time of a signed request may be from ours.
      open_scopes: what needs no key at all: "notify", "devices", "alarms". For trials on one machine.
    """

    max_failures: Count = 20
    failures_seconds: Seconds = 60.0
    blocked_seconds: Seconds = 60.0
    signature_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 300
    open_scopes: tuple[Literal["notify", "devices", "alarms"], ...] = ()


class WebhookSettings(_Section, frozen=True):
    """A server of yours that is told, signed.

    Attributes:
      url: http or https.
      secret_file: a file with the secret that signs the body.
    """

    url: Url
    secret_file: Secret


class DeviceSettings(_Section, frozen=True):
    """Registered devices.

    Attributes:
      webhook: told of device tokens found dead.
    """

    webhook: WebhookSettings | None = None


class WatchdogSettings(_Section, frozen=True):
    """What is watched besides the credentials, which always are.

    Attributes:
      days: how many days ahead of its end a certificate is told of on every channel, and at the end itself.
      early_days: the same on console, in log and metric, and by e-mail only.
      silence_minutes: a notice when for so long pushes were offered and none was accepted; 0 for never.
      source_silence_minutes: by source: a notice when it used to speak and has not for so long.
      canary_minutes: how often a silent push is sent to `canary_device_token`; 0 for never.
      canary_app: of that device; needed where there are several apps.
      canary_device_token_file: a file with the device token of a phone of yours.
    """

    days: tuple[Annotated[float, Meta(gt=0, le=3650)], ...] = (10.0, 3.0, 2.0, 1.0)
    early_days: tuple[Annotated[float, Meta(gt=0, le=3650)], ...] = (30.0,)
    silence_minutes: Annotated[float, Meta(ge=0)] = 15.0
    source_silence_minutes: Mapping[str, Annotated[float, Meta(gt=0)]] = {}
    canary_minutes: Annotated[float, Meta(ge=0)] = 0.0
    canary_app: Name | None = None
    canary_device_token_file: Secret | None = None


class SmtpSettings(_Section, frozen=True):
    """E-mail.

    Attributes:
      host, port: of the server.
      security: STARTTLS, TLS from the start, or neither.
      user: where the server wants one.
      password_file: a file with its password.
      sender: the address that the mail comes from.
      recipients: addresses.
      ca_file: PEM of the authorities to trust in place of the system's.
    """

    host: Name
    sender: Annotated[str, Meta(pattern=r"^[^@\s]+@[^@\s]+$")]
    recipients: tuple[Annotated[str, Meta(pattern=r"^[^@\s]+@[^@\s]+$")], ...]
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: Name | None = None
    password_file: Secret | None = None
    ca_file: Path | None = None


class RestSettings(_Section, frozen=True):
    """OpManager's REST interface, in which the watchdog raises an alarm.

    Attributes:
      url: `https://opmanager.example.com:8061`.
      api_key_file: a file with the key of a user who may add events.
      ca_file: PEM of the authorities to trust in place of the system's.
      source: the device that the alarm is shown at.
    """

    url: Url
    api_key_file: Secret
    ca_file: Path | None = None
    source: Name = "fastpush"


class NoticeSettings(_Section, frozen=True):
    """How the watchdog tells, besides push, console, log and metrics.

    Attributes:
      smtp, opmanager, webhook: each where its table is given.
    """

    smtp: SmtpSettings | None = None
    opmanager: RestSettings | None = None
    webhook: WebhookSettings | None = None


class LogSettings(_Section, frozen=True):
    """The log, on standard error.

    Attributes:
      level: the least that is written.
      format: lines for people, or a JSON object each; "auto" is text on a terminal.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class TracingSettings(_Section, frozen=True):
    """Traces over OTLP.

    Attributes:
      endpoint: of the collector; without one there are none.
      sample_share: of requests that are traced, from 0 to 1.
    """

    endpoint: Url | None = None
    sample_share: Share = 0.01


class Config(_Section, frozen=True):
    """All of the file.

    Attributes:
      apps: by name.
      routes: who is told of which alarm; all that match count.
    """

    apps: Mapping[str, AppSettings]
    ingest: IngestSettings = IngestSettings()
    admin: AdminSettings = AdminSettings()
    storage: StorageSettings = StorageSettings()
    dispatch: DispatchSettings = DispatchSettings()
    routes: tuple[Route, ...] = ()
    alarms: AlarmSettings = AlarmSettings()
    auth: AuthSettings = AuthSettings()
    devices: DeviceSettings = DeviceSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    notices: NoticeSettings = NoticeSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @property
    def alarm_app(self) -> str:
        """The app that shows alarms."""
        return self.alarms.app or next(iter(self.apps))
