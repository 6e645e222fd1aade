"""The `culvert lab` group."""

import click

from cli.lazy import Lazy, LazyGroup

COMMANDS = {
    "up": Lazy("cli.lab.life", "up", "Start a lab from a directory of manifests."),
    "down": Lazy("cli.lab.life", "down", "End a lab and remove all of it."),
    "list": Lazy("cli.lab.show", "list_labs", "List the labs of this machine."),
    "status": Lazy("cli.lab.show", "status", "Show nodes, pods, services and components."),
    "apply": Lazy("cli.lab.objects", "apply", "Create or change objects from manifests."),
    "delete": Lazy("cli.lab.objects", "delete", "Delete an object."),
    "get": Lazy("cli.lab.objects", "get", "Print an object with its status."),
    "label": Lazy("cli.lab.objects", "label", "Set or remove labels, as for enrolment."),
    "exec": Lazy("cli.lab.execute", "exec_command", "Run a command in a pod or on a node."),
    "logs": Lazy("cli.lab.show", "logs", "Print what a container or component wrote."),
    "token": Lazy("cli.lab.machines", "token", "Print the secret with which other machines join."),
    "restart": Lazy("cli.lab.life", "restart", "Restart a pod or a mesh component."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def lab() -> None:
    """Nodes and pods from network namespaces, on this machine.

    A lab is chosen by --lab NAME or CULVERT_LAB; without either, the only one there is.

    \b
    culvert lab up manifests/                 # two nodes, the mesh, your pods
    culvert lab exec shop/client -- curl -s http://web/
    culvert lab down
    """
