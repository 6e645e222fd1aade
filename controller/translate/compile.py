"""One target to its resources, encoded and ready to serve."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.index.captures import Captures
from controller.index.index import Index, Target, What
from controller.index.objects import AuthorizationPolicy, EndpointSlice, Kind, PeerAuthentication
from controller.translate import services, workloads
from controller.translate.authorizations import authorization
from controller.translate.facts import Mesh
from controller.translate.peers import peer_authorization, strict_authorization
from mesh.wire.authorization_pb2 import Authorization
from mesh.wire.workload_pb2 import Address, Workload
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, encode_resource

# 64 bits: two contents of one resource name never meet, and 10,000 of them per stream stay small.
_VERSION_BYTES = 8


@dataclass(frozen=True, slots=True)
class Resource:
    """An encoded resource. `tags` are the names besides its own that a subscription may reach it by."""

    type_url: str
    name: str
    version: str
    encoded: bytes
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a translation depends on."""

    index: Index
    captures: Captures
    mesh: Mesh


def compile_target(target: Target, inputs: Inputs) -> list[Resource]:
    """The resources of a target as things stand; none if it is gone."""
    return list(_COMPILERS[target.what](target.key, inputs))


def _pod(key: str, inputs: Inputs) -> Iterable[Resource]:
    pod = inputs.index.pod(key)
    message = workloads.pod_workload(pod, inputs.index, inputs.captures, inputs.mesh) if pod else None
    return [_workload(message)] if message else []


def _slice(key: str, inputs: Inputs) -> Iterable[Resource]:
    piece = inputs.index.get(Kind.ENDPOINT_SLICE, key)
    if isinstance(piece, EndpointSlice):
        service = inputs.index.service(piece.service)
        yield from map(_workload, workloads.slice_workloads(piece, service, inputs.mesh))


def _service(key: str, inputs: Inputs) -> Iterable[Resource]:
    service = inputs.index.service(key)
    if service is None:
        return
    message = services.service_message(service, inputs.index.namespace(service.namespace), inputs.mesh)
    if message:
        name = f"{message.namespace}/{message.hostname}"
        yield _encode(ADDRESS_TYPE, name, Address(service=message), services.aliases(message))


def _policy(key: str, inputs: Inputs) -> Iterable[Resource]:
    policy = inputs.index.get(Kind.AUTHORIZATION_POLICY, key)
    message = authorization(policy, inputs.mesh) if isinstance(policy, AuthorizationPolicy) else None
    return [_authorization(message)] if message else []


def _peer(key: str, inputs: Inputs) -> Iterable[Resource]:
    peer = inputs.index.get(Kind.PEER_AUTHENTICATION, key)
    message = peer_authorization(peer, inputs.index) if isinstance(peer, PeerAuthentication) else None
    return [_authorization(message)] if message else []


def _strict(_: str, inputs: Inputs) -> Iterable[Resource]:
    """Sent as soon as there is any PeerAuthentication, so that it is there before a workload refers to it."""
    if inputs.index.counts()[Kind.PEER_AUTHENTICATION.value]:
        yield _authorization(strict_authorization(inputs.mesh))


_COMPILERS: Mapping[What, Callable[[str, Inputs], Iterable[Resource]]] = {
    What.POD: _pod,
    What.SLICE: _slice,
    What.SERVICE: _service,
    What.POLICY: _policy,
    What.PEER: _peer,
    What.STRICT: _strict,
}


def _workload(message: Workload) -> Resource:
    # Who asks for a service gets its endpoints with it: the service's name is a tag of each.
    return _encode(
        ADDRESS_TYPE, message.uid, Address(workload=message), workloads.aliases(message), sorted(message.services)
    )


def _authorization(message: Authorization) -> Resource:
    return _encode(AUTHORIZATION_TYPE, f"{message.namespace}/{message.name}", message, ())


def _encode(
    type_url: str,
    name: str,
    message: Address | Authorization,
    aliases: Sequence[str],
    more_tags: Sequence[str] = (),
) -> Resource:
    value = message.SerializeToString(deterministic=True)
    version = hashlib.blake2b(value, digest_size=_VERSION_BYTES).hexdigest()
    encoded = encode_resource(type_url, name, version, value, aliases)
    return Resource(type_url, name, version, encoded, (*aliases, *more_tags))
