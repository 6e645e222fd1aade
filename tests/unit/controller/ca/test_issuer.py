"""Making and reading issuers: atomic, private, and refused with the reason when the files do not fit together."""

import datetime
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from controller.ca import issuer, keys

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
YEAR = datetime.timedelta(days=365)


def test_root_is_made_once_and_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = issuer.load_or_create_root(state, "cluster.local", NOW)
    again = issuer.load_or_create_root(state, "cluster.local", NOW)
    assert first.certificate == again.certificate
    assert (state / "ca" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert first.certificate.not_valid_after_utc == NOW + issuer.ROOT_LIFETIME
    assert first.intermediates == ()
    assert "key" not in repr(first).replace("public_key", "").split("certificate=")[0]


def _die_at(state: Path, step: int) -> None:
    """Create the root, and be killed when the step-th system call that changes the disk is about to happen."""
    left = [step]

    def counting(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **more: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        setattr(os, name, call)

    for name in ("mkdir", "open", "fsync", "rename"):
        counting(name)
    issuer.load_or_create_root(state, "cluster.local", NOW)


@pytest.mark.slow
def test_a_crash_at_any_point_leaves_no_root_or_a_whole_one(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    killed = 0
    for step in range(1, 40):
        state = tmp_path / str(step)
        process = fork.Process(target=_die_at, args=(state, step))
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        before = issuer.load(state / "ca", NOW).certificate if (state / "ca").exists() else None
        after = issuer.load_or_create_root(state, "cluster.local", NOW)
        assert before is None or after.certificate == before
        assert list(state.glob(".ca-*")) == []
        if process.exitcode == 0:
            break
    else:
        raise AssertionError("creation took more steps than were tried")
    assert killed >= 10


def _make(state: Path) -> None:
    issuer.load_or_create_root(state, "cluster.local", NOW)


@pytest.mark.slow
def test_controllers_that_start_together_end_up_with_one_root(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_make, args=(tmp_path / "state",)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["ca", "ca.lock"]


class PlugIn:
    """An operator's files: a root, an intermediate below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root_key, self.key = keys.new_key(), keys.new_key()
        self.root = keys.make_root(self.root_key, "their root", NOW, YEAR)
        self.certificate = self.intermediate()
        self.write()

    def intermediate(self, until: datetime.datetime = NOW + YEAR / 2) -> x509.Certificate:
        own = keys.make_root(self.key, "their intermediate", NOW, until - NOW)
        builder = x509.CertificateBuilder(
            issuer_name=self.root.subject,
            subject_name=own.subject,
            public_key=self.key.public_key(),
            serial_number=7,
            not_valid_before=NOW,
            not_valid_after=until,
            extensions=list(own.extensions),
        )
        return builder.sign(self.root_key, hashes.SHA256())

    def write(self) -> None:
        pem = keys.certificate_pem
        (self.folder / "ca-key.pem").write_bytes(keys.key_pem(self.key))
        (self.folder / "ca-cert.pem").write_bytes(pem(self.certificate))
        (self.folder / "root-cert.pem").write_bytes(pem(self.root))
        (self.folder / "cert-chain.pem").write_bytes(pem(self.certificate) + pem(self.root))


def test_plug_in_intermediate_is_taken_with_its_chain(tmp_path: Path) -> None:
    files = PlugIn(tmp_path)
    loaded = issuer.load(tmp_path, NOW)
    assert loaded.intermediates == (files.certificate,)
    assert loaded.roots == (files.root,)


def test_a_certificate_that_may_not_sign_is_no_issuer(tmp_path: Path) -> None:
    files = PlugIn(tmp_path)
    name = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/web")
    files.certificate = keys.make_leaf(files.key.public_key(), [name], files.root, files.root_key, NOW, NOW + YEAR / 2)
    files.write()
    with pytest.raises(issuer.IssuerUnavailable, match="may not sign certificates"):
        issuer.load(tmp_path, NOW)


def test_plug_in_files_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path) -> None:
    files = PlugIn(tmp_path)
    (tmp_path / "ca-key.pem").write_bytes(keys.key_pem(keys.new_key()))
    with pytest.raises(issuer.IssuerUnavailable, match=r"ca-key\.pem is not the key of ca-cert\.pem"):
        issuer.load(tmp_path, NOW)
    files.write()
    other = keys.make_root(keys.new_key(), "another", NOW, YEAR)
    (tmp_path / "root-cert.pem").write_bytes(keys.certificate_pem(other))
    (tmp_path / "cert-chain.pem").unlink()
    with pytest.raises(issuer.IssuerUnavailable, match="not signed by any certificate"):
        issuer.load(tmp_path, NOW)
    files.write()
    with pytest.raises(issuer.IssuerUnavailable, match="expired"):
        issuer.load(tmp_path, NOW + YEAR)
    (tmp_path / "ca-cert.pem").write_text("nothing")
    with pytest.raises(issuer.IssuerUnavailable, match="not certificates"):
        issuer.load(tmp_path, NOW)
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(issuer.IssuerUnavailable):
        issuer.load(tmp_path, NOW)
