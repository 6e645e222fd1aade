"""Every setting of a ztunnel process, with meaning, unit and the reason for its default."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from mesh import setting_groups, settings
from mesh.identity import DEFAULT_TRUST_DOMAIN
from mesh.settings import setting

_MAX_PORT = 65_535
_MAX_UINT32 = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands."""

    node: str = setting(meaning="name of the node, as Kubernetes knows it")
    key: str = setting("", "name of the node's pins and runtime directory; empty: the node's name")
    runtime: Path = setting(meaning="runtime directory of the node, where the agent's socket and credentials are")
    cluster_id: str = setting("Kubernetes", "cluster of this node, part of workload uids")
    network: str = setting("", "network of this node; endpoints of another one are not reachable directly")
    trust_domain: str = setting(DEFAULT_TRUST_DOMAIN, "trust domain of the identities of this cluster")
    pod_name: str = setting("ztunnel", "name of the pod this process runs in, for the control plane's node id")
    pod_namespace: str = setting("culvert-system", "its namespace")
    instance_ip: str = setting("127.0.0.1", "its address")


@dataclass(frozen=True, slots=True)
class Control(setting_groups.Control):
    """The controller, for configuration and certificates."""

    certificate_ttl_s: int = setting(86400, "lifetime asked for workload certificates, seconds")
    start_timeout_s: float = setting(0.0, "give up when not ready after so many seconds; 0: wait for ever")


@dataclass(frozen=True, slots=True)
class DataPath:
    """Bounds and deadlines of the engine."""

    workers: int = setting(2, "worker threads; one tunnel lives on one of them")
    connect_timeout_ms: int = setting(10_000, "TCP connect to an application or a peer; as ztunnel of Istio")
    handshake_timeout_ms: int = setting(10_000, "TLS handshake from first byte to last")
    request_timeout_ms: int = setting(20_000, "CONNECT sent to answer; longer than the peer's own connect timeout")
    source_wait_ms: int = setting(5_000, "how long a connection waits for its pod or certificate to be known")
    pool_idle_ms: int = setting(300_000, "an unused tunnel is closed after this")
    ping_interval_ms: int = setting(10_000, "keepalive PING on a tunnel that is silent for so long")
    ping_timeout_ms: int = setting(20_000, "a tunnel whose PING is not answered in this time is lost")
    max_connections_per_pod: int = setting(8_192, "application connections of one pod, each direction")
    max_handshakes: int = setting(256, "TLS handshakes in flight on one worker")
    max_streams_per_tunnel: int = setting(100, "streams opened on one tunnel before a second one is dialled")
    stream_buffer_bytes: int = setting(262_144, "read ahead per stream and direction")
    tunnel_buffer_bytes: int = setting(67_108_864, "received and not yet taken by applications, per tunnel")
    worker_buffer_bytes: int = setting(
        268_435_456, "held by one worker; beyond it every stream gets the least that keeps it moving"
    )
    certificate_skew_s: int = setting(
        60,
        "how far clocks may differ: a peer's certificate may begin so much later, and a tunnel still takes new"
        " connections so long after a certificate of its ends has expired",
    )
    expired_drain_s: int = setting(
        86_400, "and how long the connections on it then have to end before they are cut: a day as peers' certificates"
    )
    keepalive_s: int = setting(180, "TCP keepalive, idle time and interval")
    spin_us: int = setting(100, "a worker may poll so long before it sleeps, 1000 at most, where that pays; 0: never")
    drain_deadline_s: float = setting(5.0, "after SIGTERM, connections still open at this time are cut")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where this process is asked about itself, in the node's own netns."""

    admin_host: str = setting("127.0.0.1", "admin address; anybody who reaches it can change the log level")
    admin_port: int = setting(15000, "admin: /config_dump, /logging, /explain, /flows")
    metrics_port: int = setting(15020, "Prometheus metrics")
    ready_port: int = setting(15021, "readiness: /healthz/ready")
    ready_file: Path | None = setting(None, "file that is there, and fresh, while this process is ready or stands by")
    alive_file: Path | None = setting(None, "file that is fresh while this process is not stuck")


@dataclass(frozen=True, slots=True)
class Logs(setting_groups.Logs):
    """The process log, on standard error, and the access log, on standard output; both in one format."""

    access_log: bool = setting(True, "one line per connection, at its end")


@dataclass(frozen=True, slots=True)
class Config:
    """Culvert's node proxy: carries the connections of this node's enrolled pods over mutual TLS."""

    place: Place = field(default_factory=Place)
    control: Control = field(default_factory=Control)
    data_path: DataPath = field(default_factory=DataPath)
    ports: Ports = field(default_factory=Ports)
    logs: Logs = field(default_factory=Logs)

    @property
    def key(self) -> str:
        """Name of this node's pins and runtime directory."""
        return self.place.key or self.place.node

    @classmethod
    def load(cls, argv: Sequence[str], env: Mapping[str, str]) -> "Config":
        """Read the settings; raises mesh.settings.SettingsFault with every fault at once."""
        return settings.load(cls, "ztunnel", argv, env, _check)


def _check(config: Config) -> Iterator[str]:
    yield from config.control.faults()
    yield from config.logs.faults()
    for name in ("admin_port", "metrics_port", "ready_port"):
        if getattr(config.ports, name) > _MAX_PORT:
            yield f"{_flag(name)}: not a port"
    yield from _check_bounds(config.data_path)


def _check_bounds(bounds: DataPath) -> Iterator[str]:
    """The engine keeps them in 32 bits; a bound of 0 would refuse everything."""
    if not 1 <= bounds.workers <= 64:
        yield "--workers: takes 1 to 64"
    for entry in fields(bounds):
        value = getattr(bounds, entry.name)
        lowest = 1 if entry.name.startswith("max_") or entry.name.endswith("_bytes") else 0
        most = _MAX_UINT32 // 1000 if entry.name.endswith("_s") else _MAX_UINT32
        if entry.name != "workers" and not lowest <= value <= most:
            yield f"{_flag(entry.name)}: takes {lowest} to {most}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
