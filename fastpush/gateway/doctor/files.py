"""The credential as it lies on the disk: files, their modes, and what key or certificate says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastpush.credentials import Credential, ProviderCertificate, SigningKey
from fastpush.errors import InvalidCredential
from fastpush.gateway.config.secrets import SecretUnusable, read_secret, refusal
from fastpush.gateway.doctor.values import Check, Target
from fastpush.gateway.notices.values import DAY, date_of, time_left

__all__ = ["check_files", "check_time", "check_use", "load"]

SOON = 30 * DAY

_IDS = 'Copy it from Apple\'s page "Keys"; the key id is also in the name of the .p8 file.'
_PASSWORD = "Put the password into a file, and name that: password_file, here --password-file."


def check_files(target: Target) -> Iterator[Check]:
    """Existence and modes. Reads the file system."""
    files = {
        "key_file": target.key_file,
        "certificate_file": target.certificate_file,
        "private_key_file": target.private_key_file,
        "password_file": target.password_file,
    }
    for name, path in files.items():
        if path is not None:
            yield _check_file(name, path)


def _check_file(name: str, path: Path) -> Check:
    if not path.exists():
        cure = "Put the file there, or correct its path."
        return Check("file", "failed", f"{name} {path}: there is no such file", cure)
    if path.is_dir():
        return Check("file", "failed", f"{name} {path}: is a directory", "Name the file in it.")
    if name == "certificate_file" and not _holds_key(path):
        return Check("file", "ok", f"{name} {path}")
    reason = refusal(path)
    if reason is None:
        return Check("file", "ok", f"{name} {path}, mode {path.stat().st_mode & 0o777:04o}")
    found, _, command = reason.partition("; ")
    cure = f"Run: {command}" if command else "Give the user of the gateway a file that only it may read."
    return Check("file", "failed", found, cure)


def _holds_key(path: Path) -> bool:
    """A certificate alone is no secret; a .p12, or PEM with the key in it, is."""
    try:
        octets = path.read_bytes()[: 1 << 20]
    except OSError:
        return True
    return b"PRIVATE KEY-----" in octets or b"-----BEGIN" not in octets


def load(target: Target) -> tuple[Credential | None, Check]:
    """Load the credential, whatever its time. Takes 1 to 50 ms."""
    name = "key" if target.key_file is not None else "certificate"
    try:
        credential = _load(target)
    except (InvalidCredential, SecretUnusable) as error:
        if "key_id" in str(error) or "team_id" in str(error):
            return None, Check(name, "failed", str(error), _IDS)
        found, _, cure = str(error).partition("; ")
        if "is encrypted" in found:
            return None, Check(name, "failed", f"{found}, and no password is given", _PASSWORD)
        return None, Check(name, "failed", found, _sentence(cure) or _cure(found, target))
    except OSError as error:
        return None, Check(name, "failed", f"{error.filename}: {error.strerror}", "See its path and mode.")
    return credential, Check(name, "ok", credential.identity)


def _load(target: Target) -> Credential:
    if target.key_file is not None:
        if target.team_id is None:
            raise InvalidCredential("team_id is missing; Apple's developer page shows it at the top right")
        return SigningKey.from_file(target.key_file, key_id=target.key_id, team_id=target.team_id)
    if target.certificate_file is None:
        raise InvalidCredential("there is neither key nor certificate; give one of them")
    password = target.password
    if target.password_file is not None:
        password = read_secret(target.password_file)
    return ProviderCertificate.from_file(
        target.certificate_file, password=password, key_file=target.private_key_file, allow_expired=True
    )


def _cure(found: str, target: Target) -> str:
    if "password" in found:
        return "Put the right password into password_file, or export the certificate again."
    if target.key_file is not None:
        return 'Give the file AuthKey_<key id>.p8 from Apple\'s page "Keys".'
    return "Export the certificate and its key from the keychain again, as a .p12 file."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def check_time(credential: Credential, now: float) -> Check:
    """When it ends, by our clock."""
    if not isinstance(credential, ProviderCertificate):
        return Check("expiry", "ok", "a signing key does not expire")
    begins, ends = credential.not_before.timestamp(), credential.expires_at.timestamp()
    renew = 'Make a new certificate on Apple\'s page "Certificates" and put its file in place of the old.'
    if now >= ends:
        return Check("expiry", "failed", f"the certificate expired on {date_of(ends)}", renew)
    if now < begins:
        found = f"the certificate is not valid yet: it begins on {date_of(begins)}, here it is {date_of(now)}"
        cure = "Set this machine's clock if it is wrong; else keep the old certificate until then."
        return Check("expiry", "failed", found, cure)
    found = f"the certificate is good for {time_left(ends - now)}, until {date_of(ends)}"
    return Check("expiry", "note" if ends - now < SOON else "ok", found, renew if ends - now < SOON else "")


def check_use(credential: Credential, target: Target) -> Iterator[Check]:
    """Topic and environment, as far as the file says."""
    topic = topic_of(credential, target)
    if topic is None:
        yield Check("topic", "failed", "no topic is known", "Give the app's bundle id as the topic.")
    else:
        try:
            credential.check_topic(topic)
        except InvalidCredential as error:
            cure = "Correct the topic, or give the certificate of this app."
            yield Check("topic", "failed", str(error), cure)
        else:
            says = "" if credential.topics is not None else "; the file does not say which it covers"
            yield Check("topic", "ok", topic + says)
    try:
        credential.check_environment(target.environment)
    except InvalidCredential as error:
        cure = "Set the environment to the other one, or make a certificate for this one."
        yield Check("environment", "failed", str(error), cure)
    else:
        says = "" if credential.environments is not None else "; the file does not say which it covers"
        yield Check("environment", "ok", target.environment + says)


def topic_of(credential: Credential, target: Target) -> str | None:
    """The topic in use; a certificate may bring its own."""
    if target.topic is None and isinstance(credential, ProviderCertificate):
        return credential.default_topic
    return target.topic
