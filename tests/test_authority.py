"""The authority makes what Apple and a certificate authority would; judged by cryptography and OpenSSL."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

from fastpush.simulator.authority import Authority


@pytest.fixture(scope="module")
def authority():
    return Authority()


def extension(pem, oid):
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.extensions.get_extension_for_oid(ObjectIdentifier(oid)).value.value


def test_the_certificate_of_a_server_names_its_hosts_and_is_signed_by_the_authority(authority):
    certificate_pem, key_pem = authority.issue_server("localhost", "127.0.0.1", "::1")
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem))
    assert load_pem_private_key(key_pem, None).public_key() == certificate.public_key()


def test_a_server_needs_a_host(authority):
    with pytest.raises(ValueError, match="at least one host"):
        authority.issue_server()


def test_a_universal_provider_certificate_has_the_fields_that_apples_have(authority):
    issued = authority.issue_provider_certificate("com.example.app")
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    (user,) = certificate.subject.get_attributes_for_oid(NameOID.USER_ID)
    assert user.value == "com.example.app"
    assert extension(issued.certificate_pem, "1.2.840.113635.100.6.3.1") == b"\x05\x00"
    assert extension(issued.certificate_pem, "1.2.840.113635.100.6.3.2") == b"\x05\x00"
    # What OpenSSL writes for: app.0=UTF8String, app.1=SEQWRAP,UTF8String:app, and so on.
    assert extension(issued.certificate_pem, "1.2.840.113635.100.6.3.6") == (
        b"\x30\x64"
        b"\x0c\x0fcom.example.app\x30\x05\x0c\x03app"
        b"\x0c\x14com.example.app.voip\x30\x06\x0c\x04voip"
        b"\x0c\x1ccom.example.app.complication\x30\x0e\x0c\x0ccomplication"
    )
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem))


def test_lengths_of_more_than_127_octets_are_written_in_the_long_form(authority):
    topic = "com.example." + "a" * 188
    issued = authority.issue_provider_certificate(None, topics=[topic], environments=())
    content = b"\x0c\x81\xc8" + topic.encode() + b"\x30\x05\x0c\x03app"
    assert extension(issued.certificate_pem, "1.2.840.113635.100.6.3.6") == b"\x30\x81\xd2" + content


def test_each_field_of_a_provider_certificate_can_be_left_out_or_chosen(authority):
    issued = authority.issue_provider_certificate(
        None, topics=(), environments=["sandbox"], voip_topic="com.example.app.voip"
    )
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    found = {e.oid.dotted_string for e in certificate.extensions if e.oid.dotted_string.startswith("1.2.840")}
    assert found == {"1.2.840.113635.100.6.3.1", "1.2.840.113635.100.6.3.4"}
    assert not certificate.subject.get_attributes_for_oid(NameOID.USER_ID)


def test_topics_can_name_their_kinds(authority):
    issued = authority.issue_provider_certificate("a.b", topics={"a.b": ("app", "voip"), "a.b.x": ()})
    assert extension(issued.certificate_pem, "1.2.840.113635.100.6.3.6") == (
        b"\x30\x1b\x0c\x03a.b\x30\x0b\x0c\x03app\x0c\x04voip\x0c\x05a.b.x\x30\x00"
    )


def test_an_unknown_environment_is_refused(authority):
    with pytest.raises(ValueError, match="environment must be"):
        authority.issue_provider_certificate("com.example.app", environments=("prod",))


def test_a_certificate_can_be_long_expired(authority):
    end = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    issued = authority.issue_provider_certificate("com.example.app", not_after=end)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    assert certificate.not_valid_after_utc == end
    assert certificate.not_valid_before_utc == end - datetime.timedelta(days=1)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_p12_opens_with_its_password_only(authority, legacy):
    issued = authority.issue_provider_certificate("com.example.app")
    data = issued.to_pkcs12("geheim", legacy=legacy)
    opened = pkcs12.load_pkcs12(data, b"geheim")
    assert opened.cert.certificate == x509.load_pem_x509_certificate(issued.certificate_pem)
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_pkcs12(data, b"other")
    assert pkcs12.load_pkcs12(issued.to_pkcs12(None), None).key is not None


def test_a_signing_key_signs_for_its_public_key(authority):
    issued = authority.issue_signing_key()
    assert len(issued.key_id) == len(issued.team_id) == 10
    key = load_pem_private_key(issued.p8, None)
    signature = key.sign(b"octets", ec.ECDSA(hashes.SHA256()))
    issued.public_key.verify(signature, b"octets", ec.ECDSA(hashes.SHA256()))
    named = authority.issue_signing_key("ABC123DEFG", "DEF123GHIJ")
    assert (named.key_id, named.team_id) == ("ABC123DEFG", "DEF123GHIJ")


def test_no_repr_shows_a_private_key(authority):
    shown = repr(authority) + repr(authority.issue_signing_key())
    shown += repr(authority.issue_provider_certificate("com.example.app"))
    assert "PRIVATE KEY" not in shown
