"""Claims: the kernel's figures per edge agree with what was sent."""

import re
from collections.abc import Iterator

from cli.demo.report import Claim
from cli.demo.stage import Stage

BYTES = 5 << 20
CONNECTIONS = 20
# What else may have been said: a line of four or five bytes at the start of each connection.
SLACK_BYTES = 10 * CONNECTIONS

Figures = dict[str, float]


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 7 of the demo."""
    app = stage.pod("shop/app")["ips"][0]
    before, inbound_before = _figures(stage, "node-2", "outbound"), _figures(stage, "node-1", "inbound")
    stage.dial(stage.client, "many", app, "9000", str(CONNECTIONS - 1))
    stage.dial(stage.client, "push", app, "9000", str(BYTES))
    yield from _counted(_change(before, _figures(stage, "node-2", "outbound")))
    stage.dial(stage.client, "who", app, "9999")
    inbound = _change(inbound_before, _figures(stage, "node-1", "inbound"))
    failed = {name: count for name, count in inbound.items() if name.startswith("connections_failed") and count}
    yield Claim(
        "a connect to a port where nobody listens is counted as failed, with its reason",
        failed == {"connections_failed refused": 1},
        f"at the destination: {failed}",
    )
    tunnel = _figures(stage, "node-2", "tunnel")
    for name, text, figures in (
        ("connect_seconds", "connect latency, of the application on the destination's node", inbound),
        ("connect_seconds", "connect latency, of the tunnel between the nodes", tunnel),
        ("rtt_seconds", "round-trip time, of the tunnel between the nodes", tunnel),
    ):
        count, total = figures.get(f"{name}_count", 0), figures.get(f"{name}_sum", 0)
        mean = f"{1e6 * total / count:.0f} µs on average" if count else "none"
        yield Claim(f"{text}, is measured per edge", count > 0 and total > 0, f"{count:g} samples, {mean}")


def _counted(change: Figures) -> Iterator[Claim]:
    opened, closed = change.get("connections_opened", 0), change.get("connections_closed", 0)
    yield Claim(
        "connections opened and closed on the edge client -> app are those that were made",
        opened == closed == CONNECTIONS,
        f"made {CONNECTIONS}, opened {opened:g}, closed {closed:g}",
    )
    sent = change.get("sent_bytes", 0)
    yield Claim(
        "bytes sent are those that were sent",
        BYTES < sent <= BYTES + SLACK_BYTES,
        f"sent {BYTES} and {CONNECTIONS} lines of 4 bytes, counted {sent:.0f}",
    )
    got = change.get("received_bytes", 0)
    yield Claim("bytes received are counted", got > 0, f"counted {got:.0f} of {CONNECTIONS} answers")


def _change(before: Figures, after: Figures) -> Figures:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _figures(stage: Stage, node: str, direction: str) -> Figures:
    """The figures of the edge client -> app in one direction; those of a reason carry it in their name."""
    wanted = {'source_pod="client"', 'destination_pod="app"', 'source_namespace="shop"', f'direction="{direction}"'}
    found: Figures = {}
    for line in stage.metrics(node).splitlines():
        match = re.fullmatch(r"culvert_flow_(\w+?)(?:_total)?\{(.*)\} (\S+)", line)
        if match is None:
            continue
        labels = set(match[2].split(","))
        reasons = [label.partition("=")[2].strip('"') for label in labels if label.startswith("reason=")]
        if wanted <= labels and not match[1].endswith("_bucket"):
            found[" ".join([match[1], *reasons])] = float(match[3])
    return found
