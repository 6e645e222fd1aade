"""`culvert enrol` and `culvert unenrol`: a namespace's pods go into the mesh, or out of it; nothing is restarted."""

import sys
from functools import partial
from typing import Any

import click

from cli import cluster
from cli.install.waiting import TimedOut, until
from cli.lab.options import complain, fail, json_option, lab_option, print_json
from cli.presence import honours_istio_labels
from cli.reach.options import lab_meant, named
from lab import client, paths
from lab.capture import REFUSED
from lab.choice import LabError, choose
from mesh.enrolment import CAPTURE_ANNOTATION, CAPTURED, ISTIO_LABEL, MESH_LABEL, asked_by
from mesh.kube.api import Api, Selection
from mesh.kube.documents import annotations_of, labels_of
from mesh.kube.errors import NotFound
from mesh.kube.resources import NAMESPACES, PODS

TIMEOUT = click.option(
    "--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait; 0: not."
)


@click.command()
@click.argument("name", metavar="NS")
@TIMEOUT
@lab_option
@cluster.cluster_options
@json_option
def enrol(name: str, timeout: float, lab_name: str | None, way: cluster.Way, as_json: bool) -> None:
    """Put a namespace's pods into the mesh: label it culvert.io/mesh=enabled and wait until they are captured.

    Connections that are open stay as they are; new ones are carried by the mesh.

    \b
    culvert enrol shop
    culvert enrol shop --lab demo
    """
    _change(name, "enabled", timeout, lab_name, way, as_json)


@click.command()
@click.argument("name", metavar="NS")
@TIMEOUT
@lab_option
@cluster.cluster_options
@json_option
def unenrol(name: str, timeout: float, lab_name: str | None, way: cluster.Way, as_json: bool) -> None:
    """Take a namespace's pods out of the mesh: remove its label and wait until they are let go.

    Pods that have the label themselves stay in.

    \b
    culvert unenrol shop
    """
    _change(name, None, timeout, lab_name, way, as_json)


def _change(
    name: str, value: str | None, timeout: float, lab_name: str | None, way: cluster.Way, as_json: bool
) -> None:
    lab_name = lab_meant(lab_name, named(way))
    if lab_name is not None or (not way.is_there and any(paths.labs())):
        missing = _in_lab(lab_name, name, value, timeout)
    else:
        missing = cluster.run(way, lambda api: _in_cluster(api, name, value, timeout))
    if as_json:
        print_json({"namespace": name, "enrolled": value is not None, "missing": missing})
    else:
        if not missing:
            click.echo(f"namespace {name} is {'in' if value else 'out of'} the mesh")
        for line in missing:
            complain(f"not done yet: {line}")
        if missing:
            complain("`culvert status` says why")
    sys.exit(1 if missing else 0)


def _in_lab(lab_name: str | None, name: str, value: str | None, timeout: float) -> list[str]:
    try:
        lab = choose(lab_name)
        outcome = client.order(lab, "label", kind="namespace", path=name, changes={MESH_LABEL: value})
        if outcome["outcome"] == "refused":
            fail(f"{outcome['object']}: {outcome['reason']}")
        if not timeout:
            return []
        missing = client.wait_labelled(lab, timeout, lambda pod: bool(pod["namespace"] == name))
        pods = client.order(lab, "status")["pods"] if value else ()
        return missing + [line for pod in pods if (line := _refused(pod, name))]
    except LabError as error:
        fail(str(error))


def _refused(pod: dict[str, Any], namespace: str) -> str:
    """Why a pod of a lab's namespace asks for the mesh and cannot be in it; not those that never can."""
    mesh = pod["mesh"]
    is_meant = pod["namespace"] == namespace and mesh["asked"] and mesh["state"] == REFUSED
    return f"pod {pod['name']}: {mesh['reason']}" if is_meant and mesh.get("refused") != "host_network" else ""


async def _in_cluster(api: Api, name: str, value: str | None, timeout_s: float) -> list[str]:
    istio_labels = await honours_istio_labels(api)
    if value and istio_labels is None:
        fail(
            "no Culvert is in this cluster: `culvert install` first\n"
            f"  (a label set before counts from then on: kubectl label namespace {name} {MESH_LABEL}={value})"
        )
    try:
        found = await api.merge_patch(NAMESPACES, name, {"metadata": {"labels": {MESH_LABEL: value}}})
    except NotFound:
        fail(f"there is no namespace {name!r}")
    if not timeout_s or istio_labels is None:
        return []
    labels = labels_of(found)
    look = partial(not_followed, api, name, labels, istio_labels=istio_labels)
    try:
        await until("the namespace's pods", look, timeout_s, complain, 0.5)
    except TimedOut as late:
        return [line.strip() for line in str(late).splitlines()[1:]]
    if not value and asked_by({}, labels, istio_labels=istio_labels).enrol:
        return [f"its label {ISTIO_LABEL}={labels[ISTIO_LABEL]} keeps it in the mesh: take that away too"]
    return []


async def not_followed(api: Api, name: str, labels: dict[str, str], *, istio_labels: bool) -> list[str]:
    """Pods of a namespace that are not yet what the labels ask for, one line each."""
    pods = [item async for page in api.pages(Selection(PODS, name)) for item in page]
    return [line for pod in pods if (line := _behind(pod, labels, istio_labels=istio_labels))]


def _behind(pod: dict[str, Any], labels: dict[str, str], *, istio_labels: bool) -> str:
    metadata = pod["metadata"]
    is_over = pod.get("status", {}).get("phase") != "Running" or metadata.get("deletionTimestamp")
    if is_over or pod["spec"].get("hostNetwork"):
        return ""
    asked = asked_by(labels_of(pod), labels, istio_labels=istio_labels)
    is_captured = annotations_of(pod).get(CAPTURE_ANNOTATION) == CAPTURED
    if asked.fault:
        return f"pod {metadata['name']}: {asked.fault}"
    if asked.enrol == is_captured:
        return ""
    return f"pod {metadata['name']} is {'not captured yet' if asked.enrol else 'still captured'}"
