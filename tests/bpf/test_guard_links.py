"""Where the guard stands: on which links, for how long, beside whom. Topology: topology.py."""

import os
import shutil
import socket
import struct
from contextlib import suppress

from bpf import kernel
from bpf.ends import Ends, ends_of
from bpf.paths import NodePaths
from bpf.plane import Counter, Plane
from tests.bpf.conftest import Ztunnel, enrol, guard, loader
from tests.bpf.dialling import PORT, accepted, dial, dropped
from tests.bpf.opening import OUT, hears_nothing, raw_syn
from tests.bpf.topology import Place, Topology, sh

STRANGER = Counter.GUARD_DROPPED_STRANGER


def test_the_ends_of_a_pods_links_are_found(net: Topology, plane: Plane) -> None:
    with net.a.path.open() as handle:
        found = net.node.run(lambda: ends_of(handle.fileno()))
        index = net.node.run(lambda: socket.if_nametoindex("va"))
        assert found == Ends((index,), ())
        elsewhere = net.out.run(lambda: ends_of(handle.fileno()))
        assert elsewhere == Ends((), ("eth0",)), "another netns than the node's sees no end"


def test_a_link_without_an_end_on_the_node_is_told(net: Topology, plane: Plane) -> None:
    sh(f"ip -n {net.a.name} link add extra type bridge")
    sh(f"ip -n {net.node.name} link add gone type veth peer name far netns {net.out.name}")
    sh(f"ip -n {net.out.name} link set far netns {net.a.name}")
    sh(f"ip -n {net.node.name} link set gone netns {net.out.name}")
    try:
        with net.a.path.open() as handle:
            assert net.node.run(lambda: ends_of(handle.fileno())).without == ("far",)
    finally:
        sh(f"ip -n {net.a.name} link del far; ip -n {net.a.name} link del extra")


def test_pod_that_hides_its_end_keeps_its_guard(net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place) -> None:
    """Also when a new agent looks for it."""
    hidden = Place(f"{guarded.name}-hid", guarded.ip4)
    sh(f"ip netns add {hidden.name}; ip -n {guarded.name} link set eth0 netns {hidden.name}")
    try:
        guard(plane, net, guarded)
        assert plane.is_guarded(guarded.cookie)
        sh(
            f"ip -n {hidden.name} link set lo up; ip -n {hidden.name} addr add {guarded.ip4}/24 dev eth0;"
            f"ip -n {hidden.name} link set eth0 up; ip -n {hidden.name} route add default via 10.77.1.254"
        )
        with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER), hidden.socket() as sock:
            sock.settimeout(0.3)
            with suppress(OSError):
                sock.connect((OUT[0], PORT))
    finally:
        sh(f"ip -n {hidden.name} link set eth0 netns {guarded.name}; ip netns del {hidden.name}")
        net.address(guarded)


def test_guard_is_dead_with_the_link_and_made_anew(net: Topology, plane: Plane, guarded: Place) -> None:
    assert plane.is_guarded(guarded.cookie)
    sh(f"ip -n {guarded.name} link del eth0")
    try:
        assert not plane.is_guarded(guarded.cookie)
    finally:
        net.link(guarded)
    guard(plane, net, guarded)
    assert plane.is_guarded(guarded.cookie)
    with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER):
        raw_syn(guarded, OUT[0])


def test_guard_goes_with_the_pod(net: Topology, plane: Plane, guarded: Place) -> None:
    plane.unenrol(guarded.cookie)
    assert not plane.is_guarded(guarded.cookie)
    assert not plane.paths.inbound(guarded.cookie).parent.exists()
    with net.out.listen(OUT[0], PORT) as server, dial(guarded, OUT[0]), accepted(server):
        pass


def test_programs_of_others_on_the_link_come_after(net: Topology, plane: Plane, guarded: Place) -> None:
    """A CNI's program that ends the chain, attached before us or after, does not let an opening by."""
    fd, _ = kernel.load_program(3, 0, struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))  # TCX_PASS
    index = net.node.run(lambda: socket.if_nametoindex("va"))
    plane.detach_guard(guarded.cookie)
    link = net.node.run(lambda: kernel.link_create(fd, index, 46))
    try:
        guard(plane, net, guarded)
        with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER):
            raw_syn(guarded, OUT[0])
    finally:
        os.close(link)
        os.close(fd)


def test_upgrade_swaps_the_guard_in_place(net: Topology, plane: Plane, guarded: Place, loaded: str) -> None:
    (pin,) = plane.paths.inbound(guarded.cookie).parent.glob("guard-*")

    def running() -> tuple[int, int]:
        fd = kernel.open_pin(pin)
        try:
            info = kernel.link_info(fd)
            return info.id, info.program_id
        finally:
            os.close(fd)

    before = running()
    loader("upgrade", "--node", loaded)
    after = running()
    assert before[0] == after[0]
    assert before[1] != after[1]
    with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER):
        raw_syn(guarded, OUT[0])


def test_unload_takes_the_guard_along(net: Topology, machine: None, key: str) -> None:
    """It would cut the pod off: nobody is left who could write ztunnel's notes."""
    own = f"{key}-guarded"
    try:
        loader("load", "--node", own)
        with Plane.open(own) as plane:
            enrol(plane, net.b)
            guard(plane, net, net.b)
        loader("unload", "--node", own)
    finally:
        loader("unload", "--node", own)
        shutil.rmtree(NodePaths(own).state.parent, ignore_errors=True)
    with net.out.listen(OUT[0], PORT) as server, dial(net.b, OUT[0]), accepted(server):
        pass
