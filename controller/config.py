"""Settings of the controller."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from mesh import setting_groups
from mesh.identity import DEFAULT_TRUST_DOMAIN, Identity, InvalidIdentity
from mesh.settings import load, setting

SOURCES = ("files", "kubernetes")
AUTH = ("certificates", "tokens")
AUTHORITIES = ("local", "kubernetes", "cert-manager")


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Where objects come from."""

    source: str = setting("files", "where cluster objects come from: files or kubernetes")
    manifests: Path | None = setting(None, "directory of Kubernetes manifests, for the source files")
    kubeconfig: Path | None = setting(
        None, "how to reach the API server, for the source kubernetes (default: as the pod's own service account)"
    )


@dataclass(frozen=True, slots=True)
class ElectionConfig:
    """Which of several controllers writes to the API server."""

    elect: bool = setting(False, "elect a leader by a Lease: needed with more than one controller")
    lease_namespace: str = setting("culvert-system", "namespace of the Lease")


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """What the mesh is called."""

    cluster_id: str = setting("Kubernetes", "name of this cluster in workload names")
    cluster_domain: str = setting("cluster.local", "DNS suffix of services")
    trust_domain: str = setting(DEFAULT_TRUST_DOMAIN, "SPIFFE trust domain")
    root_namespace: str = setting("culvert-system", "namespace whose policies apply to the whole mesh")
    istio_labels: bool = setting(False, "honour Istio's labels and annotations on pods")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where the controller listens."""

    listen: str = setting("0.0.0.0:15012", "address:port of xDS, CA and capture reports (TLS)")
    dns_names: tuple[str, ...] = setting(
        ("culvert-controller.culvert-system.svc", "localhost"), "DNS names in the serving certificate"
    )
    addresses: tuple[str, ...] = setting(("127.0.0.1", "::1"), "IP addresses in the serving certificate")
    metrics_listen: str = setting(
        "127.0.0.1:15014", "address:port of /metrics and /healthz/ready; no secrets there, but names of everything"
    )
    stream_life_s: float = setting(
        1800.0, "a node's stream ends after this and is opened anew, so that it proves again who it is; 0: never"
    )
    debug_listen: str = setting("127.0.0.1:15016", "loopback address:port of /debug")


@dataclass(frozen=True, slots=True)
class CallersConfig:
    """Who may call, and how callers prove who they are."""

    auth: str = setting("certificates", "what callers show: certificates (of nodes) or tokens (of service accounts)")
    token_audiences: tuple[str, ...] = setting(
        ("culvert-ca",), "audiences of which a token must have one; add istio-ca for Istio's own ztunnel"
    )
    node_accounts: tuple[str, ...] = setting(
        ("culvert-system/culvert-node",), "namespace/name of service accounts that act for the pods of their node"
    )
    reader_accounts: tuple[str, ...] = setting(
        (), "namespace/name of service accounts that may have configuration, but no identity besides their own"
    )


@dataclass(frozen=True, slots=True)
class AuthorityConfig:
    """How certificates are made."""

    ca: str = setting("local", "what signs: local (files), kubernetes (Secret culvert-ca or cacerts) or cert-manager")
    ca_dir: Path | None = setting(None, "directory with an issuer in the layout of Istio's cacerts (default: own root)")
    ca_namespace: str = setting("culvert-system", "namespace of the CA's Secrets, ConfigMap and CertificateRequests")
    root_distribution_s: float = setting(
        86_400.0, "how long everybody gets to learn a new root before it signs; a day: also who learns by renewing"
    )
    root_retirement_s: float = setting(
        0.0, "how long a root that signs no more stays trusted; 0: --longest-leaf-ttl-s, the life of its last leaf"
    )
    issuer_name: str = setting("", "cert-manager: name of the issuer")
    issuer_kind: str = setting("ClusterIssuer", "cert-manager: kind of the issuer")
    issuer_group: str = setting("cert-manager.io", "cert-manager: API group of the issuer")
    leaf_ttl_s: int = setting(86_400, "lifetime of workload certificates that ask for none, seconds")
    longest_leaf_ttl_s: int = setting(90 * 86_400, "longest lifetime of any leaf, seconds")


@dataclass(frozen=True, slots=True)
class Config:
    """Culvert's controller: tells nodes what is in the mesh, and signs the certificates of its workloads."""

    state: Path = setting(meaning="directory of what the controller keeps: root, status, captures")
    drain_s: float = setting(2.0, "how long calls may end after SIGTERM, seconds")
    source: SourceConfig = field(default_factory=SourceConfig)
    election: ElectionConfig = field(default_factory=ElectionConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    callers: CallersConfig = field(default_factory=CallersConfig)
    authority: AuthorityConfig = field(default_factory=AuthorityConfig)
    logs: setting_groups.Logs = field(default_factory=setting_groups.Logs)

    @classmethod
    def load(cls, argv: Sequence[str], env: Mapping[str, str]) -> "Config":
        """Settings from everywhere; raises SettingsFault with every fault, or HelpAsked."""
        return load(cls, "controller serve", argv, env, _faults)


@dataclass(frozen=True, slots=True)
class CredentialConfig:
    """`controller credential`: a node's certificate, issued offline."""

    state: Path = setting(meaning="the controller's state directory")
    node: str = setting(meaning="name of the node")
    out: Path = setting(meaning="directory for cert.pem, key.pem and roots.pem")
    trust_domain: str = setting(DEFAULT_TRUST_DOMAIN, "SPIFFE trust domain")
    ca_dir: Path | None = setting(None, "directory with an issuer, if the controller has one")
    ttl_s: int = setting(90 * 86_400, "lifetime of the certificate, seconds")

    @classmethod
    def load(cls, argv: Sequence[str], env: Mapping[str, str]) -> "CredentialConfig":
        """Settings from everywhere; raises SettingsFault with every fault, or HelpAsked."""
        return load(cls, "controller credential", argv, env, _credential_faults)


def _credential_faults(config: CredentialConfig) -> list[str]:
    faults = list(_trust_domain_faults(config.trust_domain))
    if "/" in config.node or not config.node.isprintable() or not config.node.isascii():
        faults.append(f"--node: {config.node!r} is not a node name")
    if config.ttl_s == 0:
        faults.append("--ttl-s: 0 is no lifetime")
    return faults


def split_address(text: str) -> tuple[str, int]:
    """`1.2.3.4:80` or `[::]:80`; raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    ip_address(host)
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not address:port")
    return host, int(port)


def _faults(config: Config) -> list[str]:
    faults = [*_source_faults(config.source), *_trust_domain_faults(config.mesh.trust_domain)]
    for name in ("listen", "metrics_listen", "debug_listen"):
        text = getattr(config.serve, name)
        flag = f"--{name.replace('_', '-')}"
        try:
            host, _ = split_address(text)
            if name == "debug_listen" and not ip_address(host).is_loopback:
                faults.append(f"{flag}: {host} is not a loopback address")
        except ValueError:
            faults.append(f"{flag}: {text!r} is not address:port")
    for address in config.serve.addresses:
        try:
            ip_address(address)
        except ValueError:
            faults.append(f"--addresses: {address!r} is not an IP address")
    if not config.mesh.root_namespace:
        faults.append("--root-namespace: is empty")
    if config.election.elect and config.source.source != "kubernetes":
        faults.append("--elect: needs --source kubernetes, where the Lease is")
    if not config.election.lease_namespace:
        faults.append("--lease-namespace: is empty")
    faults += [*config.logs.faults(), *_callers_faults(config.callers), *_authority_faults(config.authority)]
    return faults


def _callers_faults(callers: CallersConfig) -> Iterator[str]:
    if callers.auth not in AUTH:
        yield f"--auth: {callers.auth!r} is none of {', '.join(AUTH)}"
    if not callers.token_audiences:
        yield "--token-audiences: is empty; a token for anybody would do"
    for flag, accounts in (("node", callers.node_accounts), ("reader", callers.reader_accounts)):
        for account in accounts:
            if len(account.split("/")) != 2 or not all(account.split("/")):
                yield f"--{flag}-accounts: {account!r} is not namespace/name"


def _authority_faults(authority: AuthorityConfig) -> Iterator[str]:
    if authority.ca not in AUTHORITIES:
        yield f"--ca: {authority.ca!r} is none of {', '.join(AUTHORITIES)}"
    if authority.ca != "local" and authority.ca_dir is not None:
        yield f"--ca-dir: is for --ca local; with {authority.ca} an operator's issuer comes from the cluster"
    if authority.ca == "cert-manager" and not authority.issuer_name:
        yield "--issuer-name: missing (--ca cert-manager asks this issuer)"
    if not authority.ca_namespace:
        yield "--ca-namespace: is empty"
    if not 0 < authority.leaf_ttl_s <= authority.longest_leaf_ttl_s:
        yield "--leaf-ttl-s: must be above 0 and not above --longest-leaf-ttl-s"
    if 0 < authority.root_retirement_s < authority.leaf_ttl_s:
        yield "--root-retirement-s: leaves of a retired root live for --leaf-ttl-s; it must not be shorter"


def _source_faults(source: SourceConfig) -> list[str]:
    if source.source not in SOURCES:
        return [f"--source: {source.source!r} is none of {', '.join(SOURCES)}"]
    if source.source == "kubernetes":
        is_there = source.kubeconfig is None or source.kubeconfig.is_file()
        return [] if is_there else [f"--kubeconfig: {source.kubeconfig} is not a file"]
    if source.manifests is None:
        return ["--manifests: missing (the source files reads this directory)"]
    return [] if source.manifests.is_dir() else [f"--manifests: {source.manifests} is not a directory"]


def _trust_domain_faults(name: str) -> list[str]:
    try:
        Identity(name, "namespace", "account")
    except InvalidIdentity as error:
        return [f"--trust-domain: {error}"]
    return []
