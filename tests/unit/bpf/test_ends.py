import os
import socket
import struct
from pathlib import Path

import pytest

from bpf import ends
from bpf.ends import Ends, Link


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(index: int, flags: int, *attributes: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(attributes)


def test_a_veth_is_read_with_its_other_end() -> None:
    info = attribute(18, attribute(1, b"veth\0") + attribute(2, b"\0" * 7))
    raw = message(4, 0x1, attribute(3, b"eth0\0"), attribute(5, struct.pack("=I", 9)), info)
    raw += attribute(37, struct.pack("=i", 0))
    assert ends._parse(raw) == Link(4, "eth0", "veth", 9, 0, is_loopback=False)


def test_a_device_has_neither_kind_nor_other_end() -> None:
    assert ends._parse(message(1, 0x9, attribute(3, b"lo\0"))) == Link(1, "lo", "", 0, None, is_loopback=True)


def test_attributes_that_are_cut_short_end_the_reading() -> None:
    assert ends._attributes(attribute(3, b"a\0") + b"\2\0\0\0rest") == {3: b"a\0"}


def link(index: int, name: str, kind: str, linked: int = 0, netnsid: int | None = None) -> Link:
    return Link(index, name, kind, linked, netnsid, is_loopback=False)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        pytest.param([link(9, "v1", "veth", 2, 5)], [link(2, "eth0", "veth", 9, 0)], Ends((9,), ()), id="veth"),
        pytest.param(
            [link(9, "v1", "veth", 2, 6)], [link(2, "eth0", "veth", 9, 0)], Ends((), ("eth0",)), id="of others"
        ),
        pytest.param([], [link(2, "eth0", "macvlan", 3, 0)], Ends((), ("eth0",)), id="macvlan"),
        pytest.param([], [link(2, "ens1", "")], Ends((), ("ens1",)), id="a device"),
        pytest.param(
            [link(9, "v1", "veth", 2, 5)],
            [link(2, "eth0", "veth", 9, 0), link(3, "vxlan0", "vxlan"), link(4, "tun0", "tun")],
            Ends((9,), ()),
            id="upon eth0",
        ),
        pytest.param(
            [link(9, "v1", "veth", 2, 5)],
            [link(2, "eth0", "veth", 9, 0), link(3, "vlan7", "vlan", 4, 0)],
            Ends((9,), ("vlan7",)),
            id="upon a link of the node",
        ),
        pytest.param([link(7, "mac0", "macvlan", 2, 5)], [link(2, "eth0", "dummy")], Ends((), ()), id="upon the pod's"),
    ],
)
def test_only_veths_whose_other_end_is_the_pods_count(
    monkeypatch: pytest.MonkeyPatch, ours: list[Link], theirs: list[Link], expected: Ends
) -> None:
    answers = iter([ours, theirs])
    monkeypatch.setattr(ends, "_links", lambda _: next(answers))
    monkeypatch.setattr(ends, "_namespace_id", lambda *_: 5)
    monkeypatch.setattr(ends, "inside", lambda _, function: function())
    assert ends.ends_of(3) == expected


def test_the_ends_of_many_are_told_from_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [link(9, "v1", "veth", 2, 5), link(10, "v2", "veth", 2, 6), link(11, "v3", "veth", 7, 5)]
    here += [link(12, "m", "macvlan", 2, 5), link(13, "eth0", "")]
    ids = {31: 5, 32: 6, 33: None, 34: 7}
    asked = []
    monkeypatch.setattr(ends, "_links", lambda _: asked.append("") or here)
    monkeypatch.setattr(ends, "_namespace_id", lambda _, fd: ids[fd])
    found = ends.ends_here({fd + 100: fd for fd in ids})
    assert found == {131: {9, 11}, 132: {10}, 133: set(), 134: set()}
    assert len(asked) == 1


def test_this_namespace_is_asked_without_privilege() -> None:
    with ends._open() as sock, Path("/proc/self/ns/net").open() as here:
        found = {each.name: each.index for each in ends._links(sock)}
        assert found == {name: index for index, name in socket.if_nameindex()}
        assert ends._namespace_id(sock, here.fileno()) in (None, 0)


def test_what_is_no_namespace_is_an_error() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        with ends._open() as sock, pytest.raises(OSError, match="rtnetlink"):
            ends._namespace_id(sock, null)
    finally:
        os.close(null)
