"""`culvert demo`."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cli.demo import addresses, enrolment, failure, flows, policy, reach, wire
from cli.demo.report import Claims, Report
from cli.demo.stage import APPS, MANIFESTS, Stage
from cli.lab.options import fail, json_option, print_json
from lab import client, manifests
from lab.choice import LabError
from lab.client import StartOptions

# The capture comes first: it must see the handshakes of the first connections.
GROUPS: tuple[tuple[str, Claims], ...] = (
    ("On the wire between the nodes", wire.claims),
    ("Unmodified programs reach each other", reach.claims),
    ("A large transfer", reach.bulk),
    ("Addresses that applications see", addresses.claims),
    ("Authorization", policy.claims),
    ("Plaintext: PERMISSIVE and STRICT", policy.plaintext),
    ("Enrolment by label", enrolment.claims),
    ("Flow metrics from the kernel", flows.claims),
    ("ztunnel is killed", failure.claims),
)
READY_TIMEOUT_S = 40.0


@click.command()
@click.option("--keep", is_flag=True, help="Leave the lab up afterwards, to look around.")
@json_option
def demo(keep: bool, as_json: bool) -> None:
    """Run real traffic through a two-node lab and print a checked report; status 1 if a claim fails.

    \b
    culvert demo
    culvert demo --keep        # and look around: culvert lab status
    """
    name = f"demo-{os.getpid()}"
    show = (lambda _: None) if as_json else click.echo
    started = time.monotonic()
    report = Report()
    with _lab(name, keep):
        show(f"lab {name}: two nodes, {_bring_up(name)} pods, {time.monotonic() - started:.1f} s")
        for title, claims in GROUPS:
            report.run(title, claims, Stage(name), show)
    if as_json:
        print_json({**report.as_json(), "seconds": round(time.monotonic() - started, 1)})
    show(f"\n{report.summary()}, {time.monotonic() - started:.1f} s")
    if keep:
        click.echo(f"the lab stays: culvert lab status --lab {name}; culvert lab down --lab {name}", err=True)
    sys.exit(0 if report.passed else 1)


def _bring_up(name: str) -> int:
    with tempfile.TemporaryDirectory(prefix="culvert-demo-") as directory:
        for source in MANIFESTS.glob("*.yaml"):
            (Path(directory) / source.name).write_text(source.read_text().replace("@APPS@", str(APPS)))
        objects, faults = manifests.read([Path(directory)])
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{i}"}} for i in (1, 2)]
    try:
        client.start(name, StartOptions())
        outcomes = client.order(name, "apply", objects=[*nodes, *objects])["outcomes"]
        refused = [f"{o['object']}: {o['reason']}" for o in outcomes if o["outcome"] == "refused"]
        missing = client.order(name, "status")["mesh"]["missing"]
        not_ready = [] if missing else client.wait_ready(name, READY_TIMEOUT_S, lambda _: None)
    except LabError as error:
        fail(str(error))
    wrong = [*map(str, faults), *refused, *(f"{part} is not installed" for part in missing), *not_ready]
    if wrong:
        fail("the lab does not come up:\n  " + "\n  ".join(wrong))
    return len(client.order(name, "status")["pods"])


@contextmanager
def _lab(name: str, keep: bool) -> Iterator[None]:
    """Whatever happens, the lab is gone afterwards, unless it is to be kept."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    finished = False
    try:
        yield
        finished = True
    except KeyboardInterrupt:
        click.echo("interrupted: taking the lab down", err=True)
        sys.exit(130)
    finally:
        if not (keep and finished):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            for line in client.take_down(name):
                click.echo(f"left behind: {line}", err=True)
