"""`/config_dump` in the form that `istioctl ztunnel-config` reads, keys and all.

Keys are those of Istio's ztunnel where it has them; ours stand beside them. No private key is ever part of it.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import settings
from mesh.addresses import from_bytes16
from mesh.identity import Identity
from ztunnel.config import Config
from ztunnel.connections import Names
from ztunnel.events import ConnectionEvent, Path
from ztunnel.identity.svid import Svid
from ztunnel.inpod.pods import Pod
from ztunnel.model import Gateway, Match, Policy, Prefix, Service, StringMatch, Workload
from ztunnel.state import Store

VERSION = "0.1.0"


def dump(
    config: Config,
    store: Store,
    certificates: Mapping[Identity, tuple[Svid | None, str]],
    pods: Iterable[Pod],
    connections: Iterable[ConnectionEvent],
    names: Names,
) -> dict[str, Any]:
    """Everything this process goes by, as plain values."""
    return {
        "version": {"version": VERSION, "name": "culvert"},
        "config": settings.dump(config),
        "workloads": [_workload(workload) for _, workload in store.workloads()],
        "services": [_service(number, service, store) for number, service in store.services()],
        "policies": [_policy(policy) for _, policy in store.policies()],
        "policiesNotUnderstood": [_not_understood(name, store) for name in sorted(store.policy_faults)],
        "certificates": [_certificate(identity, *held) for identity, held in certificates.items()],
        "workloadState": _pods(pods, list(connections), names),
        "staticConfig": {},
        "stagedServices": {},
    }


def _gateway(gateway: Gateway | None) -> dict[str, Any] | None:
    if gateway is None:
        return None
    destination = gateway.destination
    text = destination if isinstance(destination, str) else f"{destination.network}/{from_bytes16(destination.ip)}"
    return {"destination": text, "hboneMtlsPort": gateway.port}


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "uid": workload.uid,
        "workloadIps": [str(from_bytes16(ip)) for ip in workload.addresses],
        "waypoint": _gateway(workload.waypoint),
        "networkGateway": _gateway(workload.network_gateway),
        "protocol": "HBONE" if workload.hbone else "TCP",
        "name": workload.name,
        "namespace": workload.namespace,
        "serviceAccount": workload.identity.service_account,
        "trustDomain": workload.identity.trust_domain,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster_id,
        "locality": workload.locality._asdict(),
        "node": workload.node,
        "network": workload.network,
        "status": "Healthy" if workload.healthy else "Unhealthy",
        "hostname": workload.hostname,
        "capacity": workload.capacity,
        "authorizationPolicies": list(workload.policies),
    }


def _service(number: int, service: Service, store: Store) -> dict[str, Any]:
    endpoints: dict[str, Any] = {}
    for port, group in store.endpoints(number).items():
        for endpoint in group:
            workload = store.workload(endpoint.workload)
            if workload is None or not port:
                continue
            empty = {"workloadUid": workload.uid, "service": service.name, "port": {}}
            entry = endpoints.setdefault(workload.uid, empty)
            entry["port"][str(port)] = endpoint.target_port
    return {
        "name": service.hostname.partition(".")[0],
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [f"{vip.network}/{from_bytes16(vip.ip)}" for vip in service.vips if vip.length == 128],
        "cidrVips": [
            {"cidr": _prefix(Prefix(vip.ip, vip.length)), "network": vip.network}
            for vip in service.vips
            if vip.length != 128
        ],
        "ports": {str(port): target for port, target in service.ports.items()},
        "endpoints": endpoints,
        "subjectAltNames": list(service.subject_names),
        "loadBalancer": {
            "mode": service.mode.name.capitalize(),
            "routingPreferences": [scope.name.capitalize() for scope in service.preferences],
            "healthPolicy": "AllowAll" if service.allow_unhealthy else "OnlyHealthy",
        },
        "waypoint": _gateway(service.waypoint),
        "ipFamilies": service.families.name,
        "canonical": service.canonical,
        "visibility": "Namespace" if service.namespace_only else "Public",
    }


def _prefix(prefix: Prefix) -> str:
    address = from_bytes16(prefix.ip)
    return f"{address}/{prefix.length - 96 if address.version == 4 else prefix.length}"


def _string(match: StringMatch) -> dict[str, Any]:
    return {match.how.name.capitalize(): match.value or []}


def _match(match: Match) -> dict[str, Any]:
    found: dict[str, Any] = {
        "namespaces": [_string(value) for value in match.namespaces],
        "notNamespaces": [_string(value) for value in match.not_namespaces],
        "principals": [_string(value) for value in match.principals],
        "notPrincipals": [_string(value) for value in match.not_principals],
        "sourceIps": [_prefix(value) for value in match.source_ips],
        "notSourceIps": [_prefix(value) for value in match.not_source_ips],
        "destinationIps": [_prefix(value) for value in match.destination_ips],
        "notDestinationIps": [_prefix(value) for value in match.not_destination_ips],
        "destinationPorts": list(match.destination_ports),
        "notDestinationPorts": list(match.not_destination_ports),
        "serviceAccounts": ["/".join(value) for value in match.service_accounts],
        "notServiceAccounts": ["/".join(value) for value in match.not_service_accounts],
    }
    return {key: value for key, value in found.items() if value}


def _not_understood(name: str, store: Store) -> dict[str, Any]:
    policy = store.policy(store.policy_number(name))
    kept = "nothing" if policy is None else "deny all" if policy.fault else "the version before"
    return {"name": name, "reason": store.policy_faults[name], "inForce": kept}


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.local_name,
        "namespace": policy.namespace,
        "scope": {"GLOBAL": "Global", "NAMESPACE": "Namespace"}.get(policy.scope.name, "WorkloadSelector"),
        "action": "Deny" if policy.deny else "Allow",
        "dryRun": policy.dry_run,
        "fault": policy.fault,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in policy.rules],
    }


def _certificate(identity: Identity, svid: Svid | None, error: str) -> dict[str, Any]:
    if svid is None:
        return {"identity": str(identity), "state": f"Unavailable: {error}" if error else "Initializing"}
    return {
        "identity": str(identity),
        "state": "Available",
        "certChain": _chain(svid.chain_pem),
        "rootCerts": _chain(svid.roots_pem),
        "lastError": error,
    }


def _chain(pem: str) -> list[dict[str, Any]]:
    return [
        {
            "pem": base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode(),
            "serialNumber": str(certificate.serial_number),
            "validFrom": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "expirationTime": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for certificate in x509.load_pem_x509_certificates(pem.encode())
    ]


def _pods(pods: Iterable[Pod], connections: list[ConnectionEvent], names: Names) -> dict[str, Any]:
    found: dict[str, Any] = {}
    by_number: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for pod in pods:
        open_ones = by_number[pod.number] = {"inbound": [], "outbound": []}
        found[pod.info.uid] = {
            "state": "Up",
            "info": {
                "name": pod.info.name,
                "namespace": pod.info.namespace,
                "serviceAccount": pod.info.service_account,
            },
            "connections": open_ones,
        }
    for event in connections:
        if event.pod in by_number:
            edge = names.edge(event)
            by_number[event.pod]["inbound" if edge.inbound else "outbound"].append(
                {
                    "src": str(event.downstream),
                    "originalDst": str(event.original or event.upstream),
                    "actualDst": str(event.hbone or event.upstream),
                    "protocol": "HBONE" if event.path == Path.HBONE else "TCP",
                    "peerIdentity": event.identity or None,
                    "bytesSent": event.bytes_sent,
                    "bytesReceived": event.bytes_received,
                }
            )
    return found
