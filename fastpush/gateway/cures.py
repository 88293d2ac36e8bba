"""What helps against a no of APNs to a credential; one sentence each, for notices and for the doctor."""

from __future__ import annotations

__all__ = ["RENEW", "SET_CLOCK", "cure_of"]

RENEW = 'Make a new certificate on Apple\'s page "Certificates" and put its file in place of the old.'
SET_CLOCK = "Let the clock be set by the network: systemctl enable --now systemd-timesyncd, or chrony."

_KEY = 'Compare key id and team id with Apple\'s page "Keys", and see whether the key was revoked.'
_TOPIC = "Correct the topic: it is the app's bundle id, and the key or certificate must cover it."
_ENVIRONMENT = "Set the environment to the other one, or give the credential for this one."

_CURES = {
    "InvalidProviderToken": _KEY,
    "MissingProviderToken": _KEY,
    "UnrelatedKeyIdInToken": _KEY,
    "ExpiredProviderToken": SET_CLOCK,
    "BadEnvironmentKey": _ENVIRONMENT,
    "BadCertificateEnvironment": _ENVIRONMENT,
    "BadTopic": _TOPIC,
    "TopicDisallowed": _TOPIC,
    "MissingTopic": _TOPIC,
    "certificate expired": RENEW,
    "certificate revoked": RENEW,
    "BadCertificate": RENEW,
    "Forbidden": _KEY,
}
_FOLDED = {word.lower().replace(" ", ""): cure for word, cure in _CURES.items()}


def cure_of(reason: str) -> str | None:
    """What helps where APNs, or its TLS alert, gave this reason; None where no credential is at fault."""
    folded = reason.lower().replace(" ", "")
    # The longer words first: BadCertificateEnvironment is not BadCertificate.
    for word in sorted(_FOLDED, key=len, reverse=True):
        if word in folded:
            return _FOLDED[word]
    return None
