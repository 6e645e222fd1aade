"""Each lack is one sentence that names it."""

import errno
import importlib.util
import os

import pytest

from bpf import features, kernel
from bpf.features import Check


def test_helper_that_the_verifier_does_not_know_is_told_from_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ""

    def load(*_: object, **__: object) -> tuple[int, str]:
        raise kernel.Rejected(log)

    monkeypatch.setattr(kernel, "load_program", load)
    for log, known in (
        ("0: (85) call unknown#999\ninvalid func unknown#999", False),
        ("program of this type cannot use helper bpf_sk_assign#124", False),
        ("unknown func bpf_set_retval#187", False),
        ("R1 type=ctx expected=map_ptr", True),
    ):
        assert features._has_helper(18, 10, 187) is known, log


def test_unprivileged_process_is_told_before_anything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_held_capabilities", lambda: 1 << 12)
    check = features.capabilities()
    assert not check.is_met
    assert "CAP_SYS_ADMIN" in check.sentence
    assert "CAP_NET_ADMIN" not in check.sentence
    monkeypatch.setattr(features, "kernel_checks", lambda: pytest.fail("tried all the same"))
    assert not all(check.is_met for check in features.required_for_loading())


@pytest.mark.parametrize("lacking", [name for name, _, _ in features.KERNEL_NEEDS])
def test_each_lack_of_the_kernel_is_named(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    needs = tuple((name, lambda name=name: name != lacking, need) for name, _, need in features.KERNEL_NEEDS)
    monkeypatch.setattr(features, "KERNEL_NEEDS", needs)
    monkeypatch.setattr(features, "has_mptcp", lambda: True)
    monkeypatch.setattr(features, "has_guard", lambda: True)
    unmet = [check for check in features.kernel_checks() if not check.is_met]
    assert [check.name for check in unmet] == [lacking]
    assert "lacks" in unmet[0].sentence


def test_mptcp_is_a_loss_and_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "KERNEL_NEEDS", ())
    monkeypatch.setattr(features, "has_mptcp", lambda: False)
    monkeypatch.setattr(features, "has_guard", lambda: True)
    check, _ = features.kernel_checks()
    assert check == Check("mptcp", False, check.sentence, False)
    assert "getpeername" in check.sentence


def test_the_guard_is_a_loss_and_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "KERNEL_NEEDS", ())
    monkeypatch.setattr(features, "has_mptcp", lambda: True)
    monkeypatch.setattr(features, "has_guard", lambda: False)
    *_, check = features.kernel_checks()
    assert check == Check("guard", False, check.sentence, False)
    assert "not dropped at the source" in check.sentence


@pytest.mark.parametrize(("code", "has"), [(errno.ENODEV, True), (errno.EINVAL, False), (errno.EPERM, False)])
def test_a_kernel_with_tcx_misses_the_link_and_another_the_kind(
    monkeypatch: pytest.MonkeyPatch, code: int, has: bool
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, "create link")

    monkeypatch.setattr(kernel, "load_program", lambda *_: (os.open(os.devnull, os.O_RDONLY), ""))
    monkeypatch.setattr(kernel, "link_create", refuse)
    assert features.has_guard() is has


def test_missing_bcc_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "python3-bpfcc" in features.compiler().sentence
