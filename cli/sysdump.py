"""`culvert sysdump`: what somebody needs who looks for a fault elsewhere, in one archive. No secrets are in it."""

import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli.lab.options import complain, fail, json_option, print_json
from cli.reach.base import AGENT, ZTUNNEL_ADMIN, ZTUNNEL_METRICS, Reach, Unreachable, ask_all, first_line
from cli.reach.cluster import ClusterReach
from cli.reach.local import LabReach
from cli.reach.options import reach_options
from lab.paths import LabPaths, read_json
from mesh.kube.api import Selection
from mesh.kube.documents import annotations_of, labels_of
from mesh.kube.resources import (
    AUTHORIZATION_POLICIES,
    DEFINITIONS,
    NAMESPACES,
    NODES,
    PEER_AUTHENTICATIONS,
    PODS,
    SERVICES,
    Resource,
)

_OF_NODES = (
    ("ztunnel-config.json", ZTUNNEL_ADMIN, "/config_dump"),
    ("ztunnel-metrics.txt", ZTUNNEL_METRICS, "/metrics"),
    ("agent-status.json", AGENT, "/status"),
    ("agent-metrics.txt", AGENT, "/metrics"),
)
_OF_CONTROLLER = ("config", "streams", "captures", "status", "announced", "resources")
# What a person may read who may read the mesh's policies. Secrets and ConfigMaps of users are left out.
_OBJECTS = (NAMESPACES, NODES, PODS, SERVICES, AUTHORIZATION_POLICIES, PEER_AUTHENTICATIONS, DEFINITIONS)
_LAB_OBJECTS = ("namespace", "node", "pod", "service", "endpointslice", "authorizationpolicy", "peerauthentication")
MAX_LOG_BYTES = 16 << 20  # of each log of a lab

Entry = tuple[str, bytes]


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The archive; default: culvert-sysdump-<time>.tar.gz.",
)
@reach_options
@json_option
def sysdump(output: Path | None, where: Reach, as_json: bool) -> None:
    """Collect configuration, state, metrics, objects and logs into one archive.

    What cannot be had is named in its `missing.txt`; ends with 1 when no component answers at all. Private keys are in
    none of what is asked; environment variables of pods are taken out.

    \b
    culvert sysdump
    culvert sysdump --lab demo -o demo.tar.gz
    """
    path = output or Path(time.strftime("culvert-sysdump-%Y%m%d-%H%M%S.tar.gz"))
    missing: list[str] = []
    found: list[str] = []
    try:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in _entries(where, missing):
                _add(archive, name, data)
                found.append(name)
            _add(archive, "missing.txt", "".join(f"{line}\n" for line in missing).encode())
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    if as_json:
        print_json({"archive": str(path), "entries": found, "missing": missing})
    else:
        for line in missing:
            complain(f"culvert: without {line}")
        click.echo(path)
    sys.exit(0 if any(name.startswith(("nodes/", "controllers/")) for name in found) else 1)


def _entries(where: Reach, missing: list[str]) -> Iterator[Entry]:
    try:
        nodes = where.nodes()
        missing += [] if nodes else [f"nodes: {where.emptiness()}"]
    except Unreachable as error:
        missing.append(f"nodes: {first_line(error)}")
        nodes = []
    for name, port, path in _OF_NODES:
        found, failed = ask_all(partial(_ask, where, port, path), nodes)
        missing += [f"nodes/{node}/{name}: {first_line(why)}" for node, why in failed.items()]
        yield from ((f"nodes/{node}/{name}", data) for node, data in found.items())
    try:
        controllers = where.controllers()
    except Unreachable as error:
        missing.append(f"controllers: {first_line(error)}")
        controllers = []
    for name in controllers:
        pages, failed = ask_all(partial(_ask_controller, where, name), _OF_CONTROLLER)
        missing += [f"controllers/{name}/{page}.json: {first_line(why)}" for page, why in failed.items()]
        yield from ((f"controllers/{name}/{page}.json", data) for page, data in pages.items())
    if isinstance(where, ClusterReach):
        yield from _of_cluster(where, missing)
    elif isinstance(where, LabReach):
        yield from _of_lab(where.lab, where.status)


def _ask(where: Reach, port: int, path: str, node: str) -> bytes:
    return where.get(node, port, path)


def _ask_controller(where: Reach, name: str, page: str) -> bytes:
    return where.get_controller(name, f"/debug/{page}")


def _of_cluster(where: ClusterReach, missing: list[str]) -> Iterator[Entry]:
    for resource in _OBJECTS:
        yield from _tried(f"objects/{resource}.json", partial(_listed, where, resource), missing)
    selection = Selection(PODS, where.namespace, label_selector="app.kubernetes.io/part-of=culvert")
    try:
        pods = where.listed(selection)
    except Unreachable as error:
        missing.append(f"logs: {first_line(error)}")
        return
    for pod in pods:
        name = pod["metadata"]["name"]
        for container in pod["spec"]["containers"]:
            for word, previous in (("", False), (".previous", True)):
                path = f"logs/{name}/{container['name']}{word}.log"
                read = partial(where.log, where.namespace, name, container["name"], previous=previous)
                yield from _tried(path, read, [] if previous else missing)


def _of_lab(lab: str, status: dict[str, Any]) -> Iterator[Entry]:
    """Its objects as the lab keeps them, and the end of what its own processes wrote; nothing that its pods wrote."""
    own = LabPaths(lab)
    yield "lab-status.json", json.dumps(status, indent=1).encode()
    for kind in _LAB_OBJECTS:
        items = [found for path in sorted((own.manifests / kind).glob("*.json")) if (found := read_json(path))]
        for item in items if kind == "pod" else ():
            _without_environment(item)
        if items:
            yield f"objects/{kind}.json", json.dumps(items, indent=1).encode()
    for path in (own.root / "supervisor.log", own.logs / "controller.log", *sorted(own.logs.glob("nodes/*/*.log"))):
        if path.is_file():
            name = path.relative_to(own.logs) if path.is_relative_to(own.logs) else path.name
            yield f"logs/{name}", _end_of(path)


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
        return file.read(MAX_LOG_BYTES)


def _tried(name: str, read: Callable[[], bytes], missing: list[str]) -> Iterator[Entry]:
    try:
        yield name, read()
    except Unreachable as error:
        missing.append(f"{name}: {first_line(error)}")


def _listed(where: ClusterReach, resource: Resource) -> bytes:
    items = where.listed(Selection(resource))
    for item in items:
        item.get("metadata", {}).pop("managedFields", None)
        if resource is PODS:
            _without_environment(item)
    return json.dumps(items, indent=1).encode()


def _without_environment(pod: dict[str, Any]) -> None:
    """Environment variables and annotations of what applied them are where people put passwords."""
    annotations_of(pod).pop("kubectl.kubernetes.io/last-applied-configuration", None)
    for key in ("containers", "initContainers", "ephemeralContainers"):
        for container in pod["spec"].get(key) or ():
            container.pop("env", None)
            for word in ("command", "args"):
                if labels_of(pod).get("app.kubernetes.io/part-of") != "culvert":
                    container.pop(word, None)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(f"culvert-sysdump/{name}")
    entry.size = len(data)
    entry.mtime = int(time.time())
    archive.addfile(entry, io.BytesIO(data))
