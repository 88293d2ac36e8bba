"""The gateway's configuration: one TOML file, and environment variables over it.

`load_config` gives a `Config`, or every mistake at once, each with its line. docs/configuration.md has the
options, fastpush.example.toml shows them. Secrets are named by their files, and read by `read_secret`.
"""

from fastpush.gateway.config.reading import InvalidConfig, Mistake, database_path, load_config, read_config
from fastpush.gateway.config.secrets import SecretUnusable, read_secret
from fastpush.gateway.config.sections import (
    AdminSettings,
    AlarmSettings,
    AppSettings,
    AuthSettings,
    Config,
    CredentialSettings,
    DeviceSettings,
    DispatchSettings,
    IngestSettings,
    LogSettings,
    LookSettings,
    NoticeSettings,
    RestSettings,
    SmtpSettings,
    StorageSettings,
    StyleSettings,
    TLSSettings,
    TracingSettings,
    WatchdogSettings,
    WebhookSettings,
)

__all__ = [
    "AdminSettings",
    "AlarmSettings",
    "AppSettings",
    "AuthSettings",
    "Config",
    "CredentialSettings",
    "DeviceSettings",
    "DispatchSettings",
    "IngestSettings",
    "InvalidConfig",
    "LogSettings",
    "LookSettings",
    "Mistake",
    "NoticeSettings",
    "RestSettings",
    "SecretUnusable",
    "SmtpSettings",
    "StorageSettings",
    "StyleSettings",
    "TLSSettings",
    "TracingSettings",
    "WatchdogSettings",
    "WebhookSettings",
    "database_path",
    "load_config",
    "read_config",
    "read_secret",
]
