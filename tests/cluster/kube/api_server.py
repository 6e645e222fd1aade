"""etcd and kube-apiserver: the part of a cluster that keeps objects. Enough for tests that need no pods."""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.netns import inside
from tests.cluster.kube import binaries, place
from tests.cluster.kube.credentials import Credentials
from tests.cluster.kube.processes import Daemons, wait_until

HOST = Path("/proc/self/ns/net")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the two listen; etcd on loopback only."""

    api: int
    etcd: int
    etcd_peer: int


def free_ports(count: int) -> list[int]:
    """Ports of this namespace's loopback that nobody has now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]
    finally:
        for held in sockets:
            held.close()


class ApiServer:
    """One API server and its etcd, in a namespace."""

    def __init__(self, daemons: Daemons, state: Path, credentials: Credentials, netns: Path, ports: Ports) -> None:
        self._daemons = daemons
        self._state = state
        self._pki = credentials.folder
        self._netns = netns
        self._ports = ports

    def start(self, advertise: str, dual_stack: bool, extra: Sequence[str] = ()) -> None:
        """Start both; returns when the API server says that it is ready."""
        self.start_etcd()
        self.start_api(advertise, dual_stack, extra)

    def start_etcd(self) -> None:
        """Start etcd. It does not wait for the disk: nothing here outlives the machine."""
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._ports.etcd, self._ports.etcd_peer))
        argv = ["etcd", "--data-dir", str(self._state / "etcd"), "--unsafe-no-fsync", "--name", "etcd"]
        argv += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        argv += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"etcd={peer}", "--log-level", "warn"]
        self._daemons.start("etcd", self._netns, argv)

    def start_api(self, advertise: str, dual_stack: bool, extra: Sequence[str] = ()) -> None:
        """Start the API server; returns when it is ready."""
        services = f"{place.SERVICES4},{place.SERVICES6}" if dual_stack else str(place.SERVICES4)
        flags = {
            "etcd-servers": f"http://127.0.0.1:{self._ports.etcd}",
            "bind-address": "::" if dual_stack else "127.0.0.1",
            "secure-port": str(self._ports.api),
            "advertise-address": advertise,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": str(self._pki / "sa.key"),
            "service-account-signing-key-file": str(self._pki / "sa.key"),
            "tls-cert-file": str(self._pki / "apiserver.crt"),
            "tls-private-key-file": str(self._pki / "apiserver.key"),
            "token-auth-file": str(self._pki / "tokens.csv"),
            "authorization-mode": "Node,RBAC",
            "service-cluster-ip-range": services,
            "allow-privileged": "true",
            "kubelet-preferred-address-types": "InternalIP",
            "endpoint-reconciler-type": "none",
            "cert-dir": str(self._state / "api-certs"),
        }
        argv = [str(binaries.find("kubernetes", "kube-apiserver")), *(f"--{k}={v}" for k, v in flags.items()), *extra]
        # Its heap may be large here, its processors are few: it collects garbage seldom.
        self._daemons.start("apiserver", self._netns, argv, {"GOGC": "400"})
        wait_until("the API server's readiness", self.is_ready, 60, self._daemons)

    def is_ready(self) -> bool:
        """What /readyz says."""
        return bool(inside(self._netns, self._ask))

    def _ask(self) -> bool:
        context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        token = (self._pki / "tokens.csv").read_text().partition(",")[0]
        request = urllib.request.Request(f"https://127.0.0.1:{self._ports.api}/readyz")
        request.add_header("Authorization", f"Bearer {token}")
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(request, timeout=5, context=context) as got,
        ):
            return bool(got.status == 200)
        return False
