"""Options and habits that the lab commands share."""

import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

WRONG_USAGE = 2  # status of a command that was given what it cannot use


def lab_option(command: F) -> F:
    """--lab NAME, or CULVERT_LAB."""
    return click.option("--lab", "lab_name", envvar="CULVERT_LAB", metavar="NAME", help="Which lab (or CULVERT_LAB).")(
        command
    )


def json_option(command: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    """A value for machines."""
    click.echo(json.dumps(value, indent=2))


def complain(text: str) -> None:
    """A line for people, where it does not mix with output."""
    click.echo(text, err=True)


def fail(text: str, status: int = 1) -> NoReturn:
    """Say why it did not work, and end with that status."""
    click.echo(f"culvert: {text}", err=True)
    sys.exit(status)
