"""Signing keys and provider certificates: what is read from the files, what is refused, what is sent.

Apple, "Establishing a token-based connection to APNs" and "Establishing a certificate-based connection".
"""

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fastpush.credentials import SigningKey
from fastpush.simulator.authority import Authority

NOON = 1_767_787_200.0  # 2026-01-07 12:00:00 UTC, the start of a slot


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture(scope="session")
def issued(authority):
    return authority.issue_signing_key("ABC123DEFG", "DEF123GHIJ")


def load(issued, **options):
    return SigningKey.from_bytes(issued.p8, key_id=issued.key_id, team_id=issued.team_id, **options)


def decode(encoded):
    assert b"=" not in encoded
    return base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))


def verify(token, public_key):
    """Read a JWT by its RFCs (7515, 7518 §3.4, 7519) and nothing of ours."""
    header, claims, signature = token.split(b".")
    raw = decode(signature)
    assert len(raw) == 64
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public_key.verify(der, header + b"." + claims, ec.ECDSA(hashes.SHA256()))
    return json.loads(decode(header)), json.loads(decode(claims))


def test_the_provider_token_is_a_jwt_in_jose_form(issued):
    iat, value = load(issued).authorization(NOON + 1_000.5)
    scheme, token = value.split(b" ")
    assert scheme == b"bearer"
    header, claims = verify(token, issued.public_key)
    assert header == {"alg": "ES256", "kid": "ABC123DEFG"}
    assert claims == {"iss": "DEF123GHIJ", "iat": 1_767_787_200}
    assert type(claims["iat"]) is int
    assert iat == claims["iat"] == NOON


def test_a_token_is_used_within_its_slot_and_the_next_is_half_an_hour_younger(issued):
    key = load(issued)
    first = key.authorization(NOON)
    assert key.authorization(NOON + 1_799.999) == first
    second = key.authorization(NOON + 1_800)
    assert second[0] - first[0] == 1_800
    assert second[1] != first[1]
