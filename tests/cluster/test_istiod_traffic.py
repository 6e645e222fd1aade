"""Whole nodes of ours, agent and ztunnel, under Istio's real control plane: traffic, STRICT, policy, istiod away.

Runs where `test_real_istiod.py` runs.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mesh.kube.resources import AUTHORIZATION_POLICIES, PEER_AUTHENTICATIONS, SERVICES
from tests.cluster.istiod import Stage
from tests.cluster.istiod_nodes import Nodes, nodes
from tests.cluster.objects import put, until
from tests.unit.controller.nodes import policy

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

PORT = 7001
CLIENT = "spiffe://cluster.local/ns/shop/sa/client"


async def reaches(here: Nodes, source: str, host: str) -> bool:
    return await asyncio.to_thread(here.reaches, source, host, PORT)


async def until_reached(here: Nodes, source: str, host: str, *, whether: bool) -> None:
    async def is_so() -> bool:
        return await reaches(here, source, host) is whether

    await until(is_so, f"{source} reaches {host}: {whether}")


async def vip(here: Nodes) -> str:
    return str((await here.api.get(SERVICES, "web", "shop"))["spec"]["clusterIP"])


def served(here: Nodes, host: str) -> dict[str, Any]:
    """The last line of the other node about a connection to this address."""
    lines = [line for line in here.by_name["node-b"].connections() if host in str(line)]
    assert lines, here.by_name["node-b"].log("ztunnel").read_text()[-2000:]
    return lines[-1]


def test_traffic_and_policy(istio: Stage, tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(istio, tmp_path) as here:
            web = here.lab.ips("shop/web")[0]
            assert await reaches(here, "shop/client", web)
            assert await reaches(here, "shop/client", await vip(here))
            await until(lambda: CLIENT in str(served(here, web)), "its identity is logged")
            assert await reaches(here, "legacy/outside", web)

            await put(here.api, policy("strict", {"mtls": {"mode": "STRICT"}}, "PeerAuthentication"))
            await until_reached(here, "legacy/outside", web, whether=False)
            assert await reaches(here, "shop/client", web)

            caller = {"source": {"principals": [CLIENT.removeprefix("spiffe://")]}}
            await put(here.api, policy("deny", {"action": "DENY", "rules": [{"from": [caller]}]}))
            await until_reached(here, "shop/client", web, whether=False)
            assert await reaches(here, "shop/other", web)

            istio.istiod.kill()
            assert await reaches(here, "shop/other", web)
            await here.api.delete(AUTHORIZATION_POLICIES, "deny", "shop")
            await here.api.delete(PEER_AUTHENTICATIONS, "strict", "shop")
            await istio.istiod.start()
            await until_reached(here, "shop/client", web, whether=True)
            await until_reached(here, "legacy/outside", web, whether=True)

    asyncio.run(test())
