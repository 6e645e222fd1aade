"""`/explain`: which rule of which object decides about a connection, on which path, and why.

Runs the same decisions as the engine, in Python, on the state of this moment; nothing is sent. The destination's
policies are judged too, as far as this node knows them.
"""

from ipaddress import ip_address
from typing import Any

from mesh.addresses import to_bytes16
from ztunnel import decide
from ztunnel.decide import Destination, Peer, RouteKind
from ztunnel.view import View


def explain(view: View, source: str, destination: str) -> dict[str, Any]:
    """The decision about `source` (namespace/pod or address) dialling `destination` (host:port).

    Raises ValueError when either is not one that this node knows how to look up.
    """
    number = _workload(view, source)
    caller = view.workload(number)
    target = _destination(view, destination)
    route = decide.outbound(view, number, target, 1 << 63)
    found: dict[str, Any] = {
        "source": caller.label if caller else source,
        "destination": str(target),
        "path": route.kind.name.lower(),
        "reason": str(route.reason),
        "because": list(route.trail),
    }
    if route.kind is RouteKind.REFUSE:
        return found | {"allowed": False}
    upstream = view.workload(route.workload)
    if upstream is None or caller is None:
        return found | {"allowed": True}
    proved = str(caller.identity) if route.kind is RouteKind.HBONE else None
    app = route.authority if route.kind is RouteKind.HBONE else route.dial
    verdict = decide.inbound(view, route.workload, Peer(proved, _address(caller.addresses)), app)
    policy = view.policy(verdict.policy)
    return found | {
        "endpoint": upstream.label,
        "identity": proved,
        "allowed": verdict.allow,
        "policy": policy.name if policy else None,
        "policies": list(verdict.trail),
    }


def _workload(view: View, text: str) -> int:
    try:
        number = view.workload_at(to_bytes16(text))
    except ValueError:
        namespace, slash, name = text.partition("/")
        if not slash:
            raise ValueError(f"source {text!r} is neither namespace/pod nor an address") from None
        number = view.workload_number(f"{view.here.cluster_id}//Pod/{namespace}/{name}")
    if not number:
        raise ValueError(f"source {text!r} is not a workload that the controller has announced")
    return number


def _destination(view: View, text: str) -> Destination:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"destination {text!r} is not host:port")
    host = host.strip("[]")
    try:
        return Destination(to_bytes16(ip_address(host)), int(port))
    except ValueError:
        return Destination(_by_name(view, host), int(port))


def _by_name(view: View, host: str) -> bytes:
    """The address behind a service's hostname (or its first two labels), or behind namespace/pod."""
    if "/" in host:
        workload = view.workload(_workload(view, host))
        assert workload is not None
        return _address(workload.addresses)
    for _, service in view.services():
        if host in (service.hostname, ".".join(service.hostname.split(".")[:2])):
            for vip in service.vips:
                if vip.length == 128:
                    return vip.ip
            raise ValueError(f"service {service.name} has no address of its own (headless): ask for one of its pods")
    raise ValueError(f"no service that the controller announced is called {host!r}")


def _address(addresses: tuple[bytes, ...]) -> bytes:
    if not addresses:
        raise ValueError("that workload has no address")
    return addresses[0]
