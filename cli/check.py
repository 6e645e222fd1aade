"""`culvert check`: what a node needs of this machine, tried on the running kernel."""

import sys

import click

from bpf import features
from cli.lab.options import json_option, print_json


@click.command()
@json_option
def check(as_json: bool) -> None:
    """Say whether this machine has what a node needs; status 1 when something necessary is missing.

    Nothing is changed. Run as root, as the node agent would.

    \b
    culvert check
    culvert check --json
    """
    found = features.all_checks()
    bad = [item for item in found if item.is_required and not item.is_met]
    if as_json:
        rows = [{"name": i.name, "passed": i.is_met, "required": i.is_required, "sentence": i.sentence} for i in found]
        print_json({"passed": not bad, "checks": rows})
    else:
        for item in found:
            word = "ok" if item.is_met else "MISSING" if item.is_required else "without"
            click.echo(f"{word:8} {item.name}: {item.sentence}")
    sys.exit(1 if bad else 0)
