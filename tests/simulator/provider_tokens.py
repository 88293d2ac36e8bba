"""Provider tokens in every form that clients are known to send."""

import base64
import json

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def encode(octets):
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


def make_provider_token(issued, issued_at, form="jose"):
    issued_at = int(issued_at)
    claims = {"iss": issued.team_id, "iat": str(issued_at) if form == "text iat" else issued_at}
    if form == "float iat":
        claims["iat"] = float(issued_at)
    header = {"alg": "ES256", "kid": issued.key_id}
    signed = b".".join(encode(json.dumps(part).encode()) for part in (header, claims))
    signature = load_pem_private_key(issued.p8, None).sign(signed, ec.ECDSA(SHA256()))
    if form != "der":
        r, s = utils.decode_dss_signature(signature)
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return signed + b"." + (base64.urlsafe_b64encode(signature) if form == "padded" else encode(signature))
