"""`culvert lab exec`."""

import sys

import click

from cli.lab.options import fail, lab_option


class _AfterDashes(click.Command):
    """Everything behind `--` is the command, whatever it looks like; options may stand on both sides of the target."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the command off before options are looked for."""
        if "--" in args:
            at = args.index("--")
            ctx.meta["argv"] = args[at + 1 :]
            args = args[:at]
        elif args and "--help" not in args:
            raise click.UsageError("the command stands behind --: culvert lab exec NS/POD -- CMD ARGS...", ctx)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage line names the command too."""
        return [*super().collect_usage_pieces(ctx), "--", "CMD..."]


@click.command("exec", cls=_AfterDashes)
@click.argument("target", metavar="NS/POD|node/NODE|fabric")
@click.option("-i", "--stdin", "_stdin", is_flag=True, help="Pass standard input (it always is; for kubectl's habits).")
@click.option("-t/-T", "--tty/--no-tty", "terminal", default=None, help="With a terminal of its own, or without one.")
@click.option("-c", "--container", metavar="NAME", help="Whose environment, directory and user; default: the first.")
@lab_option
def exec_command(target: str, _stdin: bool, terminal: bool | None, container: str | None, lab_name: str | None) -> None:
    """Run a command in a pod (or with node/NODE on a node, with `fabric` between the nodes).

    Standard input, output and error are the caller's; signals are passed on; the exit status is the command's, 128 + n
    when signal n ended it. A terminal is made when standard input and output are one, or with -t. What is left running
    when the caller is killed is killed too.

    \b
    culvert lab exec shop/client -- curl -s http://web.shop/
    tar c data | culvert lab exec shop/client -- tar x -C /tmp
    culvert lab exec -it shop/client -- bash
    culvert lab exec node/node-1 -- ss -tlnp
    """
    argv: list[str] | None = click.get_current_context().meta.get("argv")
    if not argv:
        raise click.UsageError(f"no command: culvert lab exec {target} -- CMD ARGS...")
    sys.exit(_run(lab_name, target, container, argv, terminal))


def _run(lab_name: str | None, target: str, container: str | None, argv: list[str], terminal: bool | None) -> int:
    from lab import execute  # noqa: PLC0415  help needs none of it

    try:
        found = execute.find(_lab(lab_name), target, container)
        return execute.run(found, argv, execute.wants_terminal(terminal))
    except execute.NoSuchTarget as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot enter {target}: {error} (are you root?)")


def _lab(given: str | None) -> str:
    from lab.choice import LabError, choose  # noqa: PLC0415  as above

    try:
        return choose(given)
    except LabError as error:
        fail(str(error))
