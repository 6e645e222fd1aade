"""A pod's mounts on a machine that is not as full as most are.

unshare --mount            an /etc of its own, without hosts and resolv.conf
  +-- launch.py            the pod's first process: own /run, own /etc/hosts
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import launch

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces"),
]


@contextmanager
def sandbox(prepare: str, binds: list[tuple[str, str]]) -> Iterator[Path]:
    """The first process of a pod, on a machine that `prepare` has changed; gives the root that it sees."""
    reading, writing = os.pipe()
    order = {
        "namespaces": {},
        "sandbox": {"hostname": "pod", "binds": binds, "ready": writing},
        "cwd": "/",
        "uid": None,
        "gid": None,
    }
    script = f'{prepare}; exec "$@"'
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-I", "-S", launch.__file__]
    process = subprocess.Popen([*command, json.dumps(order)], pass_fds=(writing,), stderr=subprocess.PIPE, text=True)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as ready:
            started = ready.read(1) == b"+"
        if not started:
            raise AssertionError(process.communicate(timeout=10)[1])
        yield Path(f"/proc/{process.pid}/root")
    finally:
        process.kill()
        process.communicate()


def test_pod_has_its_own_hosts_on_a_machine_without(tmp_path: Path) -> None:
    names = tmp_path / "hosts"
    names.write_text("10.0.0.1 pod\n")
    with sandbox("mount -t tmpfs none /etc; echo kept >/etc/hostname", [(str(names), "/etc/hosts")]) as root:
        assert (root / "etc/hosts").read_text() == "10.0.0.1 pod\n"
        assert (root / "etc/hostname").read_text() == "kept\n"
        assert sorted(entry.name for entry in (root / "run").iterdir()) == ["lock"]


def test_machine_is_given_no_mount_point(tmp_path: Path) -> None:
    machine = tmp_path / "etc"
    machine.mkdir()
    names = tmp_path / "hosts"
    names.write_text("10.0.0.1 pod\n")
    with sandbox(f"mount --bind {machine} /etc", [(str(names), "/etc/hosts")]) as root:
        assert (root / "etc/hosts").exists()
    assert list(machine.iterdir()) == []


def test_volume_of_a_user_is_not_given_a_mount_point_in_etc(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="/etc/app does not exist; a pod shares this machine's files"),
        sandbox("mount -t tmpfs none /etc", [(str(tmp_path), "/etc/app")]),
    ):
        pass
