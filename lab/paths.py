"""Where a lab keeps what it writes: everything lies below /run/culvert and goes with the lab.

/run/culvert/labs/<lab>/   what belongs to the lab as a whole
/run/culvert/<lab>-<node>/ what one node's components share (sockets, credentials, the pods that run there)
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = Path("/run/culvert")
LABS = RUN / "labs"
NETNS = Path("/run/netns")
PINS = Path("/sys/fs/bpf/culvert")


@dataclass(frozen=True, slots=True)
class LabPaths:
    """The files of one lab."""

    lab: str

    @property
    def root(self) -> Path:
        """Everything of this lab but its nodes' runtime directories."""
        return LABS / self.lab

    @property
    def record(self) -> Path:
        """What the lab made outside its own directory, written before it is made."""
        return self.root / "lab.json"

    @property
    def manifests(self) -> Path:
        """The applied objects with their status: what the controller watches."""
        return self.root / "manifests"

    @property
    def controller_state(self) -> Path:
        """The controller's root certificate and key."""
        return self.root / "controller"

    @property
    def logs(self) -> Path:
        """One file per container and component."""
        return self.root / "logs"

    @property
    def control(self) -> Path:
        """The socket on which the supervisor takes orders."""
        return self.root / "control.sock"

    @property
    def pid(self) -> Path:
        """The supervisor's process, for a service manager that starts labs."""
        return self.root / "supervisor.pid"

    @property
    def token(self) -> Path:
        """The secret of a lab that spans several machines."""
        return self.root / "token"

    @property
    def pods(self) -> Path:
        """How to enter each running pod: one file per pod, read by `lab exec`."""
        return self.root / "pods"

    @property
    def scratch(self) -> Path:
        """Files on their way to their place, on the same file system so that a rename is atomic."""
        return self.root / "scratch"

    def pod_entry(self, namespace: str, name: str) -> Path:
        """How to enter one pod."""
        return self.pods / f"{namespace}_{name}.json"

    def pod_files(self, namespace: str, name: str) -> Path:
        """The files that are mounted into one pod."""
        return self.root / "files" / f"{namespace}_{name}"

    def container_log(self, namespace: str, pod: str, container: str) -> Path:
        """What one container wrote."""
        return self.logs / f"{namespace}_{pod}" / f"{container}.log"

    def write(self, path: Path, value: Any) -> None:
        """Replace a JSON file in one step; a reader sees the old value or the new one."""
        write_text(self.scratch, path, json.dumps(value, indent=1) + "\n")


def write_text(scratch: Path, path: Path, text: str) -> None:
    """Replace a file in one step, by way of `scratch` on the same file system."""
    temporary = scratch / f"{path.parent.parent.name}.{path.parent.name}.{path.name}"
    temporary.write_text(text)
    temporary.replace(path)


def node_runtime(key: str) -> Path:
    """The runtime directory of a node, by its key `<lab>-<node>`."""
    return RUN / key


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None when it is absent or cut short."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def labs() -> Iterator[str]:
    """The names of all labs that have left something on this machine, alive or not."""
    with suppress(FileNotFoundError):
        yield from sorted(entry.name for entry in os.scandir(LABS) if entry.is_dir())
