"""What a provider certificate says about itself: Apple's own fields of an X.509 certificate.

Apple describes none of them; senders read them all the same (pushy, node-apn): the subject's UID is the
bundle id, and four extensions name environments and topics. `cryptography` hands such extensions over as
octets. The reader for them below is a few lines, so that neither a further dependency nor a recent
`cryptography` (its `hazmat.asn1` came after 43.0) is needed for one list of strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

__all__ = ["AppleFields", "apple_fields", "topics_in"]

# Apple's arc for certificate extensions: Apple, "Worldwide Developer Relations CPS".
DEVELOPMENT = ObjectIdentifier("1.2.840.113635.100.6.3.1")
PRODUCTION = ObjectIdentifier("1.2.840.113635.100.6.3.2")
VOIP_TOPIC = ObjectIdentifier("1.2.840.113635.100.6.3.4")
TOPICS = ObjectIdentifier("1.2.840.113635.100.6.3.6")

# Tags of X.690 and X.680 §8.6.
OCTET_STRING = 0x04
SEQUENCE = 0x30
STRINGS = frozenset((0x0C, 0x13, 0x16))  # UTF8String, PrintableString, IA5String


class AppleFields(NamedTuple):
    """None stands for "the certificate does not say"."""

    default_topic: str | None
    topics: frozenset[str] | None
    environments: frozenset[str] | None
    signs_code: bool
    """It is for signing apps: another kind of Apple's certificates, often exported by mistake."""


def apple_fields(certificate: x509.Certificate) -> AppleFields:
    """Read Apple's fields.

    Raises:
      ValueError: subject or extensions are not readable at all.
    """
    extensions = {extension.oid: extension.value for extension in certificate.extensions}
    usage = extensions.get(x509.ExtendedKeyUsage.oid)
    signs_code = isinstance(usage, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CODE_SIGNING in usage

    users = certificate.subject.get_attributes_for_oid(NameOID.USER_ID)
    default_topic = users[0].value if users and isinstance(users[0].value, str) else None

    named = set() if default_topic is None else {default_topic}
    understood = True
    for oid in (TOPICS, VOIP_TOPIC):
        value = extensions.get(oid)
        if isinstance(value, x509.UnrecognizedExtension):
            try:
                named |= topics_in(value.value)
            except ValueError:
                # Apple may write it in another way some day. APNs is the judge then, not we.
                understood = False

    environments = frozenset(
        name for name, oid in (("development", DEVELOPMENT), ("production", PRODUCTION)) if oid in extensions
    )
    return AppleFields(
        default_topic,
        frozenset(named) if named and understood else None,
        environments or None,
        signs_code,
    )


def topics_in(value: bytes) -> frozenset[str]:
    """Read the topics out of extension .3.6 or .3.4.

    .3.6 is a SEQUENCE in which each topic, a string, is followed by a SEQUENCE of the kinds it stands
    for ("app", "voip", "complication"); .3.4 is a string alone. Either may be wrapped in an OCTET STRING.

    Args:
      value: the extension's DER octets.

    Raises:
      ValueError: it is something else.
    """
    tag, content = _only_element(value)
    if tag == OCTET_STRING:
        tag, content = _only_element(content)
    if tag in STRINGS:
        return frozenset((_text(content),))
    if tag != SEQUENCE:
        raise ValueError(f"tag {tag:#04x} where a SEQUENCE or a string was expected")
    return frozenset(_text(part) for kind, part in elements(content) if kind in STRINGS)


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split octets into the DER elements that they hold (X.690 §8.1): tag octet and content of each.

    Raises:
      ValueError: not DER: cut short, a length that is indefinite or not minimal, a tag of several octets.
    """
    at = 0
    while at < len(data):
        tag = data[at]
        if tag & 0x1F == 0x1F:
            raise ValueError("a tag of several octets")
        if at + 1 == len(data):
            raise ValueError("cut short after a tag")
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            count = size & 0x7F
            octets = data[at : at + count]
            if not 1 <= count <= 4 or len(octets) < count:
                raise ValueError("a length that is indefinite, too long or cut short")
            size = int.from_bytes(octets, "big")
            if size < 0x80 or octets[0] == 0:
                raise ValueError("a length that is not minimal")
            at += count
        if size > len(data) - at:
            raise ValueError("content cut short")
        yield tag, data[at : at + size]
        at += size


def _only_element(data: bytes) -> tuple[int, bytes]:
    found = list(elements(data))
    if len(found) != 1:
        raise ValueError(f"{len(found)} elements where one was expected")
    return found[0]


def _text(content: bytes) -> str:
    text = content.decode()  # UnicodeDecodeError is a ValueError
    if not text.isprintable() or not text:
        raise ValueError("a topic that is empty or not printable")
    return text
