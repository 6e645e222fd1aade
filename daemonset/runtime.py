"""Pods of a node that is not run by Kubernetes: read from the node's runtime directory.

`pods/<namespace>_<name>.json` stands for one running pod, `namespaces.json` holds the namespaces' labels; both are
written by renaming. Level triggered: any change, or ten seconds without one, makes everything be read again. A file
that cannot be read is reported, and what it said before stays in force, so that a slip never takes a pod out of the
mesh; only a file that is gone does.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from daemonset.pods import Pod, Snapshot
from daemonset.watch import DirectoryWatch
from mesh.addresses import IPAddress, from_bytes16, to_bytes16

# A change is read this long after it was seen, so that a burst is read once.
SETTLE_S = 0.02
RESYNC_S = 10.0

MAX_FILE_BYTES = 1 << 20


class InvalidDocument(ValueError):
    """A file does not say what it should; the text names the field."""


class RuntimeSource:
    """Watches one runtime directory; a PodSource."""

    def __init__(self, directory: Path) -> None:
        self._pods_dir = directory / "pods"
        self._namespaces_file = directory / "namespaces.json"
        self._last_pods: dict[Path, Pod] = {}
        self._last_namespaces: Mapping[str, Mapping[str, str]] = {}

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """What is there now, again after each change that makes a difference, and every ten seconds in any case."""
        self._pods_dir.mkdir(parents=True, exist_ok=True)
        with DirectoryWatch([self._pods_dir, self._namespaces_file.parent]) as watch:
            last: Snapshot | None = None
            changed = False
            while True:
                snapshot = self.read()
                if not changed or snapshot != last:
                    last = snapshot
                    yield snapshot
                if changed := await watch.changed(RESYNC_S):
                    await asyncio.sleep(SETTLE_S)
                    watch.drain()

    def read(self) -> Snapshot:
        """The directory as it is."""
        faults: list[str] = []
        self._last_namespaces = self._read_namespaces(faults)
        self._last_pods = self._read_pods(faults)
        pods: dict[str, Pod] = {}
        for path, pod in self._last_pods.items():
            twin = pods.setdefault(pod.uid, pod)
            if twin is not pod:
                faults.append(f"{path.name}: uid {pod.uid} is that of {twin.full_name} already; left out")
        return Snapshot(pods, self._last_namespaces, tuple(faults))

    def _read_namespaces(self, faults: list[str]) -> Mapping[str, Mapping[str, str]]:
        try:
            return parse_namespaces(_load(self._namespaces_file))
        except FileNotFoundError:
            if self._last_namespaces:
                faults.append(f"{self._namespaces_file.name}: gone; what it said last stays in force")
        except (OSError, InvalidDocument) as error:
            faults.append(f"{self._namespaces_file.name}: {error}")
        return self._last_namespaces

    def _read_pods(self, faults: list[str]) -> dict[Path, Pod]:
        found: dict[Path, Pod] = {}
        for path in sorted(self._pods_dir.glob("*.json")):
            try:
                found[path] = parse_pod(_load(path))
            except FileNotFoundError:
                continue  # gone since it was listed
            except (OSError, InvalidDocument) as error:
                faults.append(f"{path.name}: {error}")
                if path in self._last_pods:
                    found[path] = self._last_pods[path]
        return found


def parse_pod(document: Any) -> Pod:
    """A pod of its document; raises InvalidDocument."""
    if not isinstance(document, dict):
        raise InvalidDocument("the document is not an object")
    return Pod(
        uid=_text(document, "uid"),
        namespace=_text(document, "namespace"),
        name=_text(document, "name"),
        service_account=document.get("service_account") or "default",
        node=_text(document, "node"),
        addresses=_addresses(document.get("ips", [])),
        netns=_text(document, "netns") if document.get("netns") else "",
        labels=_labels(document.get("labels"), "labels"),
        host_network=document.get("host_network") is True,
    )


def parse_namespaces(document: Any) -> Mapping[str, Mapping[str, str]]:
    """Labels by namespace of the document; raises InvalidDocument."""
    if not isinstance(document, dict):
        raise InvalidDocument("the document is not an object")
    found: dict[str, Mapping[str, str]] = {}
    for name, value in document.items():
        if not isinstance(value, dict):
            raise InvalidDocument(f"{name} is not an object")
        found[name] = _labels(value.get("labels"), f"{name}.labels")
    return found


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidDocument(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        return json.loads(raw)
    except ValueError as error:
        raise InvalidDocument(f"not JSON: {error}") from error
    except RecursionError as error:
        raise InvalidDocument("not JSON: nested too deeply") from error


def _text(document: Mapping[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidDocument(f"{field} is not a text")
    return value


def _labels(value: Any, field: str) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidDocument(f"{field} does not map texts to texts")
    return value


def _addresses(value: Any) -> tuple[IPAddress, ...]:
    if not isinstance(value, list):
        raise InvalidDocument("ips is not a list")
    found: list[IPAddress] = []
    for text in value:
        try:
            address = from_bytes16(to_bytes16(text if isinstance(text, str) else ""))
        except ValueError as error:
            raise InvalidDocument(f"ips: {text!r} is no address") from error
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            raise InvalidDocument(f"ips: {address} is not an address that a pod can have")
        found.append(address)
    return tuple(found)
