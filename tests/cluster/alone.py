"""An API server and its etcd without nodes: seconds to start, enough for whatever needs no pod to run."""

import itertools
import os
import shutil
from pathlib import Path
from types import TracebackType

from mesh.kube.api import Api
from tests.cluster.kube import binaries, cgroups
from tests.cluster.kube.api_server import HOST, ApiServer, Ports, free_ports
from tests.cluster.kube.credentials import Credentials
from tests.cluster.kube.place import Place
from tests.cluster.kube.processes import Daemons

_numbers = itertools.count(1)

# There is no controller that would make accounts for pods.
_FLAGS = ("--disable-admission-plugins=ServiceAccount",)


class ApiAlone:
    """The two processes on loopback of this machine, a context manager; leaves nothing."""

    def __init__(self) -> None:
        binaries.check_built("kubernetes")
        self.place = Place(f"api-{os.getpid()}-{next(_numbers)}", node_count=0)
        self._ports = Ports(*free_ports(3))
        self.url = f"https://127.0.0.1:{self._ports.api}"

    def __enter__(self) -> "ApiAlone":
        state = self.place.state
        state.mkdir(parents=True)
        cgroups.make(f"{self.place.name}/{cgroups.DAEMONS}")
        credentials = Credentials(state, self.url)
        credentials.make()
        self._daemons = Daemons(self.place)
        self._server = ApiServer(self._daemons, state, credentials, HOST, self._ports)
        try:
            self._server.start_etcd()
            self.start_api()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = cgroups.kill(self.place.name)
        self._daemons.reap()
        assert not left, f"processes of {self.place.name} do not end: {left}"
        cgroups.remove(self.place.name)
        shutil.rmtree(self.place.state, ignore_errors=True)

    @property
    def kubeconfig(self) -> Path:
        """For cluster administrators."""
        return self.place.kubeconfig

    def api(self) -> Api:
        """A client of it, for the running loop."""
        return Api.connect(self.kubeconfig)

    def pids(self) -> dict[str, int]:
        """The processes, by name."""
        return self._daemons.pids()

    def start_api(self) -> None:
        """Start the API server; returns when it is ready."""
        self._server.start_api("127.0.0.1", dual_stack=False, extra=_FLAGS)

    def start_controllers(self, *names: str) -> None:
        """Start some of Kubernetes' own controllers, such as the one that empties namespaces."""
        manager = str(binaries.find("kubernetes", "kube-controller-manager"))
        flags = [f"--kubeconfig={self.kubeconfig}", f"--controllers={','.join(names)}", "--leader-elect=false"]
        self._daemons.start("controllers", HOST, [manager, *flags, "--secure-port=0"])

    def stop_api(self) -> None:
        """End the API server."""
        self._daemons.stop("apiserver", deadline_s=2)

    def save(self) -> Path:
        """A backup of the storage. The server stands still meanwhile."""
        backup = self.place.state / "backup"
        self.stop_api()
        self._daemons.stop("etcd")
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(self.place.state / "etcd", backup)
        self._server.start_etcd()
        self.start_api()
        return backup

    def restore(self, backup: Path) -> None:
        """Go back to a backup, revisions included, as an operator does who knows no better."""
        self.stop_api()
        self._daemons.stop("etcd")
        shutil.rmtree(self.place.state / "etcd")
        shutil.copytree(backup, self.place.state / "etcd")
        self._server.start_etcd()
        self.start_api()
