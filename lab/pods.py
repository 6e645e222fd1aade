"""The life of one pod: namespaces and link, a first process that holds them, init containers, containers, the end.

Everything a pod's processes start stays in its process namespace, so that the end of the first process is the end of
all of them, also when the supervisor is killed.
"""

import asyncio
import os
import pwd
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import dns, namespaces, wire
from lab.containers import ContainerRun
from lab.manifests import Manifest
from lab.nodes import Node
from lab.paths import LabPaths
from lab.podspec import Container, PodSpec
from lab.process import BASE_ENVIRONMENT, Child, Launch, spawn, start_time
from lab.volumes import bind_sources
from lab.wire import PodPlace

SANDBOX_DEADLINE_S = 10.0


class PodFailed(Exception):
    """The pod could not be set up."""


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Which pod, where, and the addresses it has."""

    namespace: str
    name: str
    uid: str
    node: Node
    ips: tuple[str, ...]
    link: str


def host_status(identity: PodIdentity) -> dict[str, Any]:
    """The part of Pod.status that follows from where a pod was placed."""
    node = identity.node.plan
    return {
        "podIP": identity.ips[0],
        "podIPs": [{"ip": ip} for ip in identity.ips],
        "hostIP": str(node.ipv4),
        "hostIPs": [{"ip": str(node.ipv4)}, {"ip": str(node.ipv6)}],
    }


class PodRun:
    """Runs one pod. `changed` is called whenever `status()` would read differently."""

    is_away = False

    def __init__(
        self,
        paths: LabPaths,
        identity: PodIdentity,
        spec: PodSpec,
        config_map: Callable[[str], Manifest | None],
        changed: Callable[[], None],
    ) -> None:
        self.identity = identity
        self.spec = spec
        self._paths = paths
        self._config_map = config_map
        self._changed = changed
        self.grace_s = spec.grace_s
        self.netns = identity.node.netns_name if spec.host_network else ""
        self._sandbox: Child | None = None
        self._pid_namespace: int | None = None
        self._message = ""
        self._initialised = False
        self._inits = [self._container_run(c) for c in spec.init_containers]
        self._containers = [self._container_run(c) for c in spec.containers]

    @property
    def netns_path(self) -> Path:
        """The network namespace in which it lives."""
        return namespaces.path_of(self.netns)

    @property
    def sandbox_pid(self) -> int | None:
        """Its first process, on the host."""
        return self._sandbox.pid if self._sandbox is not None and self._sandbox.running else None

    async def set_up(self, config_maps_at: Path) -> None:
        """Namespaces, wiring and first process; raises PodFailed. Programs run only after `run`."""
        try:
            if not self.spec.host_network:
                await asyncio.to_thread(self._wire)
            await self._start_sandbox(config_maps_at)
        except (OSError, PodFailed) as error:
            self.fail(str(error))
            raise PodFailed(str(error)) from error

    def fail(self, message: str) -> None:
        """Show why this pod is not running."""
        self._message = message
        self._changed()

    def wait_for(self, what: str) -> None:
        """Show what must happen before its programs start."""
        if self._message != what:
            self.fail(what)

    async def run(self) -> None:
        """Init containers, then containers, until the restart policy says that all are over."""
        for init in self._inits:
            if not await init.run_to_completion(self.spec.restart_policy):
                self.fail(f"init container {init.state.name}: {init.state.message}")
                return
        self._initialised = True
        self._message = ""
        self._changed()
        async with asyncio.TaskGroup() as group:
            for container in self._containers:
                group.create_task(container.run(self.spec.restart_policy), name=f"container {container.state.name}")

    async def tear_down(self) -> None:
        """End its programs as a kubelet does within `grace_s`, then everything else; `run` must have been cancelled."""
        runs = [*self._inits, *self._containers]
        for run in runs:
            run.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.grace_s):
                await asyncio.gather(*(run.gone() for run in runs))
        if self._sandbox is not None:
            self._sandbox.signal(signal.SIGKILL)
            await self._sandbox.wait()
            await asyncio.gather(*(run.gone() for run in runs))
        if self._pid_namespace is not None:
            os.close(self._pid_namespace)
            self._pid_namespace = None
        if self.netns and not self.spec.host_network:
            await asyncio.to_thread(self._unwire)

    def status(self) -> dict[str, Any]:
        """Pod.status as a kubelet would report it (without times)."""
        ready = self._initialised and all(run.state.ready for run in self._containers)
        conditions = [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": _truth(self._initialised)},
            {"type": "ContainersReady", "status": _truth(ready)},
            {"type": "Ready", "status": _truth(ready)},
        ]
        return {
            "phase": self._phase(),
            "message": self._message,
            **host_status(self.identity),
            "conditions": conditions,
            "initContainerStatuses": [run.state.status() for run in self._inits],
            "containerStatuses": [run.state.status() for run in self._containers],
        }

    def why_not_ready(self) -> str:
        """One sentence for people."""
        if self._message:
            return self._message
        if not self._initialised:
            return "is being started"
        for run in self._containers:
            if not run.state.ready:
                reason = run.state.probe_failure or run.state.message or "is not ready yet"
                return f"container {run.state.name}: {reason}"
        return "is ready"

    def entry(self) -> dict[str, Any]:
        """What `lab exec` needs to enter it."""
        pid = self.sandbox_pid
        return {
            "pid": pid,
            "start_time": start_time(pid) if pid is not None else None,
            "netns": str(self.netns_path),
            "containers": {
                c.name: {"env": self._environment(c), "cwd": c.working_dir, "uid": c.uid, "gid": c.gid}
                for c in (*self.spec.containers, *self.spec.init_containers)
            },
        }

    def _phase(self) -> str:
        states = [run.state for run in self._containers]
        if self._inits and not self._initialised and any(r.state.done and r.state.exit_status for r in self._inits):
            return "Failed" if self.spec.restart_policy == "Never" else "Pending"
        if not self._initialised:
            return "Pending"
        if all(state.done for state in states):
            return "Failed" if any(state.exit_status for state in states) else "Succeeded"
        return "Running"

    def _wire(self) -> None:
        node, identity = self.identity.node, self.identity
        ipv4, ipv6 = node.plan.pod(node.number_of(identity.ips[0]))
        place = PodPlace(identity.link, namespaces.create(self.netns), ipv4, ipv6, node.mtu)
        wire.make_pod(node.netns, node.plan, place)

    def _unwire(self) -> None:
        wire.remove_pod_link(self.identity.node.netns, self.identity.link)
        namespaces.remove(self.netns)

    async def _start_sandbox(self, files: Path) -> None:
        binds = await asyncio.to_thread(self._write_files, files)
        reading, writing = os.pipe()
        log = self._paths.container_log(self.identity.namespace, self.identity.name, "sandbox")
        try:
            order = Launch(
                namespaces={"net": str(self.netns_path)},
                sandbox={"hostname": self.spec.hostname, "binds": binds, "ready": writing},
            )
            self._sandbox = spawn(order, log, pass_fds=(writing,))
        finally:
            os.close(writing)
        try:
            started = await _read_within(reading, SANDBOX_DEADLINE_S)
        finally:
            os.close(reading)
        if not started:
            raise PodFailed(f"its namespaces cannot be made: {log.read_text().strip()[-500:] or 'no reason given'}")
        self._pid_namespace = os.open(f"/proc/{self._sandbox.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def _write_files(self, files: Path) -> list[tuple[str, str]]:
        identity = self.identity
        files.mkdir(parents=True, exist_ok=True)
        self._paths.container_log(identity.namespace, identity.name, "sandbox").parent.mkdir(
            parents=True, exist_ok=True
        )
        (files / "resolv.conf").write_text(dns.resolv_conf(identity.namespace))
        (files / "hosts").write_text(dns.pod_hosts(self.spec.hostname, identity.ips))
        own = [(str(files / "resolv.conf"), "/etc/resolv.conf"), (str(files / "hosts"), "/etc/hosts")]
        return own + bind_sources(self.spec, files / "volumes", identity.namespace, self._config_map)

    def _container_run(self, container: Container) -> ContainerRun:
        identity = self.identity
        log = self._paths.container_log(identity.namespace, identity.name, container.name)
        return ContainerRun(container, self._spawn, log, identity.node.netns, identity.ips[0], self._changed)

    def _spawn(self, container: Container, argv: tuple[str, ...], log: Path | None) -> Child:
        if self._sandbox is None or not self._sandbox.running or self._pid_namespace is None:
            raise OSError("the pod's first process has ended; `culvert lab restart` makes the pod anew")
        order = Launch(
            argv=list(argv),
            namespaces={kind: f"/proc/{self._sandbox.pid}/ns/{kind}" for kind in ("net", "uts", "mnt")},
            env=self._environment(container),
            cwd=container.working_dir,
            uid=container.uid,
            gid=container.gid,
        )
        return spawn(order, log, self._pid_namespace)

    def _environment(self, container: Container) -> dict[str, str]:
        own = {"HOSTNAME": self.spec.hostname, "HOME": home_of(container.uid)}
        return {**BASE_ENVIRONMENT, **own, **dict(container.env)}


def home_of(uid: int | None) -> str:
    """The home of a user as a container runtime finds it: in the user database, else the root directory."""
    if uid is None:
        return BASE_ENVIRONMENT["HOME"]
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


def _truth(value: bool) -> str:
    return "True" if value else "False"


async def _read_within(fd: int, deadline_s: float) -> bytes:
    """One byte, or nothing when the other end closes or the deadline passes."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set, readable)
    try:
        async with asyncio.timeout(deadline_s):
            await readable
    except TimeoutError:
        return b""
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 1)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
