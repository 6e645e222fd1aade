"""Which directory is the true cgroup2 root."""

from pathlib import Path

import pytest

from bpf import cgroup

HYBRID = """\
24 1 0:22 / /proc rw,relatime - proc proc rw
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
"""
UNIFIED = "32 30 0:28 / /sys/fs/cgroup rw,nosuid,relatime shared:10 master:1 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        pytest.param(HYBRID, ["/sys/fs/cgroup/unified"], id="hybrid"),
        pytest.param(UNIFIED, ["/sys/fs/cgroup"], id="unified"),
        pytest.param(HYBRID.replace(" cgroup2 cgroup2 rw", " cgroup cgroup rw"), [], id="v1 only"),
        pytest.param("32 30 0:28 /kubepods/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", [], id="a subtree, bound"),
        pytest.param("32 30 0:28 /../.. /host rw - cgroup2 cgroup2 rw\n", ["/host"], id="the node's, in a container"),
        pytest.param("32 30 0:28 /../x /host rw - cgroup2 cgroup2 rw\n", [], id="a neighbour's part"),
        pytest.param("32 30 0:28 / /mnt/a\\040b rw - cgroup2 none rw\n", ["/mnt/a b"], id="blank in its path"),
        pytest.param("rubbish\n\n- cgroup2\n", [], id="rubbish"),
    ],
)
def test_mounts_of_cgroup2(table: str, found: list[str]) -> None:
    assert [str(path) for path in cgroup.cgroup2_mounts(table.splitlines())] == found


def mountinfo(tmp_path: Path, *mounts: Path) -> Path:
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"1 2 0:28 / {mount} rw - cgroup2 none rw\n" for mount in mounts))
    return table


def test_no_mount_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(cgroup.NoCgroupRoot, match="mount -t cgroup2"):
        cgroup.find_root(mountinfo(tmp_path))


def test_private_namespace_is_told(tmp_path: Path) -> None:
    """A directory that is no root: its inode is not 1."""
    with pytest.raises(cgroup.NoCgroupRoot, match="private cgroup namespace"):
        cgroup.find_root(mountinfo(tmp_path, tmp_path))


def test_unreadable_mount_is_told(tmp_path: Path) -> None:
    with pytest.raises(cgroup.NoCgroupRoot, match="cannot be read"):
        cgroup.find_root(mountinfo(tmp_path, tmp_path / "missing"))


def test_true_root_is_preferred_to_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, root = tmp_path / "part", tmp_path / "root"
    monkeypatch.setattr(cgroup, "why_not_root", lambda path: None if path == root else "a part")
    assert cgroup.find_root(mountinfo(tmp_path, part, root)) == root
