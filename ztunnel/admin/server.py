"""The three ports on which a ztunnel is asked about itself: admin, metrics, readiness."""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from mesh import logs
from mesh.http import HttpServer, Request, Response

Dump = Callable[[], dict[str, Any]]
Explain = Callable[[str, str], dict[str, Any]]
Flows = Callable[[], list[dict[str, Any]]]


def admin_server(host: str, port: int, dump: Dump, explain: Explain, flows: Flows, first_level: str) -> HttpServer:
    """`/config_dump`, `/logging`, `/explain`, `/flows`."""

    async def config_dump(_: Request) -> Response:
        return Response.json(dump())

    async def show_flows(_: Request) -> Response:
        return Response.json(flows())

    async def show_levels(_: Request) -> Response:
        return Response.json(logs.levels())

    async def set_level(request: Request) -> Response:
        logs.set_level(request.query.get("level", ""), request.query.get("scope", ""))
        return Response.json(logs.levels())

    async def reset_level(_: Request) -> Response:
        logs.set_level(first_level)
        return Response.json(logs.levels())

    async def explained(request: Request) -> Response:
        for key in ("source", "destination"):
            if key not in request.query:
                raise ValueError("ask for /explain?source=NAMESPACE/POD&destination=HOST:PORT")
        return Response.json(explain(request.query["source"], request.query["destination"]))

    routes = {
        ("GET", "/config_dump"): config_dump,
        ("GET", "/logging"): show_levels,
        ("POST", "/logging"): set_level,
        ("POST", "/logging/reset"): reset_level,
        ("GET", "/explain"): explained,
        ("GET", "/flows"): show_flows,
    }
    return HttpServer(host, port, routes)


def metrics_server(port: int, registry: CollectorRegistry, prepare: Callable[[], None]) -> HttpServer:
    """`/metrics`, in the format that the scraper asks for; `prepare` brings counters up to date first."""

    async def metrics(request: Request) -> Response:
        prepare()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(body=encode(registry), content_type=content_type)

    return HttpServer("", port, {("GET", "/metrics"): metrics, ("GET", "/stats/prometheus"): metrics})


def readiness_server(port: int, pending: Callable[[], Sequence[str]]) -> HttpServer:
    """`/healthz/ready`: 200 once nothing is pending, else 500 that says what for."""

    async def ready(_: Request) -> Response:
        waiting = pending()
        if waiting:
            return Response.text(f"not ready, pending: {', '.join(waiting)}", 500)
        return Response.text("ready")

    return HttpServer("", port, {("GET", "/healthz/ready"): ready})
