"""A node of a lab: a namespace with forwarding, a range of pod addresses, a runtime directory, a name server."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lab import names, namespaces, paths
from lab.manifests import Manifest
from lab.plan import MTU, NodePlan, Numbers, pod_numbers


@dataclass(slots=True)
class Node:
    """One node; the supervisor's loop owns it. One that is not local runs on another machine: here it is a route."""

    lab: str
    name: str
    plan: NodePlan
    netns_name: str
    mtu: int = MTU
    is_local: bool = True
    numbers: Numbers = field(default_factory=pod_numbers)

    @property
    def key(self) -> str:
        """The name of its runtime files and pins."""
        return names.node_key(self.lab, self.name)

    @property
    def netns(self) -> Path:
        """Its network namespace."""
        return namespaces.path_of(self.netns_name)

    @property
    def runtime(self) -> Path:
        """What its components share."""
        return paths.node_runtime(self.key)

    def number_of(self, ip: str) -> int:
        """Which of its pods has this address."""
        own: Any = self.plan.pods6 if ":" in ip else self.plan.pods4
        return int(ip_address(ip)) - int(own[0])

    def manifest(self, given: Manifest | None) -> Manifest:
        """Its Node object: what the user gave, with the addresses the lab chose."""
        base: Manifest = given or {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}}
        metadata = {"labels": {}, "annotations": {}, **base["metadata"]}
        metadata["labels"] = {"kubernetes.io/hostname": self.name, **metadata["labels"]}
        cidrs = [str(self.plan.pods4), str(self.plan.pods6)]
        addresses = [{"type": "InternalIP", "address": str(self.plan.ipv4)},
                     {"type": "InternalIP", "address": str(self.plan.ipv6)},
                     {"type": "Hostname", "address": self.name}]  # fmt: skip
        return {
            **base,
            "metadata": metadata,
            "spec": {**(base.get("spec") or {}), "podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
        }
