"""`culvert explain`: which rule of which object decides about a connection, on which path, and why."""

import sys
from typing import Any

import click

from cli.lab.options import fail, json_option, print_json
from cli.reach.base import ZTUNNEL_ADMIN, Reach, Unreachable, ask, query
from cli.reach.options import reach_options

DEFAULT_PORT = 80


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT]")
@reach_options
@json_option
def explain(source: str, destination: str, where: Reach, as_json: bool) -> None:
    """Say what happens to a connection from SRC (namespace/pod) to DST (service, namespace/pod or address), and why.

    The ztunnel of SRC's node is asked, which decides as it would; nothing is sent. Without PORT it is 80. Ends with 1
    when the connection would be refused.

    \b
    culvert explain shop/client web.shop:80
    culvert explain shop/client 10.96.7.7:80 --json
    """
    try:
        node, name = where.place_of(source)
        path = query("/explain", source=name, destination=with_port(destination))
        found = ask(where, node, ZTUNNEL_ADMIN, path)
    except Unreachable as error:
        fail(str(error))
    if as_json:
        print_json({**found, "node": node})
    else:
        for line in lines(found, node):
            click.echo(line)
    sys.exit(0 if found["allowed"] else 1)


def with_port(destination: str) -> str:
    """host:port, with brackets around an IPv6 address."""
    if destination.startswith("[") or not destination:
        if "]" not in destination:
            raise click.BadParameter(f"{destination!r} is neither a name nor an address, with or without a port")
        return destination if "]:" in destination else f"{destination}:{DEFAULT_PORT}"
    if destination.count(":") > 1:
        return f"[{destination}]:{DEFAULT_PORT}"
    return destination if ":" in destination else f"{destination}:{DEFAULT_PORT}"


def lines(found: dict[str, Any], node: str) -> list[str]:
    """The answer for people."""
    verdict = "allowed" if found["allowed"] else "refused"
    text = [f"{found['source']} -> {found['destination']}: {verdict}"]
    if found.get("policy"):
        text[0] += f" by policy {found['policy']}"
    elif not found["allowed"] and found.get("reason"):
        text[0] += f" ({found['reason']})"
    text.append(f"path      {found['path']}, as the ztunnel of node {node} decides")
    text += [f"endpoint  {found['endpoint']}"] if found.get("endpoint") else []
    text += [f"identity  {found['identity'] or 'none is shown'}"] if "identity" in found else []
    for title, key in (("because", "because"), ("policies", "policies")):
        text += [f"{title if at == 0 else '':9} {line}" for at, line in enumerate(found.get(key) or ())]
    return text
