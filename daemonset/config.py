"""Every setting of a node agent, with meaning, unit and the reason for its default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh import setting_groups, settings
from mesh.settings import setting

SOURCES = ("runtime", "kubernetes")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands."""

    node: str = setting(meaning="name of the node, as Kubernetes knows it")
    key: str = setting("", "name of the node's pins and runtime directory; empty: the node's name")
    runtime: Path = setting(meaning="runtime directory of the node: ztunnel.sock, credentials, status, pods of a lab")
    pod_source: str = setting("runtime", "where pods come from: runtime (files of that directory) or kubernetes")


@dataclass(frozen=True, slots=True)
class Control(setting_groups.Control):
    """The controller, which is told what is captured."""

    cluster_id: str = setting("Kubernetes", "cluster of this node, sent along with the token")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A node of Kubernetes: where its API server and its CNI configuration are. For --pod-source kubernetes."""

    kubeconfig: Path | None = setting(None, "how to reach the API server; unset: the pod's own service account")
    cni_conf_dir: Path | None = setting(
        None, "the node's CNI configuration, where the plugin is entered last; unset: no plugin, pods start unguarded"
    )
    cni_bin_dir: Path | None = setting(None, "the node's CNI plugins; unset: /opt/cni/bin")
    cni_plugin: Path = setting(Path("/opt/culvert/bin/culvert-cni"), "the plugin, copied from here")
    cni_exclude: tuple[str, ...] = setting(
        ("kube-system", "culvert-system"), "namespaces whose pods start also while this agent is away"
    )


@dataclass(frozen=True, slots=True)
class Enrolment:
    """How pods are enrolled and let go."""

    istio_labels: bool = setting(False, "honour istio.io/dataplane-mode beside culvert.io/mesh")
    settle_s: float = setting(
        2.0, "after the controller has withdrawn a pod, 15008 stays open so long: peers apply the change"
    )
    fallback_s: float = setting(
        5.0,
        "when ztunnel has been away so long, no pod takes plain connections past it any more: longer than a restart, "
        "short beside the time in which somebody relies on a new policy",
    )
    retry_first_s: float = setting(0.2, "pause after a failed step; doubles up to retry-max-s")
    retry_max_s: float = setting(30.0, "longest pause between two tries")
    handover_s: float = setting(10.0, "how long to wait for an agent that is being replaced to end")
    standby: bool = setting(False, "be ready while another agent works here and wait for its end, however long")
    watch_pins_s: float = setting(5.0, "how often the pins are compared with what is open")
    guard: str = setting("on", "on or off: drop at the source TCP connections that a captured pod opens past ztunnel")
    load_timeout_s: float = setting(120.0, "deadline of the process that compiles and attaches the programs")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where this process is asked about itself, in the node's own netns."""

    status_host: str = setting("127.0.0.1", "address of the status port; nothing there can be changed")
    status_port: int = setting(15022, "status: /pods, /metrics, /healthz/ready; 0: any free port")
    ready_file: Path | None = setting(None, "file that is there, and fresh, while this process is ready or stands by")
    alive_file: Path | None = setting(None, "file that is fresh while this process is not stuck")


@dataclass(frozen=True, slots=True)
class Config:
    """Culvert's node agent: enrols this node's pods and owns the node's eBPF programs and maps."""

    place: Place = field(default_factory=Place)
    control: Control = field(default_factory=Control)
    cluster: Cluster = field(default_factory=Cluster)
    enrolment: Enrolment = field(default_factory=Enrolment)
    ports: Ports = field(default_factory=Ports)
    logs: setting_groups.Logs = field(default_factory=setting_groups.Logs)

    @property
    def key(self) -> str:
        """Name of this node's pins and runtime directory."""
        return self.place.key or self.place.node

    @property
    def zds_socket(self) -> Path:
        """Where ztunnel connects."""
        return self.place.runtime / "ztunnel.sock"

    @property
    def cni_socket(self) -> Path:
        """Where the CNI plugin asks."""
        return self.place.runtime / "cni.sock"

    @classmethod
    def load(cls, argv: Sequence[str], env: Mapping[str, str]) -> "Config":
        """Read the settings; raises mesh.settings.SettingsFault with every fault at once."""
        return settings.load(cls, "daemonset", argv, env, _check)


def _check(config: Config) -> list[str]:
    enrolment = config.enrolment
    return [
        *config.control.faults(),
        *config.logs.faults(),
        ""
        if 0 < enrolment.retry_first_s <= enrolment.retry_max_s
        else "--retry-first-s: takes 0 < it <= --retry-max-s",
        ""
        if config.place.pod_source in SOURCES
        else f"--pod-source: {config.place.pod_source!r} is neither {' nor '.join(SOURCES)}",
        "" if enrolment.guard in ("on", "off") else f"--guard: {enrolment.guard!r} is neither on nor off",
        "" if config.ports.status_port < 65536 else "--status-port: not a port",
        "" if len(str(config.zds_socket)) < 108 else f"--runtime: {config.zds_socket} is too long for a unix socket",
    ]
