"""The HTTP ports: metrics and readiness for monitors, debug pages for people (loopback only)."""

import base64
from collections.abc import Awaitable, Callable

from google.protobuf import json_format

from controller.config import Config
from controller.index.captures import Captures
from controller.serve.ads import Stream
from controller.serve.hub import Hub
from controller.status.announced import Announced
from controller.status.metrics import Metrics
from controller.status.report import StatusReport
from controller.translate.compile import Resource
from mesh.addresses import from_packed
from mesh.http import Handler, Request, Response, Routes
from mesh.settings import dump
from mesh.wire.authorization_pb2 import Authorization
from mesh.wire.discovery_pb2 import DeltaDiscoveryResponse
from mesh.wire.workload_pb2 import Address
from mesh.xds import ADDRESS_TYPE

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def monitoring_routes(metrics: Metrics, is_ready: Callable[[], bool]) -> Routes:
    """`/metrics`, `/healthz/ready` and `/healthz/live`, which says that the process is not stuck and nothing else."""

    async def show_metrics(_: Request) -> Response:
        return Response(body=metrics.render(), content_type=PROMETHEUS)

    async def show_ready(_: Request) -> Response:
        return Response.text("ready") if is_ready() else Response.text("waiting for the first set of objects", 503)

    async def show_live(_: Request) -> Response:
        return Response.text("alive")

    return {
        ("GET", "/metrics"): show_metrics,
        ("GET", "/healthz/ready"): show_ready,
        ("GET", "/healthz/live"): show_live,
    }


def debug_routes(config: Config, hub: Hub, captures: Captures, status: StatusReport, announced: Announced) -> Routes:
    """`/debug/...`: what the controller believes."""
    values: dict[str, Callable[[Request], object]] = {
        "config": lambda _: dump(config),
        "resources": lambda request: _resources(hub, request.query.get("name", "")),
        "streams": lambda _: [stream.view() for stream in hub.streams if isinstance(stream, Stream)],
        "captures": lambda _: captures.view(),
        "status": lambda _: status.view,
    }
    pages = {("GET", f"/debug/{name}"): _page(value) for name, value in values.items()}
    return {**pages, ("GET", "/debug/announced"): _announced_page(announced)}


def _announced_page(announced: Announced) -> Handler:
    async def show(request: Request) -> Response:
        text = request.query.get("wait_s", "0")
        if not text.isascii() or not text.replace(".", "", 1).isdigit():
            return Response.text(f"wait_s={text!r} is no number of seconds", 400)
        return Response.json(await announced.view(float(text)))

    return show


def _page(value: Callable[[Request], object]) -> Handler:
    async def show(request: Request) -> Response:
        return Response.json(value(request))

    handler: Callable[[Request], Awaitable[Response]] = show
    return handler


def _resources(hub: Hub, name: str) -> list[dict[str, object]]:
    chosen = [
        resource
        for resources in hub.sets.values()
        for resource in sorted(resources.resources(), key=lambda one: one.name)
        if name in resource.name
    ]
    return [_resource(resource) for resource in chosen]


def _resource(resource: Resource) -> dict[str, object]:
    (wrapped,) = DeltaDiscoveryResponse.FromString(resource.encoded).resources
    message = Address() if resource.type_url == ADDRESS_TYPE else Authorization()
    wrapped.resource.Unpack(message)
    content = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for kind in ("workload", "service"):
        _show_addresses(content.get(kind, {}))
    return {"type": resource.type_url, "name": resource.name, "version": resource.version, "content": content}


def _show_addresses(content: dict[str, object]) -> None:
    """Addresses as people write them rather than as base64."""
    listed = content.get("addresses")
    if isinstance(listed, list):
        content["addresses"] = [
            str(from_packed(base64.b64decode(one["address"] if isinstance(one, dict) else one))) for one in listed
        ]
