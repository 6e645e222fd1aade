"""Claims: the kernel's figures per edge agree with what was sent."""

import re
from collections.abc import Iterator

from cli.demo.report import Claim
from cli.demo.stage import Stage

BYTES = 5 << 20
CONNECTIONS = 20


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 7 of the demo."""
    before = _figures(stage)
    stage.dial(stage.client, "many", "app", "9000", str(CONNECTIONS - 1))
    stage.dial(stage.client, "push", "app", "9000", str(BYTES))
    failed_before = before.get("connections_failed", 0.0)
    stage.dial(stage.client, "who", stage.pod("shop/app")["ips"][0], "9999")
    after = _figures(stage)
    change = {name: after[name] - before.get(name, 0.0) for name in after}
    opened, closed = change.get("connections_opened", 0), change.get("connections_closed", 0)
    yield Claim(
        "connections opened and closed are those that were made",
        CONNECTIONS <= opened <= CONNECTIONS + 1 and closed >= CONNECTIONS,
        f"made {CONNECTIONS}, opened {opened:g}, closed {closed:g}",
    )
    sent = change.get("sent_bytes", 0)
    # What `many` and `who` sent beside it: four bytes a connection.
    yield Claim(
        "bytes sent are those that were sent",
        BYTES <= sent <= BYTES + 1000,
        f"sent {BYTES + 4 * CONNECTIONS}, counted {sent:g}",
    )
    got = change.get("received_bytes", 0)
    yield Claim("bytes received are counted", got > 0, f"counted {got:g}")
    failed = after.get("connections_failed", 0.0) - failed_before
    yield Claim("a connect that nobody answers is counted as failed, with a reason", failed >= 1, f"failed {failed:g}")
    for name, text in (("connect_seconds_count", "connect latency"), ("rtt_seconds_count", "round-trip time")):
        yield Claim(
            f"{text} is measured per edge", after.get(name, 0) > 0, f"culvert_flow_{name} {after.get(name, 0):g}"
        )


def _figures(stage: Stage) -> dict[str, float]:
    """The sums of each family on the edge from client to app, as its own node counts them."""
    found: dict[str, float] = {}
    for line in stage.metrics("node-2").splitlines():
        match = re.fullmatch(r"culvert_flow_(\w+?)(?:_total)?\{(.*)\} (\S+)", line)
        if (
            match
            and 'source_pod="client"' in match[2]
            and 'destination_pod="app"' in match[2]
            and 'direction="outbound"' in match[2]
        ):
            found[match[1]] = found.get(match[1], 0.0) + float(match[3])
    return found
