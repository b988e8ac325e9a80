"""Whom a federation's roots vouch for: the profile is kept to the letter, and a name can be read in one way only."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from fanstream.errors import IdentityError
from fanstream.security import Authority, KeyKind, Role, Trust
from fanstream.security.identity import ISSUES_ONLY, SIGNS_ONLY
from fanstream.security.trust import read_lists, read_roots

from .forging import forge

DAY = timedelta(days=1)
NOW = time.time()
ROOT = Authority.make("hospitals", lifetime=10 * DAY, now=NOW)
OTHER = Authority.make("hospitals", lifetime=10 * DAY, now=NOW)


def trust(*roots: Authority, revoked: tuple[int, ...] = (), number: int = 1) -> Trust:
    roots = roots or (ROOT,)
    lists = b"".join(root.revoke(revoked, number=number, now=NOW) for root in roots)
    return Trust.read("hospitals", b"".join(root.certificate_pem for root in roots), lists)


def uris(*texts: str) -> dict[str, Any]:
    return {"names": [x509.UniformResourceIdentifier(text) for text in texts]}


@pytest.mark.parametrize("kind", list(KeyKind))
@pytest.mark.parametrize("role", list(Role))
def test_what_a_root_issues_is_known_by_it(kind: KeyKind, role: Role) -> None:
    root = Authority.make("hospitals", kind=kind, lifetime=10 * DAY, now=NOW)
    issued = root.issue("hospitals", "site-1", role, kind=kind, lifetime=DAY, now=NOW)
    found = trust(root).identify(issued.certificate, now=NOW)
    assert (found.federation, found.name, found.role) == ("hospitals", "site-1", role)
    assert found.not_after == issued.certificate.not_valid_after_utc.timestamp()
    assert found.serial == issued.certificate.serial_number


LOOK_ALIKES = [
    pytest.param("fed://hospitals/site/", id="empty"),
    pytest.param("fed://hospitals/site/site-1/", id="slash"),
    pytest.param("fed://hospitals/site/site-1%00", id="escaped NUL"),
    pytest.param("fed://hospitals/site/site-1\x00", id="NUL"),
    pytest.param("fed://hospitals/site/site-1\x00.evil", id="NUL and more"),
    pytest.param("fed://hospitals/site/site-1\n", id="line feed"),
    pytest.param("fed://hospitals/site/site-1 ", id="space"),
    pytest.param("fed://hospitals/site/.site-1", id="leading dot"),
    pytest.param("fed://hospitals/site/" + "a" * 64, id="too long"),
    pytest.param("fed://hospitals/site/site-1?x", id="query"),
    pytest.param("fed://hospitals/site/site-1#x", id="fragment"),
    pytest.param("fed://hospitals/site/../site-1", id="path"),
    pytest.param("fed://hospitals/hub/site-1", id="hub"),
    pytest.param("fed://hospitals/Site/site-1", id="case of the path"),
    pytest.param("FED://hospitals/site/site-1", id="case of the scheme"),
    pytest.param("fed:///site/site-1", id="no federation"),
    pytest.param("fed://user@hospitals/site/site-1", id="user"),
    pytest.param("fed://hospitals:1/site/site-1", id="port"),
    pytest.param("https://hospitals/site/site-1", id="scheme"),
    pytest.param("site-1", id="bare"),
    pytest.param("fed://hospitals/site/site-*", id="wildcard"),
    pytest.param("fed://hospitals/site/xn--ste-1-ypa/x", id="punycode and more"),
]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_a_name_that_could_be_read_as_another_is_none(text: str) -> None:
    with pytest.raises(IdentityError, match="expected fed://<federation>/site/<name>") as caught:
        trust().identify(forge(ROOT, **uris(text)).certificate, now=NOW)
    assert caught.value.code == "malformed"
    assert "\x00" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Site-1", "site-1.", "SITE-1", "site-l", "site-1-", "xn--ste-1-ypa"])
def test_a_name_that_is_alike_is_another(name: str) -> None:
    assert trust().identify(forge(ROOT, name).certificate, now=NOW).name == name


def test_a_name_in_unicode_is_no_name() -> None:
    raw = forge(ROOT, **uris("fed://hospitals/site/site-1")).certificate
    der = raw.public_bytes(encoding=_der()).replace(b"/site/site-1", "/site/s\u0456te-".encode())  # as long, Cyrillic
    with pytest.raises(IdentityError) as caught:
        trust().identify(x509.load_der_x509_certificate(der), now=NOW)
    assert caught.value.code in ("malformed", "untrusted")


def _der() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.mark.parametrize(
    ("made", "message"),
    [
        pytest.param(lambda: forge(ROOT, names=[]), "it has 0 names", id="no name"),
        pytest.param(
            lambda: forge(ROOT, **uris("fed://hospitals/site/site-1", "fed://hospitals/site/site-2")),
            "it has 2 names",
            id="two names",
        ),
        pytest.param(lambda: forge(ROOT, names=[x509.DNSName("site-1")]), "it has 1 names", id="a host's name"),
        pytest.param(lambda: forge(ROOT, purposes=[CLIENT, SERVER]), "extendedKeyUsage is neither", id="both roles"),
        pytest.param(
            lambda: forge(ROOT, purposes=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
            "extendedKeyUsage is neither",
            id="any role",
        ),
        pytest.param(
            lambda: forge(ROOT, without=x509.ExtendedKeyUsage), "it has no extendedKeyUsage", id="no role at all"
        ),
        pytest.param(lambda: forge(ROOT, without=x509.KeyUsage), "it has no keyUsage", id="no usage"),
        pytest.param(lambda: forge(ROOT, without=x509.SubjectAlternativeName), "it has no subjectAlt", id="no SAN"),
        pytest.param(lambda: forge(ROOT, without=x509.BasicConstraints), "it has no basicConstr", id="no constraints"),
        pytest.param(lambda: forge(ROOT, ca=True), "it is an authority's", id="an authority"),
        pytest.param(lambda: forge(ROOT, usage=ISSUES_ONLY), "keyUsage is not digitalSignature", id="issues"),
        pytest.param(
            lambda: forge(ROOT, extra=x509.InhibitAnyPolicy(0)), r"2\.5\.29\.54 is critical", id="unknown and critical"
        ),
        pytest.param(lambda: forge(ROOT, key=rsa_key(2048)), "its key is RSA of 2048 bits, expected", id="short RSA"),
        pytest.param(
            lambda: forge(ROOT, key=ec.generate_private_key(ec.SECP384R1())),
            "its key is EC of 384 bits",
            id="another curve",
        ),
        pytest.param(lambda: forge(ROOT, key=ed448.Ed448PrivateKey.generate()), "its key is Ed448,", id="Ed448"),
    ],
)
def test_a_certificate_that_is_not_of_the_profile(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(IdentityError, match=message) as caught:
        trust().identify(made().certificate, now=NOW)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda: forge(OTHER), "untrusted"),
        (lambda: forge(ROOT, federation="banks"), "wrong-federation"),
        (lambda: forge(ROOT, federation="Hospitals"), "wrong-federation"),
        (lambda: forge(ROOT, ends=timedelta(minutes=-30)), "expired"),
        (lambda: forge(ROOT, begins=timedelta(minutes=5)), "not-yet-valid"),
    ],
    ids=["another root", "another federation", "another case", "expired", "not yet valid"],
)
def test_a_certificate_of_the_profile_that_does_not_count(made: Callable[[], Any], code: str) -> None:
    with pytest.raises(IdentityError) as caught:
        trust().identify(made().certificate, now=NOW)
    assert caught.value.code == code


def test_an_authority_below_the_root_is_no_root() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    middle = forge(ROOT, ca=True, usage=ISSUES_ONLY, key=key)
    with pytest.raises(IdentityError) as caught:
        trust().identify(forge(Authority(middle.certificate, key)).certificate, now=NOW)
    assert caught.value.code == "untrusted"


def test_a_site_is_no_authority() -> None:
    member = forge(ROOT)
    with pytest.raises(IdentityError) as caught:
        trust().identify(forge(Authority(member.certificate, member.key), "server").certificate, now=NOW)
    assert caught.value.code == "untrusted"


def test_what_was_accepted_is_accepted_until_it_expires_is_revoked_or_its_root_goes() -> None:
    issued = ROOT.issue("hospitals", "site-1", Role.SITE, kind=KeyKind.ECDSA_P256, lifetime=DAY, now=NOW)
    found = trust().identify(issued.certificate, now=NOW)
    trust().check(found, now=found.not_after - 0.001)
    for other, now, code in (
        (trust(), found.not_after, "expired"),
        (trust(revoked=(found.serial,)), NOW, "revoked"),
        (trust(OTHER), NOW, "untrusted"),
    ):
        with pytest.raises(IdentityError) as caught:
            other.check(found, now=now)
        assert caught.value.code == code
    with pytest.raises(IdentityError, match="is revoked"):
        trust(revoked=(found.serial,)).identify(issued.certificate, now=NOW)


def test_two_roots_are_trusted_side_by_side_and_revoke_for_themselves() -> None:
    first, second = forge(ROOT), forge(OTHER)
    both = trust(ROOT, OTHER)
    assert both.identify(first.certificate, now=NOW).root != both.identify(second.certificate, now=NOW).root
    mine = ROOT.revoke([], number=1, now=NOW)
    theirs = OTHER.revoke([first.certificate.serial_number], number=9, now=NOW)  # not theirs to revoke
    roots = ROOT.certificate_pem + OTHER.certificate_pem
    assert Trust.read("hospitals", roots, mine + theirs).identify(first.certificate, now=NOW).name == "site-1"


def test_of_two_lists_the_one_with_the_higher_number_counts_wherever_it_stands() -> None:
    serial = 1234
    older, newer = ROOT.revoke([], number=1, now=NOW), ROOT.revoke([serial], number=2, now=NOW)
    for lists in (older + newer, newer + older):
        found = Trust.read("hospitals", ROOT.certificate_pem, lists)
        assert set(found.revoked.values()) == {frozenset({serial})}
        assert set(found.numbers.values()) == {2}


def test_a_list_with_a_lower_number_does_not_follow() -> None:
    known = trust(number=5)
    known.check_successor(trust(number=5))
    known.check_successor(trust(number=6))
    known.check_successor(trust(OTHER, number=1))  # another root counts for itself
    with pytest.raises(ValueError, match="it holds list number 4, and number 5 is known already"):
        known.check_successor(trust(number=4))


@pytest.mark.parametrize(
    ("roots", "lists", "message"),
    [
        pytest.param(b"", b"", "PEM", id="nothing"),
        pytest.param(ROOT.certificate_pem, b"", "holds no revocation list", id="no list"),
        pytest.param(
            ROOT.certificate_pem,
            OTHER.revoke([], number=1, now=NOW),
            "no revocation list signed by the root",
            id="other",
        ),
        pytest.param(forge(ROOT).certificate_pem, b"", "is no root", id="a site's"),
        pytest.param(forge(ROOT, ca=True, usage=ISSUES_ONLY).certificate_pem, b"", "does not sign itself", id="middle"),
        pytest.param(forge(ROOT, ca=True, usage=SIGNS_ONLY).certificate_pem, b"", "does not sign itself", id="usage"),
    ],
)
def test_roots_and_lists_that_are_none(roots: bytes, lists: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trust.read("hospitals", roots, lists)


def test_a_list_whose_signature_does_not_fit_is_nobodys() -> None:
    forged = Authority(ROOT.certificate, OTHER.key).revoke([], number=99, now=NOW)
    with pytest.raises(ValueError, match="no revocation list signed by"):
        Trust.read("hospitals", ROOT.certificate_pem, forged)
    with_own = forged + ROOT.revoke([], number=1, now=NOW)
    assert set(Trust.read("hospitals", ROOT.certificate_pem, with_own).numbers.values()) == {1}


GARBAGE = [b"\0", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=["NUL", "bytes", "certificate"])
def test_garbage_is_no_root_and_no_list(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_roots(garbage)
    with pytest.raises(ValueError, match="holds no revocation list"):
        read_lists(garbage)


def test_a_list_of_garbage_is_refused() -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_lists(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
