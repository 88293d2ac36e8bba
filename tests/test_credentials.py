"""Signing keys and provider certificates: what is read from the files, what is refused, what is sent.

Apple, "Establishing a token-based connection to APNs" and "Establishing a certificate-based connection
to APNs".
"""

import ast
import base64
import copy
import datetime
import json
import logging
import os
import pickle
import re
import resource
import ssl
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush import _tls_context
from fastpush._apple_certificate import elements, topics_in
from fastpush._token_file import shared_token
from fastpush.credentials import (
    MAX_CLOCK_OFFSET,
    Credential,
    ProviderCertificate,
    SigningKey,
    normal_environment,
)
from fastpush.errors import InvalidCredential
from fastpush.simulator.authority import Authority

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
NOON = 1_767_787_200.0  # 2026-01-07 12:00:00 UTC, the start of a slot
P8 = "AuthKey_ABC123DEFG.p8"
PROFILE = settings(deadline=None)  # the machine may be busy


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture(scope="session")
def issued(authority):
    return authority.issue_signing_key("ABC123DEFG", "DEF123GHIJ")


@pytest.fixture(scope="session")
def universal(authority):
    return authority.issue_provider_certificate("com.example.app")


@pytest.fixture(scope="session")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def token_dir(tmp_path):
    """A directory for shared tokens that does not exist yet."""
    return tmp_path / "cache" / "tokens"


def load(issued, **options):
    options = {"key_id": issued.key_id, "team_id": issued.team_id} | options
    return SigningKey.from_bytes(issued.p8, **options)


def load_pair(issued, **options):
    return ProviderCertificate.from_bytes(issued.certificate_pem + issued.key_pem, **options)


def pem_of(key, encryption=None, form=PrivateFormat.PKCS8, encoding=Encoding.PEM):
    return key.private_bytes(encoding, form, encryption or NoEncryption())


def refusal(make, *args, **options):
    with pytest.raises(InvalidCredential) as caught:
        make(*args, **options)
    return str(caught.value)


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


# ---------------------------------------------------------------------------------------------
# The provider token


def test_the_provider_token_is_a_jwt_in_jose_form(issued):
    iat, value = load(issued).authorization(NOON + 1_000.5)
    scheme, token = value.split(b" ")
    assert scheme == b"bearer"
    header, claims = verify(token, issued.public_key)
    assert header == {"alg": "ES256", "kid": "ABC123DEFG"}
    assert claims == {"iss": "DEF123GHIJ", "iat": 1_767_787_200}
    assert type(claims["iat"]) is int
    assert iat == claims["iat"] == NOON
    assert load(issued).provider_token(NOON) == token


def test_the_octets_of_a_token_never_change_between_releases():
    """Machines of one fleet may run two releases for a while, and must send one token."""
    number = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721  # RFC 6979, A.2.5
    key = ec.derive_private_key(number, ec.SECP256R1())
    key = SigningKey.from_bytes(pem_of(key), key_id="ABC123DEFG", team_id="DEF123GHIJ")
    assert key.provider_token(NOON) == (
        b"eyJhbGciOiJFUzI1NiIsImtpZCI6IkFCQzEyM0RFRkcifQ"
        b".eyJpc3MiOiJERUYxMjNHSElKIiwiaWF0IjoxNzY3Nzg3MjAwfQ"
        b".NLoPdNT-rB7WQWiBAOLDiSfwWoarQaalungfKCC7eXMjCCWYNxw8BMacOZKalne3kCEHyPwnRBP8sQMP5TVtOg"
    )


def test_a_token_is_used_within_its_slot_and_the_next_is_half_an_hour_younger(issued):
    key = load(issued)
    first = key.authorization(NOON)
    assert key.authorization(NOON + 1_799.999) is first
    second = key.authorization(NOON + 1_800)
    assert second[0] - first[0] == 1_800
    assert second[1] != first[1]
    assert key.authorization(NOON + 5) == first, "a clock that is set back gets the token of its slot again"


@PROFILE
@given(st.floats(0, 2**40))
def test_iat_is_never_in_the_future_nor_older_than_a_slot(now):
    key = SigningKey.from_bytes(_P8, key_id="ABC123DEFG", team_id="DEF123GHIJ")
    slot = key.slot_of(now)
    assert slot % 1_800 == 0
    assert slot <= now < slot + 1_800


_P8 = pem_of(ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize("now", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_is_none_is_refused(issued, now):
    with pytest.raises(ValueError, match="POSIX time in seconds"):
        load(issued).authorization(now)


def test_twenty_restarts_in_ten_seconds_present_one_token(issued):
    assert len({load(issued).authorization(NOON + i / 2) for i in range(20)}) == 1


# ---------------------------------------------------------------------------------------------
# The same token in several processes

PROCESS = """
import sys
from fastpush.credentials import SigningKey
key = SigningKey.from_file(sys.argv[1], team_id="DEF123GHIJ", **eval(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print(key.provider_token(1_767_787_200.0).decode())
"""


def tokens_of_processes(path, count, **options):
    """Start processes that wait for each other and then ask for the token at once."""
    command = [sys.executable, "-c", PROCESS, str(path), repr(options)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in processes]


def test_two_processes_sign_the_same_octets(issued, tmp_path):
    path = tmp_path / P8
    path.write_bytes(issued.p8)
    first, second = tokens_of_processes(path, 2)
    assert first == second == load(issued).provider_token(NOON).decode()


def test_four_processes_share_one_token_where_signatures_differ(issued, tmp_path, token_dir):
    path = tmp_path / P8
    path.write_bytes(issued.p8)
    tokens = tokens_of_processes(path, 4, deterministic=False, token_cache_dir=str(token_dir))
    assert len(tokens) == 4
    assert len(set(tokens)) == 1
    verify(tokens[0].encode(), issued.public_key)
    assert (
        load(issued, deterministic=False, token_cache_dir=token_dir).provider_token(NOON).decode()
        == tokens[0]
    )


def test_signatures_that_are_not_deterministic_differ(issued, token_dir):
    """Otherwise the test above would prove nothing."""
    tokens = {
        load(issued, deterministic=False, token_cache_dir=token_dir / str(i)).provider_token(NOON)
        for i in range(3)
    }
    assert len(tokens) == 3


def test_the_shared_token_lies_in_a_file_for_the_user_alone(issued, token_dir):
    load(issued, deterministic=False, token_cache_dir=token_dir).provider_token(NOON)
    assert token_dir.stat().st_mode & 0o777 == 0o700
    files = sorted(token_dir.iterdir())
    assert [file.suffix for file in files] == [".jwt", ".lock"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert "ABC123DEFG" not in files[0].name


def test_old_tokens_are_removed_and_those_of_the_slots_around_stay(issued, token_dir):
    key = load(issued, deterministic=False, token_cache_dir=token_dir)
    for slot in range(8):
        key.provider_token(NOON + 1_800 * slot)
    starts = sorted(int(file.name.split(".")[1]) - int(NOON) for file in token_dir.glob("*.jwt"))
    assert starts == [1_800 * slot for slot in (3, 4, 5, 6, 7)]


def other_key(authority):
    return load(authority.issue_signing_key("ABC123DEFG", "DEF123GHIJ")).provider_token(NOON)


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda token, authority, issued: b"", id="empty"),
        pytest.param(lambda token, authority, issued: token[:-1], id="cut short"),
        pytest.param(lambda token, authority, issued: token + b"\r\nevil: 1", id="further header"),
        pytest.param(lambda token, authority, issued: token[:-86] + b"A" * 86, id="no signature"),
        pytest.param(lambda token, authority, issued: token[:-86] + b"\xff" * 86, id="not base64"),
        pytest.param(
            lambda token, authority, issued: token[:-1] + bytes((token[-1] + 1,)), id="another spelling"
        ),
        pytest.param(lambda token, authority, issued: other_key(authority), id="another key"),
        pytest.param(lambda token, authority, issued: b"x" * 100_000, id="huge"),
        pytest.param(
            lambda token, authority, issued: load(issued).provider_token(NOON - 3_600), id="another slot"
        ),
    ],
)
def test_a_tampered_file_is_never_sent_and_is_replaced(issued, authority, token_dir, tamper):
    options = {"deterministic": False, "token_cache_dir": token_dir}
    token = load(issued, **options).provider_token(NOON)
    (path,) = token_dir.glob("*.jwt")
    tampered = tamper(token, authority, issued)
    path.write_bytes(tampered)
    fresh = load(issued, **options).provider_token(NOON)
    assert fresh not in (token, tampered)
    verify(fresh, issued.public_key)
    assert path.read_bytes() == fresh
    assert load(issued, **options).provider_token(NOON) == fresh


def make_open_to_others(path):
    path.mkdir(parents=True)
    path.chmod(0o755)


def make_file(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")


def make_link(path):
    path.parent.mkdir(parents=True)
    real = path.parent / "real"
    real.mkdir(mode=0o700)
    path.symlink_to(real)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_open_to_others, "mode 0755, must be 0700"),
        (make_file, "File exists"),
        (make_link, "not a directory"),
    ],
)
def test_without_a_usable_directory_a_process_keeps_to_one_token_and_warns_once(
    issued, token_dir, caplog, make, problem
):
    make(token_dir)
    key = load(issued, deterministic=False, token_cache_dir=token_dir)
    found = []
    threads = [threading.Thread(target=lambda: found.append(key.provider_token(NOON))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    key.provider_token(NOON + 1_800)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert key.provider_token(NOON) == found[0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert problem in record.getMessage()
    assert "key ABC123DEFG of team DEF123GHIJ" in record.getMessage()
    assert found[0].decode() not in record.getMessage()


def test_a_process_that_is_stopped_while_it_signs_holds_up_nobody_for_long(issued, token_dir, caplog):
    options = {"deterministic": False, "token_cache_dir": token_dir}
    load(issued, **options).provider_token(NOON)
    (lock,) = token_dir.glob("*.lock")
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('held', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        token = load(issued, **options).provider_token(NOON + 1_800)
        holder.communicate("done\n")
    verify(token, issued.public_key)
    assert "held by another process" in caplog.text


def test_the_default_directory_is_the_users_cache(issued, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(issued, deterministic=False).provider_token(NOON)
    assert len(list((tmp_path / "xdg" / "fastpush" / "provider-tokens").glob("*.jwt"))) == 1

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")  # XDG Base Directory Specification
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(issued, deterministic=False).provider_token(NOON)
    assert len(list((tmp_path / "home/.cache/fastpush/provider-tokens").glob("*.jwt"))) == 1

    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    load(issued, deterministic=False).provider_token(NOON)
    assert len(list((tmp_path / f"tmp/fastpush-{os.geteuid()}").glob("*.jwt"))) == 1


def test_it_says_whether_it_signs_deterministically(issued):
    assert load(issued).deterministic is True
    assert load(issued, deterministic=True).deterministic is True
    assert load(issued, deterministic=False).deterministic is False


def test_without_openssl_3_2_tokens_are_shared_by_file(issued, token_dir, monkeypatch):
    backend = "cryptography.hazmat.backends.openssl.backend.ecdsa_deterministic_supported"
    monkeypatch.setattr(backend, lambda: False)
    keys = [load(issued, token_cache_dir=token_dir) for _ in range(2)]
    assert [key.deterministic for key in keys] == [False, False]
    first, second = (key.provider_token(NOON) for key in keys)
    assert first == second
    verify(first, issued.public_key)
    assert re.fullmatch(
        r"signing key: cryptography [\d.]+ cannot sign deterministically here; that needs OpenSSL 3\.2 or "
        "later, not in FIPS mode",
        refusal(load, issued, deterministic=True),
    )


def test_whoever_waited_for_the_lock_uses_what_the_other_wrote(token_dir):
    token_dir.mkdir(parents=True, mode=0o700)
    path = token_dir / "name.1800.jwt"
    path.write_bytes(b"no token")

    def is_ours(token):
        if token == b"no token":
            path.write_bytes(b"the other's")  # who had the lock meanwhile
        return token == b"the other's"

    assert shared_token(token_dir, "name", 1_800, pytest.fail, is_ours) == b"the other's"


def test_a_full_disk_leaves_nothing_behind(issued, token_dir, caplog):
    key = load(issued, deterministic=False, token_cache_dir=token_dir)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        token = key.provider_token(NOON)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    verify(token, issued.public_key)
    assert [file.suffix for file in token_dir.iterdir()] == [".lock"]
    assert "File too large" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_directory_of_another_user_is_not_used(issued, token_dir, caplog):
    token_dir.mkdir(parents=True, mode=0o700)
    os.chown(token_dir, 65_534, 65_534)
    load(issued, deterministic=False, token_cache_dir=token_dir).provider_token(NOON)
    assert "belongs to another user" in caplog.text
    assert not list(token_dir.iterdir())


# ---------------------------------------------------------------------------------------------
# The clock


class Clocks:
    """A wall clock that is wrong by `error`, a server's that is right, and one that nobody sets."""

    def __init__(self, error):
        self.true = NOON + 900
        self.error = error

    @property
    def now(self):
        return self.true + self.error

    def monotonic(self):
        return self.true - NOON


def test_a_clock_that_is_behind_follows_the_servers(issued, caplog):
    clocks = Clocks(error=-7_200)
    key = load(issued, monotonic=clocks.monotonic)
    refused, _ = key.authorization(clocks.now)
    assert refused == NOON - 7_200
    assert key.clock_offset == 0

    iat, value = key.replacement(refused, clocks.now, server_date=clocks.true)
    assert iat == NOON
    assert verify(value.removeprefix(b"bearer "), issued.public_key)[1]["iat"] == NOON
    assert key.clock_offset == 7_200
    assert "7200 s behind" in caplog.text
    # Every connection with this key has it, and the slots go on by the server's clock.
    assert key.authorization(clocks.now) == (iat, value)
    clocks.true += 900
    assert key.authorization(clocks.now)[0] == NOON + 1_800


def test_followed_slots_change_when_the_servers_do(issued):
    """Our clock lags by more than a slot, so that it reads a time in the slot that has just ended."""
    clocks = Clocks(error=-2_000)
    key = load(issued, monotonic=clocks.monotonic)
    key.authorization(clocks.now)
    key.follow_clock(clocks.true, clocks.now)
    assert key.authorization(clocks.now)[0] == NOON
    clocks.true += 1_800
    assert key.authorization(clocks.now)[0] == NOON + 1_800
    clocks.true += 1_500
    assert clocks.now > NOON + 1_800
    assert key.authorization(clocks.now)[0] == NOON + 3_600


def test_when_somebody_sets_the_clock_right_slots_go_by_it_again(issued):
    clocks = Clocks(error=-7_200)
    key = load(issued, monotonic=clocks.monotonic)
    key.follow_clock(clocks.true, clocks.now)
    clocks.true += 10
    clocks.error = 0
    assert key.slot_of(clocks.now) == NOON
    assert key.clock_offset == 0
    clocks.error = -30  # and from now on the offset is forgotten
    assert key.slot_of(clocks.now) == NOON


def test_the_second_connection_with_the_same_refusal_takes_what_the_first_got(issued):
    clocks = Clocks(error=-7_200)
    key = load(issued, monotonic=clocks.monotonic)
    refused, _ = key.authorization(clocks.now)
    first = key.replacement(refused, clocks.now, clocks.true)
    assert key.replacement(refused, clocks.now, clocks.true) == first
    assert key.replacement(refused, clocks.now) == first


def test_a_token_of_an_older_slot_gives_way_without_a_look_at_the_clock(issued):
    key = load(issued)
    assert key.replacement(int(NOON) - 1_800, NOON + 1) == key.authorization(NOON + 1)
    assert key.clock_offset == 0


@pytest.mark.parametrize(
    ("server_date", "why"),
    [
        (None, "no date in the answer"),
        (NOON + 100.0, "the clocks agree"),
        (NOON - 7_200, "our clock is ahead"),
        (NOON + MAX_CLOCK_OFFSET + 1_000, "our clock is behind by more than a day"),
    ],
)
def test_there_is_no_replacement_where_the_clock_cannot_be_followed(issued, server_date, why):
    key = load(issued)
    refused, _ = key.authorization(NOON + 90)
    assert key.replacement(refused, NOON + 90, server_date) is None, why
    assert key.clock_offset == 0


def test_a_later_date_of_the_server_corrects_an_earlier_one(issued):
    clocks = Clocks(error=0)
    key = load(issued, monotonic=clocks.monotonic)
    key.follow_clock(clocks.true + 40_000, clocks.now)
    assert key.slot_of(clocks.now) > clocks.now
    key.follow_clock(clocks.true + 4_000, clocks.now)
    assert key.clock_offset == 4_000
    key.follow_clock(clocks.true, clocks.now)
    assert key.clock_offset == 0
    assert key.slot_of(clocks.now) == NOON


def test_a_date_that_is_none_is_refused(issued):
    with pytest.raises(ValueError, match="server_date"):
        load(issued).follow_clock(float("nan"), NOON)


# ---------------------------------------------------------------------------------------------
# The file of a signing key


def test_a_signing_key_comes_from_its_file_and_takes_its_key_id_from_apples_name(issued, tmp_path):
    path = tmp_path / P8
    path.write_bytes(issued.p8)
    key = SigningKey.from_file(path, team_id="DEF123GHIJ")
    assert (key.kind, key.key_id, key.team_id) == ("key", "ABC123DEFG", "DEF123GHIJ")
    assert (key.expires_at, key.topics, key.environments) == (None, None, None)
    assert key.identity == "key ABC123DEFG of team DEF123GHIJ"
    assert repr(key) == "<SigningKey: key ABC123DEFG of team DEF123GHIJ>"
    assert SigningKey.from_file(str(path), key_id="XYZ123DEFG", team_id="DEF123GHIJ").key_id == "XYZ123DEFG"
    der = issued.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    assert key.fingerprint == digest.finalize().hex()


def test_a_name_that_is_not_apples_needs_a_key_id(issued, tmp_path):
    path = tmp_path / "push.p8"
    assert refusal(SigningKey.from_file, path, team_id="DEF123GHIJ") == (
        f"{path}: cannot be read: No such file or directory"
    )
    path.write_bytes(issued.p8)
    assert refusal(SigningKey.from_file, path, team_id="DEF123GHIJ") == (
        f"{path}: give key_id; it is not in the file's name, as in AuthKey_<key id>.p8"
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p8: p8.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda p8: b"\xef\xbb\xbf" + p8, id="byte order mark"),
        pytest.param(lambda p8: p8.replace(b"\n", b" \n") + b" \n\t\r\n\n", id="space at the ends"),
        pytest.param(lambda p8: b"# our key\n\n" + p8, id="a comment before"),
        pytest.param(lambda p8: p8.strip(), id="no line end"),
        pytest.param(lambda p8: p8.replace(b"\n", b"\\n"), id="backslash n, as in an environment variable"),
        pytest.param(lambda p8: p8.decode(), id="str"),
        pytest.param(bytearray, id="bytearray"),
        pytest.param(lambda p8: pem_of(load_pem_private_key(p8, None), encoding=Encoding.DER), id="DER"),
        pytest.param(
            lambda p8: pem_of(load_pem_private_key(p8, None), form=PrivateFormat.TraditionalOpenSSL),
            id="SEC 1",
        ),
    ],
)
def test_a_signing_key_is_read_in_every_form_that_people_have_it_in(issued, change):
    key = SigningKey.from_bytes(change(issued.p8), key_id="ABC123DEFG", team_id="DEF123GHIJ")
    assert key == load(issued)


def test_what_the_caller_gave_is_not_wiped(issued):
    content = bytearray(issued.p8)
    SigningKey.from_bytes(content, key_id="ABC123DEFG", team_id="DEF123GHIJ")
    assert content == issued.p8


def encrypted(key):
    return pem_of(key, BestAvailableEncryption(b"geheim"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(lambda f: b"", "is empty, where a signing key (.p8) was expected", id="empty"),
        pytest.param(lambda f: b" \r\n", "is empty, where", id="blank"),
        pytest.param(lambda f: b"x" * 16_385, "is larger than 16384 octets", id="large"),
        pytest.param(lambda f: pem_of(f.rsa), "an RSA private key of 2048 bits, where APNs needs", id="RSA"),
        pytest.param(
            lambda f: pem_of(ec.generate_private_key(ec.SECP384R1())),
            "on the curve secp384r1, where",
            id="P-384",
        ),
        pytest.param(
            lambda f: pem_of(ec.generate_private_key(ec.SECP384R1()), encoding=Encoding.DER),
            "on the curve secp384r1, where",
            id="P-384 in DER",
        ),
        pytest.param(
            lambda f: pem_of(ed25519.Ed25519PrivateKey.generate()), "of the kind Ed25519, where", id="Ed25519"
        ),
        pytest.param(
            lambda f: encrypted(ec.generate_private_key(ec.SECP256R1())),
            "the private key is encrypted, as Apple's .p8 files are not",
            id="encrypted",
        ),
        pytest.param(
            lambda f: pem_of(
                ec.generate_private_key(ec.SECP256R1()),
                BestAvailableEncryption(b"geheim"),
                PrivateFormat.TraditionalOpenSSL,
            ),
            "the private key is encrypted",
            id="encrypted SEC 1",
        ),
        pytest.param(
            lambda f: pem_of(
                ec.generate_private_key(ec.SECP256R1()),
                BestAvailableEncryption(b"geheim"),
                encoding=Encoding.DER,
            ),
            "the private key is encrypted",
            id="encrypted DER",
        ),
        pytest.param(
            lambda f: f.universal.certificate_pem, "PEM with a CERTIFICATE, where", id="certificate"
        ),
        pytest.param(
            lambda f: x509.load_pem_x509_certificate(f.universal.certificate_pem).public_bytes(Encoding.DER),
            "an X.509 certificate in DER (.cer), where",
            id="certificate in DER",
        ),
        pytest.param(
            lambda f: f.issued.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "PEM with a PUBLIC KEY, where",
            id="public key",
        ),
        pytest.param(
            lambda f: f.issued.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "a public key in DER, where",
            id="public key in DER",
        ),
        pytest.param(lambda f: f.universal.to_pkcs12("x"), "a PKCS#12 file (.p12), where", id="p12"),
        pytest.param(
            lambda f: pem_of(ec.generate_private_key(ec.SECP256R1()), form=PrivateFormat.OpenSSH),
            "PEM with an OPENSSH PRIVATE KEY, where",
            id="OpenSSH",
        ),
        pytest.param(
            lambda f: (
                x509.CertificateSigningRequestBuilder(x509.Name([]))
                .sign(f.rsa, hashes.SHA256())
                .public_bytes(Encoding.DER)
            ),
            "a certificate signing request in DER, where",
            id="request",
        ),
        pytest.param(lambda f: f.issued.p8[:150], "PEM with a PRIVATE KEY, where", id="cut short"),
        pytest.param(
            lambda f: f.issued.p8[:80] + f.issued.p8[140:],
            "a private key in PEM whose content is damaged",
            id="hole",
        ),
        pytest.param(lambda f: b"0" + b"\x82" * 200, "201 octets of DER that are no key", id="no DER"),
        pytest.param(lambda f: f.issued.p8.decode().encode("utf-16"), "text in UTF-16", id="UTF-16"),
        pytest.param(lambda f: b"<!DOCTYPE html><title>Sign in", "a web page, where", id="web page"),
        pytest.param(lambda f: b'{"error": 1}', "a JSON file, where", id="JSON"),
        pytest.param(lambda f: b"<?xml version='1.0'?>", "an XML file, where", id="XML"),
        pytest.param(lambda f: b"PK\x03\x04....", "a ZIP archive, where", id="ZIP"),
        pytest.param(lambda f: b"MIGTAgEAMBMG", "12 octets that are neither PEM nor DER", id="bare base64"),
    ],
)
def test_what_is_no_signing_key_is_named(issued, universal, rsa_key, content, found):
    class Files:
        pass

    files = Files()
    files.issued, files.universal, files.rsa = issued, universal, rsa_key
    message = refusal(SigningKey.from_bytes, content(files), key_id="ABC123DEFG", team_id="DEF123GHIJ")
    assert message.startswith("signing key: ")
    assert found in message


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ("", "has 0 characters"),
        ("ABC123DEF", "has 9 characters"),
        ("ABC123DEFG ", "has 11 characters"),
        ("abc123defg", "has lower-case letters"),
        ("ABC-23DEFG", "has other characters"),
        ("ABC١23DEFG", "has other characters"),
    ],
)
@pytest.mark.parametrize("name", ["key_id", "team_id"])
def test_ids_have_ten_upper_case_letters_and_digits(issued, name, bad, found):
    message = refusal(load, issued, **{name: bad})
    assert message.startswith(f"{name} must be 10 upper-case letters and digits")
    assert message.endswith(found)


def test_an_argument_of_another_type_is_a_type_error(issued):
    with pytest.raises(TypeError, match="key_id must be a str, not int"):
        load(issued, key_id=1234567890)
    with pytest.raises(TypeError, match="bytes, not NoneType"):
        SigningKey.from_bytes(None, key_id="ABC123DEFG", team_id="DEF123GHIJ")
    with pytest.raises(TypeError, match="topics must be several"):
        load(issued, topics="com.example.app")


@pytest.mark.parametrize("make", [SigningKey.from_file, ProviderCertificate.from_file])
def test_a_file_that_cannot_be_read_is_named(tmp_path, make):
    options = {"key_id": "ABC123DEFG", "team_id": "DEF123GHIJ"} if make == SigningKey.from_file else {}
    missing = tmp_path / "missing"
    assert refusal(make, missing, **options) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(make, tmp_path, **options) == f"{tmp_path}: cannot be read: Is a directory"


@PROFILE
@given(st.binary(max_size=400))
def test_any_octets_are_a_key_or_are_refused(octets):
    for data in (
        octets,
        b"\x30" + octets,
        b"-----BEGIN PRIVATE KEY-----\n" + octets + b"\n-----END PRIVATE KEY-----",
    ):
        with pytest.raises(InvalidCredential):
            SigningKey.from_bytes(data, key_id="ABC123DEFG", team_id="DEF123GHIJ")


# ---------------------------------------------------------------------------------------------
# What a provider certificate says


def test_a_universal_certificate_tells_its_topics_environments_and_dates(authority):
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    end = datetime.datetime(2027, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    issued = authority.issue_provider_certificate("com.example.app", not_before=start, not_after=end)
    certificate = load_pair(issued, now=NOON)
    parsed = x509.load_pem_x509_certificate(issued.certificate_pem)
    assert certificate.kind == "certificate"
    assert certificate.default_topic == "com.example.app"
    assert certificate.topics == {"com.example.app", "com.example.app.voip", "com.example.app.complication"}
    assert certificate.environments == {"production", "development"}
    assert (certificate.not_before, certificate.expires_at) == (start, end)
    assert certificate.serial == parsed.serial_number
    assert certificate.fingerprint == parsed.fingerprint(hashes.SHA256()).hex()
    assert certificate.identity == (
        f"certificate com.example.app, serial {parsed.serial_number:X}, until 2027-01-02"
    )
    assert repr(certificate) == f"<ProviderCertificate: {certificate.identity}>"
    assert certificate.authorization(NOON) is None


def test_a_certificate_of_one_topic_has_its_uid(authority):
    issued = authority.issue_provider_certificate("com.example.app", topics=(), environments=["development"])
    certificate = load_pair(issued)
    assert certificate.topics == {"com.example.app"}
    assert certificate.environments == {"development"}


def test_the_topic_of_a_voip_certificate_is_read(authority):
    issued = authority.issue_provider_certificate(None, topics=(), voip_topic="com.example.app.voip")
    assert load_pair(issued).topics == {"com.example.app.voip"}


def test_a_certificate_without_apples_fields_says_nothing_and_refuses_nothing(authority):
    certificate = load_pair(authority.issue_provider_certificate(None, topics=(), environments=()))
    assert (certificate.default_topic, certificate.topics, certificate.environments) == (None, None, None)
    assert "certificate Apple Push Services: none, serial" in certificate.identity
    certificate.check_topic("com.example.any")
    certificate.check_environment("production")


def test_an_extension_that_is_not_understood_leaves_the_judgement_to_apns(authority):
    issued = authority.issue_provider_certificate(
        "com.example.app", extensions={"1.2.840.113635.100.6.3.6": b"\x02\x01\x05"}
    )
    certificate = load_pair(issued)
    assert certificate.default_topic == "com.example.app"
    assert certificate.topics is None


def test_a_topic_is_checked_with_and_without_its_push_types_suffix(authority, universal):
    certificate = load_pair(universal)
    for topic in ("com.example.app", "com.example.app.voip", "com.example.app.push-type.liveactivity"):
        certificate.check_topic(topic)
    assert refusal(certificate.check_topic, "com.example.other") == (
        f"{certificate.identity} does not cover the topic 'com.example.other'; it covers "
        "com.example.app, com.example.app.complication, com.example.app.voip"
    )
    assert "location pushes with a signing key only" in refusal(
        certificate.check_topic, "com.example.app.location-query"
    )


def test_a_topic_specific_key_names_its_topics(issued):
    load(issued).check_topic("com.example.any")
    key = load(issued, topics=["com.example.app"], environments=["sandbox"])
    assert key.topics == {"com.example.app"}
    assert key.environments == {"development"}
    key.check_topic("com.example.app.location-query")
    assert "does not cover the topic 'com.example.other'" in refusal(key.check_topic, "com.example.other")
    assert load(issued, environments="production").environments == {"production"}


def test_an_environment_that_is_not_covered_is_refused(authority):
    issued = authority.issue_provider_certificate("com.example.app", environments=["development"])
    certificate = load_pair(issued)
    certificate.check_environment("development")
    certificate.check_environment("sandbox")
    assert refusal(certificate.check_environment, "production") == (
        f"{certificate.identity} is not for the production environment, only for development"
    )
    with pytest.raises(ValueError, match=r"environment must be .* not 'staging'"):
        certificate.check_environment("staging")


def test_environments_have_two_names_and_one_alias():
    assert [normal_environment(name) for name in ("production", "development", "sandbox")] == [
        "production",
        "development",
        "development",
    ]


# ---------------------------------------------------------------------------------------------
# DER


def der(tag, content):
    """Write DER by X.690, apart from the authority's writer."""
    size = len(content)
    length = bytes((size,)) if size < 128 else bytes((0x82,)) + size.to_bytes(2, "big")
    if 128 <= size < 256:
        length = bytes((0x81, size))
    return bytes((tag,)) + length + content


topics = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=90)


@PROFILE
@given(st.lists(st.tuples(topics, st.lists(topics, max_size=3)), max_size=6), st.booleans())
def test_the_topics_written_are_the_topics_read(pairs, wrapped):
    content = b"".join(
        der(0x0C, topic.encode()) + der(0x30, b"".join(der(0x0C, kind.encode()) for kind in kinds))
        for topic, kinds in pairs
    )
    value = der(0x30, content)
    assert topics_in(der(0x04, value) if wrapped else value) == {topic for topic, _ in pairs}


@settings(PROFILE, max_examples=500)
@given(st.binary(max_size=300))
def test_any_octets_are_read_or_refused(octets):
    for value in (octets, der(0x30, octets), der(0x04, der(0x30, octets))):
        try:
            found = topics_in(value)
        except ValueError:
            continue
        assert all(isinstance(topic, str) and topic for topic in found)


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"\x30", "cut short after a tag"),
        (b"\x30\x05\x0c", "content cut short"),
        (b"\x30\x80\x00\x00", "indefinite"),
        (b"\x30\x81", "cut short"),
        (b"\x30\x85\x00\x00\x00\x00\x01a", "too long"),
        (b"\x30\x81\x01a", "not minimal"),
        (b"\x30\x82\x00\x81" + bytes(129), "not minimal"),
        (b"\x1f\x81\x01\x01a", "several octets"),
        (b"", "0 elements"),
        (b"\x30\x00\x30\x00", "2 elements"),
        (b"\x02\x01\x05", "tag 0x02"),
        (b"\x0c\x00", "empty"),
        (b"\x0c\x02a\n", "not printable"),
        (b"\x0c\x01\xff", "utf-8"),
    ],
)
def test_what_is_not_der_is_refused(octets, why):
    with pytest.raises(ValueError, match=why):
        topics_in(octets)


def test_elements_are_split_at_their_lengths():
    parts = [(0x0C, b"a" * size) for size in (0, 1, 127, 128, 255, 256, 5_000)]
    assert list(elements(b"".join(der(tag, content) for tag, content in parts))) == parts


# ---------------------------------------------------------------------------------------------
# The files of a provider certificate


def test_every_form_of_a_provider_certificate_gives_the_same(universal, tmp_path):
    key = load_pem_private_key(universal.key_pem, None)
    contents = {
        "combined.pem": universal.certificate_pem + universal.key_pem,
        "key-first.pem": universal.key_pem + universal.certificate_pem,
        "crlf.pem": b"Bag Attributes\r\n  friendlyName: x\r\n"
        + (universal.certificate_pem + universal.key_pem).replace(b"\n", b"\r\n"),
        "encrypted.pem": universal.certificate_pem + encrypted(key),
        "aes.p12": universal.to_pkcs12("geheim"),
        "3des.p12": universal.to_pkcs12("geheim", legacy=True),
        "none.p12": universal.to_pkcs12(None),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        certificate = ProviderCertificate.from_file(
            tmp_path / name, password="geheim" if name[0] in "ae3" else None
        )
        assert certificate == load_pair(universal), name
    (tmp_path / "cert.pem").write_bytes(universal.certificate_pem)
    (tmp_path / "cert.cer").write_bytes(
        x509.load_pem_x509_certificate(universal.certificate_pem).public_bytes(Encoding.DER)
    )
    (tmp_path / "key.pem").write_bytes(universal.key_pem)
    (tmp_path / "key.enc").write_bytes(encrypted(key))
    (tmp_path / "key.der").write_bytes(pem_of(key, encoding=Encoding.DER))
    for name in ("cert.pem", "cert.cer"):
        for key_name in ("key.pem", "key.enc", "key.der"):
            certificate = ProviderCertificate.from_file(
                tmp_path / name, key_file=tmp_path / key_name, password=b"geheim"
            )
            assert certificate == load_pair(universal)
    assert ProviderCertificate.from_bytes(
        universal.certificate_pem, key=universal.key_pem, password="unused"
    ) == load_pair(universal)


def test_a_p12_of_an_old_keychain_is_read():
    certificate = ProviderCertificate.from_file(DATA / "rc2-40.p12", password="geheim")
    assert certificate.default_topic == "com.example.legacy"
    assert certificate.environments == {"production"}


@pytest.mark.parametrize("password", [None, "", b""])
def test_no_password_and_an_empty_one_are_the_same(universal, password):
    certificate = ProviderCertificate.from_bytes(universal.to_pkcs12(None), password=password)
    assert certificate == load_pair(universal)
    certificate = ProviderCertificate.from_file(DATA / "empty-password.p12", password=password)
    assert certificate.default_topic == "com.example.legacy"


def code_signing(key):
    name = x509.Name([x509.NameAttribute(NameOID.USER_ID, "DEF123GHIJ")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def without_key(certificate_pem):
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return pkcs12.serialize_key_and_certificates(b"x", None, certificate, None, NoEncryption())


def without_certificate(key_pem):
    key = load_pem_private_key(key_pem, None)
    return pkcs12.serialize_key_and_certificates(b"x", key, None, None, NoEncryption())


@pytest.mark.parametrize(
    ("content", "options", "found"),
    [
        pytest.param(lambda f: b"", {}, "is empty, where a provider certificate was expected", id="empty"),
        pytest.param(lambda f: b"x" * 1_048_577, {}, "is larger than 1048576 octets", id="large"),
        pytest.param(
            lambda f: f.first.to_pkcs12("a"), {}, "encrypted; give its password as", id="p12, no password"
        ),
        pytest.param(
            lambda f: f.first.to_pkcs12("a"),
            {"password": "b"},
            "the password is wrong, or the PKCS#12",
            id="p12, wrong",
        ),
        pytest.param(
            lambda f: f.first.to_pkcs12("a", legacy=True),
            {"password": "b"},
            "the password is wrong",
            id="3DES p12, wrong",
        ),
        pytest.param(
            lambda f: f.first.to_pkcs12("a")[:-40],
            {"password": "a"},
            "or the PKCS#12 file is damaged",
            id="p12, cut short",
        ),
        pytest.param(
            lambda f: without_key(f.first.certificate_pem),
            {},
            "holds no private key; in Keychain",
            id="p12 w/o key",
        ),
        pytest.param(
            lambda f: without_certificate(f.first.key_pem),
            {},
            "holds no certificate; in Keychain",
            id="p12 w/o cert",
        ),
        pytest.param(
            lambda f: f.first.to_pkcs12(None),
            {"key": b"x"},
            "holds its own key; leave key_file out",
            id="p12 and key",
        ),
        pytest.param(
            lambda f: f.first.certificate_pem,
            {},
            "PEM with a CERTIFICATE, where a private key was expected as well; in Keychain Access",
            id="no key",
        ),
        pytest.param(
            lambda f: x509.load_pem_x509_certificate(f.first.certificate_pem).public_bytes(Encoding.DER),
            {},
            "an X.509 certificate in DER (.cer), where a private key was expected as well",
            id=".cer",
        ),
        pytest.param(
            lambda f: f.first.key_pem, {}, "PEM with a PRIVATE KEY, where a .p12 was expected", id="key only"
        ),
        pytest.param(
            lambda f: f.first.certificate_pem + f.second.key_pem,
            {},
            "the private key does not belong to the certificate CN=Apple Push Services: com.example.first",
            id="mismatch",
        ),
        pytest.param(
            lambda f: f.first.certificate_pem * 2 + f.second.key_pem,
            {},
            "does not belong to any of the 2 certificates",
            id="mismatch of several",
        ),
        pytest.param(
            lambda f: f.first.certificate_pem + encrypted(load_pem_private_key(f.first.key_pem, None)),
            {},
            "the private key is encrypted; give its password as password=",
            id="no password",
        ),
        pytest.param(
            lambda f: f.first.certificate_pem + encrypted(load_pem_private_key(f.first.key_pem, None)),
            {"password": "other"},
            "the password is wrong, or the private key is damaged",
            id="wrong password",
        ),
        pytest.param(
            lambda f: f.first.certificate_pem + f.first.key_pem[:80] + f.first.key_pem[140:],
            {},
            "the private key is damaged; copy the file",
            id="damaged key",
        ),
        pytest.param(
            lambda f: f.first.certificate_pem[:80] + f.first.certificate_pem[140:] + f.first.key_pem,
            {},
            "a certificate in PEM whose content is damaged, where",
            id="damaged certificate",
        ),
        pytest.param(
            lambda f: b"\x30\x03\x02\x01\x05",
            {},
            "octets of DER that are no key and no certificate",
            id="other DER",
        ),
        pytest.param(
            lambda f: b"hello", {}, "5 octets that are neither PEM nor DER, where a .p12", id="text"
        ),
        pytest.param(
            lambda f: code_signing(load_pem_private_key(f.first.key_pem, None)) + f.first.key_pem,
            {},
            "a certificate for signing apps, not for push",
            id="code signing",
        ),
        pytest.param(lambda f: f.p8, {}, "PEM with a PRIVATE KEY, where a .p12 was expected", id="p8"),
    ],
)
def test_what_is_no_provider_certificate_is_named(authority, issued, content, options, found):
    class Files:
        first = authority.issue_provider_certificate("com.example.first")
        second = authority.issue_provider_certificate("com.example.second")
        p8 = issued.p8

    message = refusal(ProviderCertificate.from_bytes, content(Files), **options)
    assert message.startswith("provider certificate: ")
    assert found in message


def changed(certificate_pem, old, new, times=-1):
    """Change octets of a certificate; its signature is then wrong, which only a server looks at."""
    octets = x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
    assert old in octets
    body = base64.encodebytes(octets.replace(old, new, times))
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


def test_a_certificate_with_a_key_of_an_unknown_kind_is_passed_over(universal):
    other = changed(
        universal.certificate_pem, bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f")
    )
    certificate = ProviderCertificate.from_bytes(other + universal.certificate_pem + universal.key_pem)
    assert certificate == load_pair(universal)
    assert "does not belong to" in refusal(ProviderCertificate.from_bytes, other + universal.key_pem)


def test_a_subject_that_is_not_text_is_refused(universal, authority):
    damaged = changed(universal.certificate_pem, b"com.example.app", b"com.example\xff\xfe\xff\xfe")
    message = refusal(ProviderCertificate.from_bytes, damaged + universal.key_pem)
    assert message == "provider certificate: the certificate's subject or extensions are damaged"
    other = authority.issue_provider_certificate("com.example.app")
    message = refusal(ProviderCertificate.from_bytes, damaged + other.key_pem)
    assert "does not belong to the certificate with an unreadable subject" in message


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (lambda f: f.certificate_pem, "key: PEM with a CERTIFICATE, where a private key was expected"),
        (lambda f: f.to_pkcs12("x"), "key: a PKCS#12 file (.p12), where a private key was expected"),
        (lambda f: b" ", "key: is empty, where a certificate's private key was expected"),
        (
            lambda f: pem_of(x25519()),
            "key: a private key of the kind X25519, which no TLS client certificate",
        ),
    ],
)
def test_what_is_no_key_of_a_certificate_is_named(universal, key, found):
    message = refusal(ProviderCertificate.from_bytes, universal.certificate_pem, key=key(universal))
    assert message.startswith(found)


def x25519():
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate()


def test_the_file_with_the_wrong_key_is_named(universal, authority, tmp_path):
    (tmp_path / "cert.pem").write_bytes(universal.certificate_pem)
    (tmp_path / "key.pem").write_bytes(authority.issue_provider_certificate("com.example.app").key_pem)
    message = refusal(ProviderCertificate.from_file, tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
    assert message.startswith(
        f"{tmp_path}/cert.pem: the private key of {tmp_path}/key.pem does not belong to"
    )


def test_validity_is_checked_to_the_second_unless_it_is_not_to_be(authority):
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    end = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
    issued = authority.issue_provider_certificate("com.example.app", not_before=start, not_after=end)
    load_pair(issued, now=start.timestamp())
    load_pair(issued, now=end.timestamp())
    assert refusal(load_pair, issued, now=end.timestamp() + 1) == (
        "provider certificate: the certificate expired on 2026-06-01 00:00 UTC; renew it on Apple's page "
        '"Certificates" (our clock says 2026-06-01 00:00 UTC)'
    )
    assert refusal(load_pair, issued, now=start.timestamp() - 60) == (
        "provider certificate: the certificate is valid from 2026-01-01 00:00 UTC, and our clock says "
        "2025-12-31 23:59 UTC; set the clock"
    )
    expired = load_pair(issued, now=end.timestamp() + 1, allow_expired=True)
    assert expired.expires_at == end
    assert load_pair(issued, now=start.timestamp() - 60, allow_expired=True) == expired


def test_by_default_the_wall_clock_decides(authority):
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    issued = authority.issue_provider_certificate("com.example.app", not_after=past)
    assert "expired on 2020-01-01" in refusal(load_pair, issued)


# ---------------------------------------------------------------------------------------------
# Secrets


def test_credentials_are_equal_when_key_and_ids_are(issued, universal, authority):
    assert load(issued) == load(issued)
    assert hash(load(issued)) == hash(load(issued))
    assert load(issued) != load(issued, team_id="XXX123GHIJ")
    assert load(issued) != load(authority.issue_signing_key("ABC123DEFG", "DEF123GHIJ"))
    assert load_pair(universal) == load_pair(universal)
    assert load_pair(universal) != load(issued)
    assert load(issued) != "key ABC123DEFG of team DEF123GHIJ"


@pytest.mark.parametrize("make", [lambda i, u: load(i), lambda i, u: load_pair(u)])
def test_a_credential_cannot_be_pickled_or_copied(issued, universal, make):
    credential = make(issued, universal)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a private key and cannot be pickled"):
            attempt(credential)


@pytest.mark.parametrize("kind", [SigningKey, ProviderCertificate])
def test_a_credential_is_made_from_a_file_and_holds_nothing_else(kind, issued, universal):
    with pytest.raises(TypeError, match="from_file or from_bytes"):
        kind()
    assert issubclass(kind, Credential)
    credential = load(issued) if kind is SigningKey else load_pair(universal)
    with pytest.raises(AttributeError):
        credential.anything = 1


PASSWORD = "correct horse"


def shown_frames(error):
    """Give all that a traceback of fastpush's frames can show, local variables included."""
    texts = []
    while error is not None:
        texts += traceback.format_exception(error)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if f"{os.sep}fastpush{os.sep}" in frame.f_code.co_filename:
                texts += [f"{name} = {value!r}" for name, value in frame.f_locals.items()]
                texts += [
                    repr(bytes(v)) for v in frame.f_locals.values() if isinstance(v, bytearray | memoryview)
                ]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def pieces(key):
    """Give the ways in which a private key could show: as a number, in octets, in PEM."""
    octets = key.private_numbers().private_value.to_bytes(key.key_size // 8, "big")
    found = {str(int.from_bytes(octets, "big")), octets.hex(), octets.hex().upper()}
    found |= {repr(octets[at : at + 12])[2:-1] for at in range(len(octets) - 12)}
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        der = pem_of(key, form=form, encoding=Encoding.DER)
        start = der.index(octets)
        body = base64.b64encode(der).decode()[start // 3 * 4 + 4 : (start + len(octets)) // 3 * 4]
        found |= {body[at : at + 16] for at in range(len(body) - 16)}
    return found


def leaks(text, *keys, password=PASSWORD):
    return [piece for key in keys for piece in (*pieces(key), password) if piece in text]


def test_the_hunt_finds_a_leak():
    key = ec.generate_private_key(ec.SECP256R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        assert leaks(pem_of(key, form=form).decode(), key)
        assert leaks(repr(pem_of(key, form=form)), key)
    assert leaks(str(key.private_numbers().private_value), key)
    assert leaks(PASSWORD, key)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert not leaks(repr(public), key)
    assert leaks(repr(pem_of(key, encoding=Encoding.DER)), key)


def write(path, content):
    path.write_bytes(content)
    return path


BROKEN = {
    "bad id": lambda f: lambda: SigningKey.from_file(f.p8, team_id="short"),
    "bad topics": lambda f: lambda: SigningKey.from_file(f.p8, team_id="DEF123GHIJ", topics="x"),
    "bad environment": lambda f: lambda: SigningKey.from_file(f.p8, team_id="DEF123GHIJ", environments=["x"]),
    "damaged": lambda f: lambda: SigningKey.from_file(f.damaged, team_id="DEF123GHIJ", key_id="ABC123DEFG"),
    "wrong curve": lambda f: lambda: SigningKey.from_file(f.p384, team_id="DEF123GHIJ", key_id="ABC123DEFG"),
    "DER": lambda f: lambda: SigningKey.from_file(f.p384_der, team_id="DEF123GHIJ", key_id="ABC123DEFG"),
    "mismatch": lambda f: lambda: ProviderCertificate.from_file(f.mismatch, password=PASSWORD),
    "no key file": lambda f: (
        lambda: ProviderCertificate.from_file(f.mismatch, key_file="/nonexistent", password=PASSWORD)
    ),
    "encrypted p12": lambda f: lambda: ProviderCertificate.from_file(f.p12, password=PASSWORD),
    "encrypted": lambda f: lambda: ProviderCertificate.from_file(f.encrypted, password=PASSWORD),
    "damaged pair": lambda f: lambda: ProviderCertificate.from_file(f.damaged_pair, password=PASSWORD),
    "octets": lambda f: lambda: f.from_bytes(),
}


@pytest.mark.parametrize("case", BROKEN)
def test_no_error_shows_a_key_or_a_password(authority, issued, universal, tmp_path, case):
    large = ec.generate_private_key(ec.SECP384R1())
    key, certified = (load_pem_private_key(pem, None) for pem in (issued.p8, universal.key_pem))
    certificate_pem = universal.certificate_pem

    class Files:
        p8 = write(tmp_path / P8, issued.p8)
        damaged = write(tmp_path / "a", issued.p8[:150] + b"!!" + issued.p8[150:])
        p384 = write(tmp_path / "b", pem_of(large))
        p384_der = write(tmp_path / "c", pem_of(large, encoding=Encoding.DER))
        mismatch = write(tmp_path / "d", certificate_pem + issued.p8)
        p12 = write(tmp_path / "e", universal.to_pkcs12("other"))
        encrypted = write(tmp_path / "f", certificate_pem + encrypted(certified))
        damaged_pair = write(tmp_path / "g", certificate_pem + issued.p8[:150] + b"!!" + issued.p8[150:])

        def from_bytes():
            SigningKey.from_bytes(issued.p8, key_id="?", team_id="DEF123GHIJ")

    with pytest.raises((InvalidCredential, TypeError, ValueError)) as caught:
        BROKEN[case](Files)()
    text = shown_frames(caught.value)
    assert "InvalidCredential" in text or "must be" in text
    assert not leaks(text, key, certified, large)


def test_no_credential_shows_its_key(issued, universal):
    key, certificate = load(issued), load_pair(universal)
    key.authorization(NOON)
    text = "".join(
        f"{credential!r} {credential!s} {credential.identity}" for credential in (key, certificate)
    )
    secrets = [load_pem_private_key(pem, None) for pem in (issued.p8, universal.key_pem)]
    assert not leaks(text, *secrets)


# ---------------------------------------------------------------------------------------------
# TLS


def test_the_context_verifies_the_server_and_offers_h2_only(issued, authority):
    context = load(issued).ssl_context(ca_data=authority.ca_pem)
    assert context.protocol == ssl.PROTOCOL_TLS_CLIENT
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert len(context.get_ca_certs()) == 1


def test_a_context_is_kept_as_long_as_what_it_trusts_is_the_same(issued, authority, tmp_path):
    key = load(issued)
    path = write(tmp_path / "ca.pem", authority.ca_pem)
    first = key.ssl_context(ca_file=path)
    assert key.ssl_context(ca_file=str(path)) is first
    assert key.ssl_context(ca_data=authority.ca_pem) is not first
    assert key.ssl_context() is key.ssl_context()
    write(tmp_path / "new.pem", authority.ca_pem + Authority().ca_pem).replace(path)
    second = key.ssl_context(ca_file=path)
    assert second is not first
    assert len(second.get_ca_certs()) == 2
    for _ in range(20):
        key.ssl_context(ca_data=Authority().ca_pem)
    assert len(key._contexts) <= 8


def test_trusted_certificates_come_in_pem_with_comments_or_in_der(issued, authority):
    key = load(issued)
    der = x509.load_pem_x509_certificate(authority.ca_pem).public_bytes(Encoding.DER)
    commented = "# Főtanúsítvány\r\n".encode() + authority.ca_pem.replace(b"\n", b"\r\n") + b"# end"
    for data in (der, commented, authority.ca_pem.decode()):
        assert len(key.ssl_context(ca_data=data).get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty, where trusted certificates in PEM were expected"),
        (b"hello", "holds no certificate in PEM"),
        (b"\x30\x03\x02\x01\x05", "a trusted certificate in it is damaged"),
        (
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "a trusted certificate in it is damaged",
        ),
        (b"-----BEGIN CERTIFICATE-----\n\xff\xfe\n-----END CERTIFICATE-----\n", "in it is damaged"),
        (b"x" * 8_388_609, "is larger than 8388608 octets"),
    ],
)
def test_a_ca_file_without_certificates_is_named(issued, tmp_path, content, found):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    message = refusal(load(issued).ssl_context, ca_file=path)
    assert message.startswith(f"{path}: ")
    assert found in message


class Witness(ssl.SSLContext):
    """Looks at the file that OpenSSL is told to read."""

    def load_cert_chain(self, certfile, keyfile=None, password=None):
        self.path = certfile
        self.content = Path(certfile).read_bytes()
        self.mode = os.stat(certfile).st_mode & 0o077
        super().load_cert_chain(certfile, keyfile, password)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_key_reaches_openssl_encrypted_and_nothing_stays(universal, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    identity = load_pair(universal)._identity
    context = Witness(ssl.PROTOCOL_TLS_CLIENT)
    _tls_context.load_identity(context, identity, "test", in_memory=in_memory)
    assert context.path.startswith("/proc/self/fd/" if in_memory else str(tmp_path))
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in context.content
    assert b"BEGIN PRIVATE KEY" not in context.content
    assert in_memory or context.mode == 0
    assert list(tmp_path.iterdir()) == []
    assert not os.path.exists(context.path)


def test_a_key_that_openssl_finds_too_weak_is_named(authority):
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.USER_ID, "com.example.weak")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), 7, now - datetime.timedelta(days=1), now + datetime.timedelta(days=1)
    ).sign(key, hashes.SHA256())
    credential = ProviderCertificate.from_bytes(certificate.public_bytes(Encoding.PEM) + pem_of(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT@SECLEVEL=2")
    with pytest.raises(InvalidCredential, match="OpenSSL refuses the certificate: ee key too small"):
        _tls_context.load_identity(context, credential._identity, credential.identity)


def server_context(authority, trusted):
    certificate_pem, key_pem = authority.issue_server("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity = ProviderCertificate.from_bytes(certificate_pem, key=key_pem)._identity
    _tls_context.load_identity(context, identity, "server")
    context.load_verify_locations(cadata=trusted.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def handshake(client_context, server_context, host="localhost"):
    """Shake hands over a real socket and have the server send one octet; give what it saw.

    With TLS 1.3 the client learns from its first read only what the server thinks of its certificate.
    """
    seen = {}

    async def serve(stream):
        tls = trio.SSLStream(stream, server_context, server_side=True)
        try:
            await tls.do_handshake()
            seen.update(
                certificate=tls.getpeercert(binary_form=True),
                alpn=tls.selected_alpn_protocol(),
                version=tls.version(),
            )
            await tls.send_all(b"!")
        except trio.BrokenResourceError as error:
            seen["server's refusal"] = error.__cause__
        await trio.aclose_forcefully(stream)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            stream = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            tls = trio.SSLStream(stream, client_context, server_hostname=host)
            try:
                await tls.do_handshake()
                seen["octets"] = await tls.receive_some()  # none if the server refused and was gone first
            except trio.BrokenResourceError as error:
                seen["client's refusal"] = error.__cause__
            await trio.aclose_forcefully(tls)
            nursery.cancel_scope.cancel()
    return seen


FORMS = {
    "pem": lambda f: (f.certificate_pem + f.key_pem, None),
    "p12": lambda f: (f.to_pkcs12("geheim"), "geheim"),
    "3des p12": lambda f: (f.to_pkcs12("geheim", legacy=True), "geheim"),
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_server_that_asks_for_a_certificate_gets_it(authority, universal, form):
    content, password = FORMS[form](universal)
    certificate = ProviderCertificate.from_bytes(content, password=password)
    context = certificate.ssl_context(ca_data=authority.ca_pem)
    seen = await handshake(context, server_context(authority, authority.ca_pem))
    assert seen["certificate"] == x509.load_pem_x509_certificate(universal.certificate_pem).public_bytes(
        Encoding.DER
    )
    assert seen["alpn"] == "h2"
    assert seen["version"] in ("TLSv1.2", "TLSv1.3")


async def test_the_certificate_of_an_old_keychain_shakes_hands(authority):
    certificate = ProviderCertificate.from_file(DATA / "rc2-40.p12", password="geheim")
    trusted = certificate._identity.certificate.public_bytes(Encoding.PEM)
    context = certificate.ssl_context(ca_data=authority.ca_pem)
    seen = await handshake(context, server_context(authority, trusted))
    assert seen["certificate"] == certificate._identity.certificate.public_bytes(Encoding.DER)


async def test_an_rsa_certificate_as_apple_issues_them_shakes_hands(authority, rsa_key):
    name = x509.Name([x509.NameAttribute(NameOID.USER_ID, "com.example.rsa")])
    start, end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days) for days in (-1, 1))
    issued = (
        x509.CertificateBuilder(name, name, rsa_key.public_key(), 7, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(rsa_key, hashes.SHA256())
    )
    bundle = pkcs12.serialize_key_and_certificates(
        b"x", rsa_key, issued, None, BestAvailableEncryption(b"geheim")
    )
    certificate = ProviderCertificate.from_bytes(bundle, password="geheim")
    context = certificate.ssl_context(ca_data=authority.ca_pem)
    seen = await handshake(context, server_context(authority, issued.public_bytes(Encoding.PEM)))
    assert seen["certificate"] == issued.public_bytes(Encoding.DER)


async def test_intermediates_are_sent_along(authority):
    """The server knows the root only; without the intermediate it could not verify."""
    start, end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days) for days in (-1, 1))
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("root", "middle", "leaf")
    ]
    root, middle, leaf = (
        x509.CertificateBuilder(names[max(i - 1, 0)], names[i], keys[i].public_key(), i + 1, start, end)
        .add_extension(x509.BasicConstraints(i < 2, None), critical=True)
        .sign(keys[max(i - 1, 0)], hashes.SHA256())
        .public_bytes(Encoding.PEM)
        for i in range(3)
    )
    server = server_context(authority, root)
    with_chain = ProviderCertificate.from_bytes(middle + pem_of(keys[2]) + leaf)
    seen = await handshake(with_chain.ssl_context(ca_data=authority.ca_pem), server)
    assert seen["octets"] == b"!"
    alone = ProviderCertificate.from_bytes(pem_of(keys[2]) + leaf)
    seen = await handshake(alone.ssl_context(ca_data=authority.ca_pem), server)
    assert seen["server's refusal"].verify_message == "unable to get local issuer certificate"


async def test_a_signing_key_shows_no_certificate(issued, authority):
    server = server_context(authority, authority.ca_pem)
    context = load(issued).ssl_context(ca_data=authority.ca_pem)
    seen = await handshake(context, server)
    assert seen["server's refusal"].reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    server.verify_mode = ssl.CERT_OPTIONAL  # as APNs, which asks and takes an empty answer
    seen = await handshake(context, server)
    assert seen["certificate"] is None
    assert seen["alpn"] == "h2"


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("authority", "self-signed certificate"),
        ("host", "Hostname mismatch"),
        ("system", "self-signed certificate"),
    ],
)
async def test_a_server_that_is_not_who_it_should_be_is_refused(issued, authority, wrong, found):
    server = server_context(authority, authority.ca_pem)
    server.verify_mode = ssl.CERT_NONE
    trusted = {"ca_data": Authority().ca_pem if wrong == "authority" else authority.ca_pem}
    context = load(issued).ssl_context(**({} if wrong == "system" else trusted))
    seen = await handshake(context, server, "example.com" if wrong == "host" else "localhost")
    assert found in seen["client's refusal"].verify_message


# ---------------------------------------------------------------------------------------------
# docs/credentials.md

DOCUMENT = (ROOT / "docs" / "credentials.md").read_text()
MODULES = ["credentials", "_credential_files", "_tls_context", "_apple_certificate"]


def messages():
    """Give the fixed parts of every text in the modules that raise InvalidCredential."""
    for name in MODULES:
        tree = ast.parse((ROOT / "fastpush" / f"{name}.py").read_text())
        yield from (node.value for node in ast.walk(tree) if isinstance(getattr(node, "value", None), str))


def documented():
    table = DOCUMENT.partition("## Errors")[2].partition("`CredentialRefused`")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("message", documented())
def test_every_message_in_the_document_exists(message):
    assert any(message in text for text in messages())


@pytest.mark.parametrize("module", MODULES)
def test_every_message_is_in_the_document(module):
    tree = ast.parse((ROOT / "fastpush" / f"{module}.py").read_text())
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "InvalidCredential":
            parts = [node.value for node in ast.walk(call) if isinstance(getattr(node, "value", None), str)]
            # Without a text of its own, a call passes on what a function wrote.
            assert not parts or any(message in part for part in parts for message in documented()), parts


def test_the_examples_of_the_document_run(issued, universal, tmp_path, monkeypatch, capsys):
    (tmp_path / P8).write_bytes(issued.p8)
    (tmp_path / "push.p12").write_bytes(universal.to_pkcs12("geheim"))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/credentials.md", "exec"), {})
    assert "key ABC123DEFG of team DEF123GHIJ\n" in capsys.readouterr().out
