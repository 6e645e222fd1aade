"""`/explain`: which rule of which object decides about a connection, on which path, and why.

Runs the same decisions as the engine, in Python, on the state of this moment; nothing is sent. The destination's
policies are judged too, as far as this node knows them. No ztunnel serves a pod that is not captured: what it dials
goes its way as it is, and what dials it meets no policy.
"""

import difflib
from ipaddress import ip_address
from typing import Any

from mesh.addresses import from_bytes16, to_bytes16
from mesh.reasons import Reason
from ztunnel import decide
from ztunnel.decide import Destination, Peer, Route, RouteKind
from ztunnel.model import Policy, Workload
from ztunnel.view import View

# What control planes, Istio's and ours, call the policies that they make from PeerAuthentications.
_STATIC_STRICT = "istio_converted_static_strict"
_CONVERTED = "converted_peer_authentication_"


def explain(view: View, source: str, destination: str) -> dict[str, Any]:
    """The decision about `source` (namespace/pod or address) dialling `destination` (host:port).

    Raises ValueError when either is not one that this node knows how to look up.
    """
    number, caller = _workload(view, source, "source")
    target = _destination(view, caller, destination)
    found: dict[str, Any] = {"source": caller.label, "destination": str(target)}
    if from_bytes16(target.ip).is_loopback or target.ip in caller.addresses:
        stays = f"{target} is the pod's own: it stays in the pod, and nobody decides about it"
        return found | {"path": "local", "reason": str(Reason.OK), "because": [stays], "allowed": True}
    route = decide.outbound(view, number, target, 1 << 63)
    found |= {"path": route.kind.name.lower(), "reason": str(route.reason), "because": list(route.trail)}
    if not caller.hbone:
        found |= _as_it_is(caller, route)
    if route.kind is RouteKind.REFUSE:
        return found | {"allowed": False}
    return found | _judged(view, caller, target, route)


def _as_it_is(caller: Workload, route: Route) -> dict[str, Any]:
    """What of a route holds for a source that no ztunnel serves: it dials the same endpoint (of one that the node's
    network chooses), without a tunnel.
    """
    steps = route.trail[:-1] if route.kind is RouteKind.HBONE else route.trail
    first = f"{caller.label} is not captured: what it dials shows no identity"
    kind = RouteKind.REFUSE if route.kind is RouteKind.REFUSE else RouteKind.PLAIN
    return {"path": kind.name.lower(), "because": [first, *steps]}


def _judged(view: View, caller: Workload, target: Destination, route: Route) -> dict[str, Any]:
    """What the destination's side says to it."""
    upstream = view.workload(route.workload)
    if upstream is None:
        return {"allowed": True}
    proved = str(caller.identity) if route.kind is RouteKind.HBONE and caller.hbone else None
    found = {"endpoint": upstream.label, "identity": proved, "policy": None}
    if not upstream.hbone:
        return found | {"allowed": True, "policies": [f"{upstream.label} is not captured: no policy holds there"]}
    if caller.host_network and caller.node == upstream.node and target.ip in upstream.addresses:
        past = f"node {caller.node} itself reaches its pods past policies, as its probes do"
        return found | {"allowed": True, "policies": [past]}
    app = route.authority if route.kind is RouteKind.HBONE else route.dial
    verdict = decide.inbound(view, route.workload, Peer(proved, _address(caller.addresses)), app)
    policy = view.policy(verdict.policy)
    return found | {
        "allowed": verdict.allow,
        "policy": policy.name if policy else None,
        "policies": [*verdict.trail, *_origin(policy, upstream)],
    }


def _origin(policy: Policy | None, judged: Workload) -> list[str]:
    """The object that an administrator wrote, where the policy has been made from another kind."""
    if policy is None:
        return []
    if policy.local_name.startswith(_CONVERTED):
        return [f"this is PeerAuthentication {policy.namespace}/{policy.local_name.removeprefix(_CONVERTED)}"]
    if policy.local_name != _STATIC_STRICT:
        return []
    whose = f"of the pod, else of namespace {judged.namespace}, else of the root namespace"
    return [f"this is STRICT of the PeerAuthentication {whose}: who shows no identity is refused"]


def _workload(view: View, text: str, role: str) -> tuple[int, Workload]:
    try:
        number = view.workload_at(to_bytes16(text))
    except ValueError:
        namespace, slash, name = text.partition("/")
        if not slash:
            raise ValueError(f"{role} {text!r} is neither namespace/pod nor an address") from None
        number = view.workload_number(f"{view.here.cluster_id}//Pod/{namespace}/{name}")
    workload = view.workload(number)
    if workload is None:
        raise ValueError(f"{role} {text!r} is not a workload that the controller has announced")
    return number, workload


def _destination(view: View, caller: Workload, text: str) -> Destination:
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host:
        raise ValueError(f"destination {text!r} is not host:port")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"destination {text!r}: {port!r} is not a port")
    try:
        return Destination(to_bytes16(ip_address(host)), int(port))
    except ValueError:
        return Destination(_by_name(view, caller, host), int(port))


def _by_name(view: View, caller: Workload, host: str) -> bytes:
    """The address behind a name of a service, as the caller's resolver completes it, or behind namespace/pod."""
    if "/" in host:
        return _address(_workload(view, host, "destination")[1].addresses)
    whole = host if "." in host else f"{host}.{caller.namespace}"
    names = [service.hostname for _, service in view.services()]
    for _, service in view.services():
        if f"{service.hostname}.".startswith(f"{whole}."):
            for vip in service.vips:
                if vip.length == 128:
                    return vip.ip
            raise ValueError(f"service {service.name} has no address of its own (headless): ask for one of its pods")
    near = difflib.get_close_matches(whole, [*names, *map(_short, names)], 1)
    more = f"; near is {near[0]}" if near else ""
    raise ValueError(f"no service that the controller announced is called {host!r}{more}")


def _short(hostname: str) -> str:
    return ".".join(hostname.split(".")[:2])


def _address(addresses: tuple[bytes, ...]) -> bytes:
    if not addresses:
        raise ValueError("that workload has no address")
    return addresses[0]
