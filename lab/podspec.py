"""A Pod manifest as something that can be run: what the lab takes from its spec, checked.

`image` is not used: containers run the programs of this machine. A container without a command idles, as a place to
`lab exec` into. Fields that the lab does not act on are named once, so that nobody waits for their effect.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from lab.manifests import Manifest

DEFAULT_GRACE_S = 5.0
RESTART_POLICIES = ("Always", "OnFailure", "Never")

_VARIABLE = re.compile(r"\$(\$|\([A-Za-z_][-.A-Za-z0-9_]*\))")
# fmt: off
_POD_FIELDS = frozenset(
    (
        "containers", "initContainers", "nodeName", "hostNetwork", "restartPolicy", "serviceAccountName",
        "serviceAccount", "hostname", "subdomain", "terminationGracePeriodSeconds", "volumes",
    )
)
_CONTAINER_FIELDS = frozenset(
    (
        "name", "image", "imagePullPolicy", "command", "args", "env", "workingDir", "ports", "readinessProbe",
        "livenessProbe", "startupProbe", "securityContext", "volumeMounts",
    )
)
# fmt: on
_FIELD_REFS = {
    "metadata.name": "name",
    "metadata.namespace": "namespace",
    "metadata.uid": "uid",
    "spec.nodeName": "node",
    "spec.serviceAccountName": "service_account",
    "status.podIP": "ip",
    "status.podIPs": "ips",
    "status.hostIP": "host_ip",
}


class InvalidPod(ValueError):
    """The pod cannot be run; `faults` names every field that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Probe:
    """How the node asks a container whether it serves (exactly one of exec, http, tcp)."""

    exec: tuple[str, ...] | None = None
    http_port: int | str | None = None
    http_path: str = "/"
    http_headers: tuple[tuple[str, str], ...] = ()
    tcp_port: int | str | None = None
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    failures: int = 3
    successes: int = 1


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume at its place in a container's file system."""

    volume: str
    path: str


@dataclass(frozen=True, slots=True)
class Container:
    """One program of a pod."""

    name: str
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = "/"
    ports: tuple[tuple[str, int], ...] = ()
    readiness: Probe | None = None
    liveness: Probe | None = None
    startup: Probe | None = None
    uid: int | None = None
    gid: int | None = None
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What runs in one pod."""

    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    node: str = ""
    host_network: bool = False
    restart_policy: str = "Always"
    service_account: str = "default"
    hostname: str = ""
    subdomain: str = ""
    grace_s: float = DEFAULT_GRACE_S
    volumes: tuple[tuple[str, Manifest], ...] = ()
    unused: tuple[str, ...] = field(default=(), compare=False)


class _Reader:
    """Collects faults while fields are read, so that a user sees them all at once."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.unused: list[str] = []

    def get(self, source: Manifest, at: str, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = source.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, (int, str), (int, float))):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            self.faults.append(f"{at}.{name} is {type(value).__name__}, not {wanted}")
            return default
        return value

    def texts(self, source: Manifest, at: str, name: str) -> tuple[str, ...]:
        values = self.get(source, at, name, list, [])
        for i, value in enumerate(values):
            if not isinstance(value, str) or "\0" in value:
                self.faults.append(f"{at}.{name}[{i}] is not text (quote it)")
        return tuple(str(value) for value in values)

    def mappings(self, source: Manifest, at: str, name: str) -> list[Manifest]:
        values = self.get(source, at, name, list, [])
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                self.faults.append(f"{at}.{name}[{i}] is not a mapping")
        return [value for value in values if isinstance(value, dict)]

    def port(self, source: Manifest, at: str, name: str) -> int | str:
        value = self.get(source, at, name, (int, str), 0)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int) and not 0 < value < 65536:
            self.faults.append(f"{at}.{name} {value} is not a port")
        return value  # type: ignore[no-any-return]

    def seconds(self, source: Manifest, at: str, name: str, default: float, least: float) -> float:
        value = float(self.get(source, at, name, (int, float), default))
        if value < least:
            self.faults.append(f"{at}.{name} is below {least:g}")
        return max(value, least)


def parse_pod(manifest: Manifest, facts: dict[str, str]) -> PodSpec:
    """Read a Pod's spec; `facts` answers fieldRefs (see `_FIELD_REFS`). Raises InvalidPod."""
    reader = _Reader()
    spec = manifest.get("spec")
    if not isinstance(spec, dict):
        raise InvalidPod(["spec is missing"])
    reader.unused += [f"spec.{name}" for name in sorted(set(spec) - _POD_FIELDS)]
    containers = [_container(reader, c, f"spec.containers[{i}]", facts)
                  for i, c in enumerate(reader.mappings(spec, "spec", "containers"))]  # fmt: skip
    inits = [_container(reader, c, f"spec.initContainers[{i}]", facts)
             for i, c in enumerate(reader.mappings(spec, "spec", "initContainers"))]  # fmt: skip
    names = [container.name for container in (*containers, *inits)]
    if not containers:
        reader.faults.append("spec.containers is empty")
    if len(set(names)) != len(names):
        reader.faults.append("two containers have one name")
    policy = reader.get(spec, "spec", "restartPolicy", str, "Always")
    if policy not in RESTART_POLICIES:
        reader.faults.append(f"spec.restartPolicy {policy!r} is none of {', '.join(RESTART_POLICIES)}")
    account = reader.get(spec, "spec", "serviceAccountName", str, "") or reader.get(
        spec, "spec", "serviceAccount", str, "default"
    )
    volumes = _volumes(reader, spec, (*containers, *inits))
    grace = reader.seconds(spec, "spec", "terminationGracePeriodSeconds", DEFAULT_GRACE_S, 0)
    parsed = PodSpec(
        containers=tuple(containers),
        init_containers=tuple(inits),
        node=reader.get(spec, "spec", "nodeName", str, ""),
        host_network=reader.get(spec, "spec", "hostNetwork", bool, False),
        restart_policy=policy,
        service_account=account,
        hostname=reader.get(spec, "spec", "hostname", str, "") or manifest["metadata"]["name"][:63],
        subdomain=reader.get(spec, "spec", "subdomain", str, ""),
        grace_s=grace,
        volumes=volumes,
        unused=tuple(reader.unused),
    )
    if reader.faults:
        raise InvalidPod(reader.faults)
    return parsed


def _container(reader: _Reader, source: Manifest, at: str, facts: dict[str, str]) -> Container:
    reader.unused += [f"{at}.{name}" for name in sorted(set(source) - _CONTAINER_FIELDS)]
    name = reader.get(source, at, "name", str, "")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        reader.faults.append(f"{at}.name {name!r} has other characters than a-z, 0-9 and '-'")
    env = _environment(reader, source, at, facts)
    command = reader.texts(source, at, "command")
    arguments = reader.texts(source, at, "args")
    if arguments and not command:
        reader.faults.append(f"{at} has args without a command: images, and so their entry points, are not used here")
    security = reader.get(source, at, "securityContext", dict, {})
    ports = []
    for i, port in enumerate(reader.mappings(source, at, "ports")):
        number = reader.port(port, f"{at}.ports[{i}]", "containerPort")
        ports.append((reader.get(port, f"{at}.ports[{i}]", "name", str, ""), int(number or 0)))
    values = dict(env)
    return Container(
        name=name,
        argv=tuple(expand(text, values) for text in (*command, *arguments)),
        env=env,
        working_dir=reader.get(source, at, "workingDir", str, "/"),
        ports=tuple(ports),
        readiness=_probe(reader, source, at, "readinessProbe"),
        liveness=_probe(reader, source, at, "livenessProbe"),
        startup=_probe(reader, source, at, "startupProbe"),
        uid=reader.get(security, f"{at}.securityContext", "runAsUser", int, None),
        gid=reader.get(security, f"{at}.securityContext", "runAsGroup", int, None),
        mounts=_mounts(reader, source, at),
    )


def _environment(reader: _Reader, source: Manifest, at: str, facts: dict[str, str]) -> tuple[tuple[str, str], ...]:
    values: dict[str, str] = {}
    for i, entry in enumerate(reader.mappings(source, at, "env")):
        here = f"{at}.env[{i}]"
        name = reader.get(entry, here, "name", str, "")
        if not name or "=" in name or "\0" in name:
            reader.faults.append(f"{here}.name {name!r} cannot name a variable")
            continue
        reference = reader.get(entry, here, "valueFrom", dict, None)
        if reference is None:
            values[name] = expand(reader.get(entry, here, "value", str, ""), values)
            continue
        path = (reference.get("fieldRef") or {}).get("fieldPath", "")
        if path not in _FIELD_REFS:
            reader.faults.append(f"{here}.valueFrom: only fieldRef to {', '.join(_FIELD_REFS)} is known here")
        else:
            values[name] = facts.get(_FIELD_REFS[path], "")
    return tuple(values.items())


def _mounts(reader: _Reader, source: Manifest, at: str) -> tuple[Mount, ...]:
    mounts = []
    for i, entry in enumerate(reader.mappings(source, at, "volumeMounts")):
        here = f"{at}.volumeMounts[{i}]"
        path = reader.get(entry, here, "mountPath", str, "")
        if not path.startswith("/"):
            reader.faults.append(f"{here}.mountPath {path!r} does not begin with '/'")
        reader.unused += [f"{here}.{name}" for name in sorted(set(entry) - {"name", "mountPath", "readOnly"})]
        mounts.append(Mount(volume=reader.get(entry, here, "name", str, ""), path=path))
    return tuple(mounts)


def _volumes(reader: _Reader, spec: Manifest, containers: tuple[Container, ...]) -> tuple[tuple[str, Manifest], ...]:
    volumes: dict[str, Manifest] = {}
    for i, entry in enumerate(reader.mappings(spec, "spec", "volumes")):
        name = reader.get(entry, f"spec.volumes[{i}]", "name", str, "")
        kinds = set(entry) - {"name"}
        if kinds - {"emptyDir", "configMap", "hostPath"} or len(kinds) > 1:
            reader.faults.append(f"spec.volumes[{i}]: only emptyDir, configMap and hostPath are known here")
        volumes[name] = entry
    for container in containers:
        for mount in container.mounts:
            if mount.volume not in volumes:
                reader.faults.append(
                    f"container {container.name} mounts volume {mount.volume!r}, which spec.volumes lacks"
                )
    return tuple(volumes.items())


def _probe(reader: _Reader, container: Manifest, where: str, name: str) -> Probe | None:
    source = reader.get(container, where, name, dict, None)
    if source is None:
        return None
    at = f"{where}.{name}"
    http = reader.get(source, at, "httpGet", dict, None)
    tcp = reader.get(source, at, "tcpSocket", dict, None)
    command = reader.get(source, at, "exec", dict, None)
    if sum(way is not None for way in (http, tcp, command)) != 1:
        reader.faults.append(f"{at} needs exactly one of exec, httpGet, tcpSocket")
    headers = reader.mappings(http or {}, f"{at}.httpGet", "httpHeaders")
    if http is not None and str(http.get("scheme", "HTTP")).upper() != "HTTP":
        reader.faults.append(f"{at}.httpGet.scheme: only HTTP is known here")
    return Probe(
        exec=reader.texts(command, f"{at}.exec", "command") if command is not None else None,
        http_port=reader.port(http, f"{at}.httpGet", "port") if http is not None else None,
        http_path=reader.get(http or {}, f"{at}.httpGet", "path", str, "/"),
        http_headers=tuple((str(h.get("name", "")), str(h.get("value", ""))) for h in headers),
        tcp_port=reader.port(tcp, f"{at}.tcpSocket", "port") if tcp is not None else None,
        initial_delay_s=reader.seconds(source, at, "initialDelaySeconds", 0, 0),
        period_s=reader.seconds(source, at, "periodSeconds", 10, 0.1),
        timeout_s=reader.seconds(source, at, "timeoutSeconds", 1, 0.1),
        failures=int(reader.seconds(source, at, "failureThreshold", 3, 1)),
        successes=int(reader.seconds(source, at, "successThreshold", 1, 1)),
    )


def expand(text: str, values: dict[str, str]) -> str:
    """Replace $(NAME) by its value as Kubernetes does: unknown names stay, $$ is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        token = match.group(1)
        return "$" if token == "$" else values.get(token[1:-1], match.group(0))

    return _VARIABLE.sub(replace, text)


def port_number(port: int | str | None, container: Container) -> int | None:
    """The number of a port that a probe or service names, or None when this container has no such port."""
    if isinstance(port, int):
        return port
    return dict(container.ports).get(port or "")
