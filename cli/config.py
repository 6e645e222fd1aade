"""`culvert config`: what the ztunnels go by, as they have it."""

from collections.abc import Callable, Iterator
from typing import Any

import click

from cli.lab.options import complain, fail, json_option, print_json
from cli.reach.base import ZTUNNEL_ADMIN, Reach, Unreachable, about, ask, ask_all, chosen
from cli.reach.options import reach_options
from cli.table import merged, table

Dump = dict[str, Any]
Row = tuple[Any, ...]


@click.group()
def config() -> None:
    """Show what the ztunnels go by, of one node or of all. NODES says who has it; what differs stands out.

    \b
    culvert config workloads
    culvert config certificates node-1
    """


def dumps(where: Reach, node: str | None) -> dict[str, Dump]:
    """What the ztunnels of the chosen nodes say; complains of those that do not answer. Ends with 1 if none does."""
    try:
        nodes = chosen(where, node)
    except Unreachable as error:
        fail(str(error))
    found, failed = ask_all(lambda name: ask(where, name, ZTUNNEL_ADMIN, "/config_dump"), nodes)
    for name, why in failed.items():
        complain(f"culvert: {about(name, why)}")
    if not found:
        fail("no ztunnel answers" if nodes else where.emptiness())
    return found


def workloads(dump: Dump) -> Iterator[Row]:
    """Pods and what else has addresses."""
    for one in dump["workloads"]:
        waypoint = (one["waypoint"] or {}).get("destination", "")
        name = f"{one['namespace']}/{one['name']}"
        yield name, " ".join(one["workloadIps"]), one["node"], one["protocol"], one["status"], waypoint


def services(dump: Dump) -> Iterator[Row]:
    """Services with addresses and endpoints."""
    for one in dump["services"]:
        vips = " ".join(vip.rpartition("/")[2] for vip in one["vips"])
        ports = " ".join(f"{port}->{target}" for port, target in one["ports"].items())
        name, waypoint = f"{one['namespace']}/{one['name']}", (one["waypoint"] or {}).get("destination", "")
        yield name, one["hostname"], vips, ports, len(one["endpoints"]), waypoint


def policies(dump: Dump) -> Iterator[Row]:
    """Policies as nodes enforce them, or fail to."""
    for one in dump["policies"]:
        action = f"{one['action']}, dry run" if one["dryRun"] else one["action"]
        yield f"{one['namespace']}/{one['name']}", one["scope"], action, len(one["rules"]), one["fault"]
    for one in dump.get("policiesNotUnderstood", ()):
        yield one["name"], "?", f"in force: {one['inForce']}", 0, one["reason"]


def certificates(dump: Dump) -> Iterator[Row]:
    """Certificates of local identities."""
    for one in dump["certificates"]:
        leaf = (one.get("certChain") or [{}])[0]
        serial = leaf.get("serialNumber", "")
        yield one["identity"], one["state"], leaf.get("validFrom", ""), leaf.get("expirationTime", ""), serial


def connections(dump: Dump) -> Iterator[Row]:
    """Open connections of local pods."""
    for pod in dump["workloadState"].values():
        name = f"{pod['info']['namespace']}/{pod['info']['name']}"
        for direction, found in pod["connections"].items():
            for one in found:
                peer, sent, received = one["peerIdentity"] or "", one["bytesSent"], one["bytesReceived"]
                yield name, direction, one["src"], one["originalDst"], one["protocol"], peer, sent, received


_CERTIFICATES = ("IDENTITY", "STATE", "FROM", "UNTIL", "SERIAL")
_CONNECTIONS = ("POD", "DIRECTION", "FROM", "TO", "PROTOCOL", "PEER", "SENT", "RECEIVED")

# Name, columns, rows, and the key of the dump that JSON shows.
_VIEWS: tuple[tuple[str, tuple[str, ...], Callable[[Dump], Iterator[Row]], str], ...] = (
    ("workloads", ("WORKLOAD", "ADDRESSES", "NODE", "PROTOCOL", "STATUS", "WAYPOINT"), workloads, "workloads"),
    ("services", ("SERVICE", "HOSTNAME", "ADDRESSES", "PORTS", "ENDPOINTS", "WAYPOINT"), services, "services"),
    ("policies", ("POLICY", "SCOPE", "ACTION", "RULES", "FAULT"), policies, "policies"),
    ("certificates", _CERTIFICATES, certificates, "certificates"),
    ("connections", _CONNECTIONS, connections, "workloadState"),
)


def _add(name: str, columns: tuple[str, ...], rows: Callable[[Dump], Iterator[Row]], key: str) -> None:
    sentence = (rows.__doc__ or "").strip()

    @config.command(
        name,
        short_help=sentence.rstrip("."),
        help=f"{sentence}\n\n\b\nculvert config {name}\nculvert config {name} NODE --json",
    )
    @click.argument("node", required=False)
    @reach_options
    @json_option
    def show(node: str | None, where: Reach, as_json: bool) -> None:
        found = dumps(where, node)
        if as_json:
            print_json({at: dump[key] for at, dump in found.items()})
            return
        for line in table((*columns, "NODES"), merged({at: rows(dump) for at, dump in found.items()})):
            click.echo(line)


for _view in _VIEWS:
    _add(*_view)
