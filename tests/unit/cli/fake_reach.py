"""A mesh of a few dictionaries, in place of one that runs."""

import json

from cli.reach.base import AGENT, ZTUNNEL_ADMIN, Unreachable


class FakeReach:
    """`answers` by (node or controller, port, path); what is missing there does not answer."""

    controllers_may_be_elsewhere = False

    def __init__(self, nodes=("a", "b"), controllers=("controller",)):
        self._nodes = list(nodes)
        self._controllers = list(controllers)
        self.answers = {}
        for node in nodes:
            self.answers[node, AGENT, "/status"] = agent_status(node)
            self.answers[node, ZTUNNEL_ADMIN, "/config_dump"] = config_dump()
        for name in controllers:
            self.answers[name, 0, "/debug/announced"] = {"nodes": dict.fromkeys(nodes, True)}

    def emptiness(self):
        return "nothing runs: `culvert install`"

    def nodes(self):
        return self._nodes

    def controllers(self):
        return self._controllers

    def get(self, node, port, path):
        try:
            return json.dumps(self.answers[node, port, path]).encode()
        except KeyError:
            raise Unreachable(f"{node} does not answer on port {port}") from None

    def get_controller(self, name, path):
        return self.get(name, 0, path)

    def place_of(self, source):
        return self._nodes[0], source


def agent_status(node, **changes):
    return {
        "node": node,
        "ready": True,
        "waiting_for": "",
        "programs": {"problem": ""},
        "ztunnel": {"connected": 1, "ready": True, "problem": ""},
        "controller": {"connected": True, "problem": ""},
        "kubernetes": None,
        "pods": [{"namespace": "shop", "name": f"web-{node}", "state": "captured", "reason": ""}],
        "guard": {"on": True, "problem": "", "dropped": {}},
        **changes,
    }


def config_dump(**changes):
    leaf = {"serialNumber": "7", "validFrom": "2026-01-01T00:00:00Z", "expirationTime": "2026-01-02T00:00:00Z"}
    workload = {"namespace": "shop", "name": "web", "uid": "Kubernetes//Pod/shop/web", "workloadIps": ["10.1.0.2"]}
    workload |= {"node": "a", "protocol": "HBONE", "status": "Healthy", "waypoint": None, "authorizationPolicies": []}
    service = {
        "namespace": "shop",
        "name": "web",
        "hostname": "web.shop.svc",
        "vips": ["/10.9.0.1"],
        "ports": {"80": 8080},
    }
    connection = {
        "src": "10.1.0.3:4000",
        "originalDst": "10.1.0.2:8080",
        "protocol": "HBONE",
        "peerIdentity": "spiffe://x",
    }
    connection |= {"bytesSent": 1, "bytesReceived": 2, "actualDst": ""}
    return {
        "workloads": [workload],
        "services": [{**service, "endpoints": {"one": {}}, "waypoint": None}],
        "policies": [],
        "certificates": [{"identity": "spiffe://x/ns/shop/sa/web", "state": "Available", "certChain": [leaf]}],
        "workloadState": {
            "uid": {
                "info": {"namespace": "shop", "name": "web"},
                "connections": {"inbound": [connection], "outbound": []},
            }
        },
        **changes,
    }
