"""What signs: the issuer's certificate, key and chain, from a root of our own or from an operator's files.

The root is made once, under a lock, in a directory that appears whole by one rename: a crash at any point leaves either
no root or a complete one, and two controllers that start together end up with the same.
"""

import datetime
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from controller.ca import keys
from controller.files import sync_directory

ROOT_LIFETIME = datetime.timedelta(days=3650)

_CERTIFICATE, _KEY, _ROOTS, _CHAIN = "ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"


class IssuerUnavailable(Exception):
    """The files that should make an issuer do not; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate that signs, its key, what leads from it to a root, and the roots that all trust."""

    certificate: x509.Certificate
    key: keys.IssuerKey = field(repr=False)
    intermediates: tuple[x509.Certificate, ...]  # sent with each leaf, the issuer first, without roots
    roots: tuple[x509.Certificate, ...]

    @property
    def roots_pem(self) -> bytes:
        """The roots, one PEM block after the other."""
        return b"".join(map(keys.certificate_pem, self.roots))

    @property
    def path(self) -> tuple[x509.Certificate, ...]:
        """The issuer's certificate and what leads from it to a root."""
        return self.intermediates or (self.certificate,)

    @property
    def expires(self) -> datetime.datetime:
        """When the first certificate of the path ends, and with it every leaf."""
        return min(one.not_valid_after_utc for one in (self.certificate, *self.path))

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """The roots that the path leads to."""
        return tuple(root for root in self.roots if keys.is_signed_by(self.path[-1], root))


def load_or_create_root(state: Path, trust_domain: str, now: datetime.datetime) -> Issuer:
    """The local root of a state directory, made at the first call; raises IssuerUnavailable."""
    folder = state / "ca"
    with _locked(state):
        _sweep(state)
        if not folder.exists():
            _create(folder, trust_domain, now)
    return load(folder, now)


def load(folder: Path, now: datetime.datetime) -> Issuer:
    """An issuer from files named as Istio's `cacerts`; raises IssuerUnavailable."""
    names = [name for name in (_ROOTS, _CHAIN) if (folder / name).exists()]
    return parse({name: _read(folder, name) for name in (_CERTIFICATE, _KEY, *names)}, str(folder), now)


def parse(files: Mapping[str, bytes], where: str, now: datetime.datetime) -> Issuer:
    """An issuer from the contents of such files; raises IssuerUnavailable, which names the file that is at fault.

    A root alone (`ca-cert.pem`, `ca-key.pem`) is an issuer too: then it is its own chain.
    """
    (certificate, *_) = _certificates(files, _CERTIFICATE, where)
    key = _key(files, where)
    roots = _certificates(files, _ROOTS, where) if _ROOTS in files else [certificate]
    chain = _certificates(files, _CHAIN, where) if _CHAIN in files else [certificate]
    if chain[0] != certificate:
        chain.insert(0, certificate)
    intermediates = tuple(item for item in chain if item not in roots)
    issuer = Issuer(certificate, key, intermediates, tuple(roots))
    _check(issuer, where, now)
    return issuer


def _certificates(files: Mapping[str, bytes], name: str, where: str) -> list[x509.Certificate]:
    if name not in files:
        raise IssuerUnavailable(f"{where}: {name} is missing")
    try:
        return keys.load_certificates(files[name])
    except keys.InvalidKey as error:
        raise IssuerUnavailable(f"{where}: {name}: {error}") from error


def _key(files: Mapping[str, bytes], where: str) -> keys.IssuerKey:
    if _KEY not in files:
        raise IssuerUnavailable(f"{where}: {_KEY} is missing")
    try:
        return keys.load_key(files[_KEY])
    except keys.InvalidKey as error:
        raise IssuerUnavailable(f"{where}: {_KEY}: {error}") from error


def new_root(trust_domain: str, now: datetime.datetime) -> Issuer:
    """A root of our own, not kept anywhere yet."""
    key = keys.new_key()
    certificate = keys.make_root(key, trust_domain, now, ROOT_LIFETIME)
    return Issuer(certificate, key, (), (certificate,))


def _check(issuer: Issuer, folder: str, now: datetime.datetime) -> None:
    if not keys.same_key(issuer.certificate, issuer.key):
        raise IssuerUnavailable(f"{folder}: {_KEY} is not the key of {_CERTIFICATE}")
    path = issuer.path
    for certificate in path:
        if not keys.is_authority(certificate):
            raise IssuerUnavailable(f"{folder}: {_name(certificate)} may not sign certificates (CA is not true)")
    for lower, upper in itertools.pairwise(path):
        if not keys.is_signed_by(lower, upper):
            raise IssuerUnavailable(f"{folder}: {_name(lower)} is not signed by {_name(upper)}, next in {_CHAIN}")
    if not issuer.anchors:
        raise IssuerUnavailable(f"{folder}: {_name(path[-1])} is not signed by any certificate of {_ROOTS}")
    for certificate in {*path, *issuer.roots}:
        if certificate.not_valid_after_utc <= now:
            raise IssuerUnavailable(f"{folder}: {_name(certificate)} expired {certificate.not_valid_after_utc}")


def _name(certificate: x509.Certificate) -> str:
    return f"certificate {certificate.subject.rfc4514_string() or certificate.serial_number}"


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise IssuerUnavailable(f"{folder / name}: {error.strerror}") from error


def _create(folder: Path, trust_domain: str, now: datetime.datetime) -> None:
    root = new_root(trust_domain, now)
    # mkdtemp makes the directory 0700; nothing in it is reachable under its final name before all is flushed.
    temporary = Path(tempfile.mkdtemp(prefix=".ca-", dir=folder.parent))
    try:
        _write(temporary / _KEY, keys.key_pem(root.key), 0o600)
        _write(temporary / _CERTIFICATE, root.roots_pem, 0o644)
        _write(temporary / _ROOTS, root.roots_pem, 0o644)
        sync_directory(temporary)
        temporary.rename(folder)
        sync_directory(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(state: Path) -> None:
    """Remove what a controller that was killed while it made a root left behind."""
    for leftover in state.glob(".ca-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state / "ca.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise IssuerUnavailable(f"{state}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
