"""What tests under Istio's control plane tell the API server, and a ztunnel of ours that has heard of it."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from mesh.kube.api import Api
from tests.cluster.istiod import CAPTURED, NODES, Stage, Ztunnel
from tests.cluster.mesh_objects import fresh
from tests.cluster.objects import namespace, pod, put, until
from tests.unit.controller.nodes import policy

NODE, OTHER_NODE = NODES

_addresses = itertools.count(1)


class Shop:
    """A namespace in the mesh with a client here, two servers there, and a service of these."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.namespace = fresh("shop")

    async def open(self) -> None:
        await namespace(self.api, self.namespace, **{"istio.io__dataplane-mode": "ambient"})
        await self.pod("client", NODE)
        await self.pod("web-1", OTHER_NODE, app="web")
        await self.pod("web-2", OTHER_NODE, app="web")
        spec = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        await self.put("v1", "Service", "web", spec)

    async def pod(self, name: str, node: str, *, captured: bool = True, **labels: str) -> str:
        """A pod whose account is called as its application; its address."""
        number = next(_addresses)
        address = f"10.7.{number // 250}.{number % 250 + 1}"
        made = pod(name, address, self.namespace, node, labels=labels, annotations=CAPTURED if captured else {})
        made["spec"]["serviceAccountName"] = name.partition("-")[0]
        await put(self.api, made)
        return address

    async def put(self, version: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        await put(self.api, {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})

    async def put_policy(self, name: str, spec: dict[str, Any], kind: str = "AuthorizationPolicy") -> None:
        await put(self.api, policy(name, spec, kind, self.namespace))

    def uid(self, name: str) -> str:
        """What the control plane calls a pod."""
        return f"Kubernetes//Pod/{self.namespace}/{name}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A shop, and a ztunnel of ours that has heard of it."""

    api: Api
    shop: Shop
    ztunnel: Ztunnel


@contextlib.asynccontextmanager
async def scene(one: Stage, **options: Any) -> AsyncIterator[Scene]:
    api = one.server.api()
    shop = Shop(api)
    await shop.open()
    ztunnel = Ztunnel(one.istiod.port, NODE, await one.credentials(NODE), **options)
    async with ztunnel.running():
        try:
            await until(lambda: knows(ztunnel, shop, "web-2", "web-1", "client"), "the pods of the shop are announced")
            yield Scene(api, shop, ztunnel)
        except AssertionError:
            print(one.istiod.said(), ztunnel.ads.last_error)
            raise


def knows(ztunnel: Ztunnel, shop: Shop, *names: str) -> bool:
    return ztunnel.ads.synced.is_set() and all(ztunnel.store.workload_number(shop.uid(name)) for name in names)
