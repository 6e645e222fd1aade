"""Whose certificate makes its holder a node: one that names exactly one node, of this mesh, and nothing else."""

import asyncio
from collections.abc import Mapping

import pytest

from controller.names import node_names
from controller.serve.callers import Caller, NodeCertificates, RefusalLog, Unauthenticated
from tests.support.pki import Authority, pem

NODE, OTHER = node_names("cluster.local", "node-a"), node_names("cluster.local", "node-b")
WEB = "spiffe://cluster.local/ns/shop/sa/web"
CA = Authority()


class Call:
    """A call over a connection on which this certificate was shown."""

    def __init__(self, *shown: bytes) -> None:
        self._shown = shown

    def auth_context(self) -> Mapping[str, tuple[bytes, ...]]:
        return {"x509_pem_cert": self._shown} if self._shown else {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def caller(*uris: str) -> Caller:
    return asyncio.run(NodeCertificates("cluster.local").authenticate(Call(pem(CA.leaf(*uris)).encode())))


def test_a_nodes_certificate_is_its_node() -> None:
    assert caller(*NODE) == Caller("node-a")
    assert caller(*reversed(NODE)) == Caller("node-a")


@pytest.mark.parametrize(
    ("uris", "says"),
    [
        ((), "names no node"),
        ((WEB,), "names no node"),
        (NODE[:1] if NODE[0].startswith("spiffe") else NODE[1:], "names no node"),
        ((*NODE, *OTHER), "names no node"),
        (("culvert://node/",), "names no node"),
        (("culvert://node/node-a",), "not one of a node"),
        ((WEB, "culvert://node/node-a"), "not one of a node"),
        ((*NODE, WEB), "not one of a node"),
        (node_names("elsewhere", "node-a"), "not one of a node of cluster.local"),
    ],
)
def test_another_certificate_of_the_same_root_is_nobody(uris: tuple[str, ...], says: str) -> None:
    with pytest.raises(Unauthenticated, match=says):
        caller(*uris)


@pytest.mark.parametrize("shown", [(), (b"nonsense",)])
def test_no_certificate_or_an_unreadable_one_is_nobody(shown: tuple[bytes, ...]) -> None:
    with pytest.raises(Unauthenticated):
        asyncio.run(NodeCertificates("cluster.local").authenticate(Call(*shown)))


def test_a_flood_of_refusals_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = RefusalLog(lambda: now)
    for number in range(1000):
        log.warn(f"refused {number}")
    assert [record.getMessage() for record in caplog.records] == [f"refused {number}" for number in range(20)]
    caplog.clear()
    now = 10.0
    log.warn("another")
    assert caplog.messages == ["980 more refusals, which are counted and not logged", "another"]
