"""The issuer of a standalone controller: told to nodes and to monitoring, and otherwise at rest."""

import asyncio

from controller.ca.authority import Lifetimes
from controller.ca.local import LocalAuthority
from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.status.metrics import Metrics
from mesh.xds import ROOTS_TYPE
from tests.unit.controller.ca.hierarchy import DAY, NOW, intermediate, root


def test_nodes_hear_of_the_roots_and_monitoring_of_the_end() -> None:
    async def test() -> None:
        hub, metrics = Hub([ResourceSet(ROOTS_TYPE)]), Metrics()
        old, above = root(), root()
        issuer = intermediate(above, old.certificate, life=100 * DAY)
        LocalAuthority(issuer, Lifetimes(), lambda: NOW).announce(hub, metrics, "cluster.local")
        ends = issuer.certificate.not_valid_after_utc.timestamp()
        name = "culvert_controller_ca_expiry_timestamp_seconds"
        assert metrics.registry.get_sample_value(name, {"certificate": "issuer"}) == ends
        assert metrics.registry.get_sample_value("culvert_controller_ca_roots") == 2
        assert list(hub.sets[ROOTS_TYPE].names()) == ["cluster.local"]

    asyncio.run(test())
