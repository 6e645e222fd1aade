"""The entry point `culvert`. Exit status: 0 done, 1 failed (with a reason on standard error), 2 wrong usage."""

import click

from cli.lazy import Lazy, LazyGroup

COMMANDS = {
    "demo": Lazy("cli.demo.command", "demo", "Run the demonstration and print a checked report."),
    "lab": Lazy("cli.lab.group", "lab", "Nodes and pods from network namespaces, on this machine."),
    "install": Lazy("cli.install.command", "install", "Install Culvert into a Kubernetes cluster."),
    "upgrade": Lazy("cli.install.command", "upgrade", "Change an installation's version or settings."),
    "uninstall": Lazy("cli.install.command", "uninstall", "Take Culvert out of a cluster; nothing is left on nodes."),
    "status": Lazy("cli.status", "status", "The mesh at a glance: controller, nodes, pods."),
    "enrol": Lazy("cli.enrol", "enrol", "Put a namespace's pods into the mesh."),
    "unenrol": Lazy("cli.enrol", "unenrol", "Take a namespace's pods out of the mesh."),
    "config": Lazy("cli.config", "config", "What the ztunnels go by: workloads, services, policies, certificates, …"),
    "check": Lazy("cli.check", "check", "Say what a cluster, an installation or this machine lacks."),
    "node": Lazy("cli.node", "node", "Act on a node's eBPF programs: status, upgrade-bpf, unload."),
    "explain": Lazy("cli.explain", "explain", "Say which rule decides about a connection, and why."),
    "policy": Lazy("cli.policy", "policy", "Try policies before they are applied."),
    "sysdump": Lazy("cli.sysdump", "sysdump", "Collect what is needed to look for a fault elsewhere."),
    "completion": Lazy("cli.completion", "completion", "Complete commands in bash, zsh or fish."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here:  culvert demo",
)
@click.version_option(package_name="culvert", message="%(prog)s %(version)s")
def culvert() -> None:
    """Culvert: a sidecarless service mesh. eBPF captures, one ztunnel per node carries over mutual TLS."""


def main() -> None:
    """Run the command line."""
    culvert(prog_name="culvert")
