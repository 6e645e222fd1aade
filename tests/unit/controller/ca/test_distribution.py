"""What people and nodes are told: roots when they change and not otherwise, and the end before it comes."""

import asyncio
import datetime

import pytest

from controller.ca.distribution import condition, measure, push_roots
from controller.ca.trust import Overlap, Trust, TrustedRoot, Wish, advance
from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.status.metrics import Metrics
from mesh.xds import ROOTS_TYPE
from tests.unit.controller.ca.hierarchy import DAY, NOW, intermediate, root


def plugged(life: datetime.timedelta) -> Trust:
    issuer = intermediate(root(), life=life)
    return Trust(issuer, tuple(TrustedRoot(one, NOW - DAY) for one in issuer.roots), is_own=False)


@pytest.mark.parametrize(
    ("day", "begins"), [(0, "Ready"), (79, "Ready"), (81, "Expiring: the issuer"), (100, "Expired"), (200, "Expired")]
)
def test_the_end_is_said_before_it_comes(day: int, begins: str) -> None:
    assert condition(plugged(100 * DAY), {}, NOW + day * DAY).startswith(begins)


def test_what_follows_soon_is_not_alarmed_about() -> None:
    trust = plugged(100 * DAY)
    wish = Wish(intermediate(root()))
    trust = advance(trust, wish, Overlap(), "cluster.local", NOW + 90 * DAY, is_heard=True)
    assert trust.phase == "distributing"
    assert condition(trust, {}, NOW + 90 * DAY) == "Ready"


def test_faults_are_said_with_their_words() -> None:
    faults = {"cacerts": "Secret cacerts: ca-key.pem: not a private key"}
    assert condition(plugged(100 * DAY), faults, NOW) == "Faulty: Secret cacerts: ca-key.pem: not a private key"


def test_roots_are_pushed_when_they_change_and_not_otherwise() -> None:
    async def test() -> None:
        hub = Hub([ResourceSet(ROOTS_TYPE)])
        first, second = root().certificate, root().certificate
        push_roots(hub, "cluster.local", (first,))
        push_roots(hub, "cluster.local", (first,))
        assert hub.sets[ROOTS_TYPE].revision == 1
        push_roots(hub, "cluster.local", (first, second))
        assert hub.sets[ROOTS_TYPE].revision == 2
        assert list(hub.sets[ROOTS_TYPE].names()) == ["cluster.local"]

    asyncio.run(test())


def test_monitoring_hears_of_phase_and_expiry() -> None:
    metrics, trust = Metrics(), plugged(100 * DAY)
    measure(metrics, trust)
    text = metrics.render().decode()
    assert 'culvert_controller_ca_phase{phase="steady"} 1.0' in text
    assert 'culvert_controller_ca_phase{phase="distributing"} 0.0' in text
    (line,) = [one for one in text.splitlines() if 'ca_expiry_timestamp_seconds{certificate="issuer"}' in one]
    assert float(line.split()[-1]) == trust.issuer.expires.timestamp()
    assert "culvert_controller_ca_roots 1.0" in text
