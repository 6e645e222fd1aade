import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from controller.ca import authority as issuing
from controller.ca.issuer import new_root
from mesh import xds
from mesh.aio import Background
from mesh.identity import Identity
from mesh.wire.trust_pb2 import Roots
from tests.support.clock import run_virtual
from tests.support.pki import Authority, pem
from ztunnel.identity.manager import CaUnavailable, IdentityManager
from ztunnel.identity.roots import RootsUpdates

WEB = Identity("cluster.local", "shop", "web")
START = datetime(2026, 1, 1, tzinfo=UTC)


def now() -> datetime:
    """Wall clock that moves with the loop's virtual time."""
    return START + timedelta(seconds=asyncio.get_running_loop().time() - 1000)


class FakeCa:
    def __init__(self, ttl_s: int = 1000) -> None:
        self.authority = Authority(clock=START)
        self.ttl_s = ttl_s
        self.asked_at: list[float] = []
        self.failing = False
        self.names: tuple[str, ...] | None = None

    async def sign(self, identity: Identity, csr_pem: str) -> list[str]:
        self.asked_at.append(asyncio.get_running_loop().time() - 1000)
        if self.failing:
            raise CaUnavailable("CA answered UNAVAILABLE: down for the test")
        request = x509.load_pem_x509_csr(csr_pem.encode())
        names = self.names or (str(identity),)
        key = request.public_key()
        leaf = self.authority.leaf(*names, key=key, not_before=now(), not_after=now() + timedelta(seconds=self.ttl_s))  # type: ignore[arg-type]
        return [pem(leaf), self.authority.pem]


class Sink:
    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.roots: dict[str, str] = {}
        self.puts = 0

    def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
        assert "PRIVATE KEY" in key_pem
        assert "BEGIN CERTIFICATE" in roots_pem
        self.held[identity] = chain_pem
        self.roots[identity] = roots_pem
        self.puts += 1

    def remove_identity(self, identity: str) -> None:
        del self.held[identity]


async def with_manager(ca: FakeCa, sink: Sink, seconds: float, release_after: float | None = None) -> IdentityManager:
    async with Background() as background:
        manager = IdentityManager(ca, sink, background, clock=now)
        manager.acquire(WEB)
        if release_after is not None:
            await asyncio.sleep(release_after)
            manager.release(WEB)
        await asyncio.sleep(seconds - (release_after or 0))
        return manager


def test_a_certificate_is_renewed_at_half_life() -> None:
    ca, sink = FakeCa(ttl_s=1000), Sink()
    run_virtual(with_manager(ca, sink, 1100))
    assert [round(at) for at in ca.asked_at] == [0, 500, 1000]
    assert sink.puts == 3


@pytest.mark.parametrize("skew_s", [-60, 0, 60])
def test_a_node_whose_clock_is_off_by_a_minute_always_has_a_certificate_that_is_good_by_it(skew_s: int) -> None:
    def clock_of_the_node() -> datetime:
        return now() + timedelta(seconds=skew_s)

    class OurCa:
        """As the controller signs, by its own clock."""

        def __init__(self) -> None:
            self.authority = issuing.Authority(new_root("cluster.local", now()), issuing.Lifetimes(), now)
            self.asked = 0

        async def sign(self, identity: Identity, csr_pem: str) -> list[str]:
            self.asked += 1
            return self.authority.sign_request(csr_pem, identity, 3600).pem_chain

    class GoodNow(Sink):
        def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
            for pem_text in (chain_pem, roots_pem):
                shown = x509.load_pem_x509_certificate(pem_text.encode())
                assert shown.not_valid_before_utc <= clock_of_the_node() < shown.not_valid_after_utc
            super().put_identity(identity, chain_pem, key_pem, roots_pem)

    async def run() -> None:
        ca, sink = OurCa(), GoodNow()
        async with Background() as background:
            manager = IdentityManager(ca, sink, background, clock=clock_of_the_node)
            manager.acquire(WEB)
            await asyncio.sleep(3600 * 5)
            assert str(WEB) in sink.held
        assert 10 <= ca.asked <= 11

    run_virtual(run())


def test_retries_back_off_and_the_old_certificate_serves_until_it_expires() -> None:
    ca, sink = FakeCa(ttl_s=1000), Sink()

    async def run() -> None:
        async with Background() as background:
            manager = IdentityManager(ca, sink, background, clock=now)
            manager.acquire(WEB)
            await asyncio.sleep(100)
            ca.failing = True
            await asyncio.sleep(890)  # 990: renewal failed since 500
            assert str(WEB) in sink.held
            await asyncio.sleep(200)  # 1190: expired at 1000
            assert str(WEB) not in sink.held
            assert manager.pending == [WEB]
            ca.failing = False
            manager.hurry(WEB)
            await asyncio.sleep(2)
            assert str(WEB) in sink.held

    run_virtual(run())
    gaps = [b - a for a, b in zip(ca.asked_at[1:-1], ca.asked_at[2:], strict=False)]
    assert max(gaps) <= 181
    assert gaps[0] < 1.0
    assert gaps[3] > gaps[0]
    assert len(ca.asked_at) < 25


def test_a_certificate_for_somebody_else_is_not_used() -> None:
    ca, sink = FakeCa(), Sink()
    ca.names = ("spiffe://cluster.local/ns/shop/sa/other",)
    manager = run_virtual(with_manager(ca, sink, 5))
    assert sink.held == {}
    _, error = manager.certificates()[WEB]
    assert "asked for was spiffe://cluster.local/ns/shop/sa/web" in error


def test_the_last_release_takes_the_certificate_away() -> None:
    ca, sink = FakeCa(ttl_s=100), Sink()
    run_virtual(with_manager(ca, sink, 500, release_after=10))
    assert sink.held == {}
    assert len(ca.asked_at) == 1


@pytest.mark.parametrize("waiting", [1, 50])
def test_hurrying_never_floods_the_ca(waiting: int) -> None:
    ca, sink = FakeCa(), Sink()
    ca.failing = True

    async def run() -> None:
        async with Background() as background:
            manager = IdentityManager(ca, sink, background, clock=now)
            manager.acquire(WEB)
            for _ in range(100):
                for _ in range(waiting):
                    manager.hurry(WEB)
                await asyncio.sleep(0.1)

    run_virtual(run())
    assert 10 <= len(ca.asked_at) <= 21  # ten seconds, at most one try each half second


def test_pushed_roots_reach_every_identity_at_once_and_only_who_needs_it_asks_again() -> None:
    ca, sink = FakeCa(ttl_s=100_000), Sink()
    other = Authority("another root", clock=START)

    async def run() -> None:
        async with Background() as background:
            manager = IdentityManager(ca, sink, background, clock=now)
            manager.acquire(WEB)
            await asyncio.sleep(10)
            manager.trust(ca.authority.pem + other.pem)
            assert sink.roots[str(WEB)] == ca.authority.pem + other.pem
            await asyncio.sleep(10)
            assert len(ca.asked_at) == 1

            old, ca.authority = ca.authority, other
            manager.trust(other.pem)
            assert sink.roots[str(WEB)] == other.pem
            await asyncio.sleep(10)
            assert len(ca.asked_at) == 2
            assert sink.roots[str(WEB)] == other.pem
            assert old.pem not in sink.held[str(WEB)]

    run_virtual(run())


def test_an_answer_of_the_ca_takes_no_pushed_root_away() -> None:
    ca, sink = FakeCa(ttl_s=1000), Sink()
    coming = Authority("coming", clock=START)

    async def run() -> None:
        async with Background() as background:
            manager = IdentityManager(ca, sink, background, clock=now)
            manager.trust(coming.pem + ca.authority.pem)
            manager.acquire(WEB)
            await asyncio.sleep(600)
            assert len(ca.asked_at) == 2
            assert sink.roots[str(WEB)] == coming.pem + ca.authority.pem

    run_virtual(run())


@pytest.mark.parametrize("pem_text", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_roots_that_cannot_be_used_change_nothing(pem_text: str) -> None:
    ca, sink = FakeCa(), Sink()

    async def run() -> None:
        async with Background() as background:
            manager = IdentityManager(ca, sink, background, clock=now)
            manager.acquire(WEB)
            await asyncio.sleep(10)
            refused = RootsUpdates(manager.trust).apply(roots_update(pem_text))
            assert "cluster.local" in refused
            assert sink.roots[str(WEB)] == ca.authority.pem
            assert not RootsUpdates(manager.trust).apply(roots_update(ca.authority.pem))

    run_virtual(run())


def roots_update(pem_text: str) -> xds.Update:
    value = Roots(pem=pem_text).SerializeToString()
    return xds.Update(xds.ROOTS_TYPE, "1", (xds.Changed("cluster.local", "1", value),), ())
