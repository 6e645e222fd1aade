"""The loader's command line: `python -m bpf.loader load|upgrade|unload|info`. Exit status 0, 1 (failed), 2 (usage)."""

import argparse
import json
import os
import signal
import sys
from types import FrameType

from bpf import features
from bpf.cgroup import NoCgroupRoot
from bpf.loader import bpffs, build, install
from bpf.loader.specs import PROGRAMS
from bpf.paths import BPFFS, NodePaths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bpf.loader", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("load", "make sure that this version's programs run; does nothing when they do"),
        ("upgrade", "swap the programs of a loaded set in place"),
        ("unload", "detach and remove everything of a node"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--node", required=True, metavar="KEY", help="the node's key for pins")
    info = commands.add_parser("info", help="instructions and stack per program, without attaching any")
    info.add_argument("--json", action="store_true")
    return parser


def _stop(number: int, frame: FrameType | None) -> None:
    """A signal ends the process by an exception, so that what is half done is undone."""
    raise SystemExit(128 + number)


def _print_info(as_json: bool) -> None:
    directory = BPFFS / "culvert" / f"info-{os.getpid()}"
    try:
        directory.mkdir(parents=True)
        built = build.build(directory, build.flags())
        rows = [build.figures(built, spec) for spec in PROGRAMS]
    finally:
        install.remove_tree(directory)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "name": row.name,
                        "instructions": row.instructions,
                        "processed": row.processed,
                        "stack_bytes": row.stack_bytes,
                    }
                    for row in rows
                ],
                indent=1,
            )
        )
        return
    print(f"{'program':<14}{'instructions':>13}{'verifier':>10}{'stack':>7}")
    for row in rows:
        print(f"{row.name:<14}{row.instructions:>13}{row.processed:>10}{row.stack_bytes:>7}")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "unload":  # asks for no feature: what is there must go, whatever the machine lacks now
        print("unloaded" if install.unload(NodePaths(arguments.node)) else "nothing was loaded")
        return
    bpffs.ensure_mounted()
    missing = [check for check in features.required_for_loading() if not check.is_met]
    if missing:
        raise install.CannotInstall("; ".join(check.sentence for check in missing))
    if arguments.command == "info":
        _print_info(arguments.json)
        return
    action = install.load if arguments.command == "load" else install.upgrade
    print(action(NodePaths(arguments.node)))


def main(argv: list[str] | None = None) -> int:
    """Run one command."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _run(arguments)
    except (install.CannotInstall, build.LoadFailed, bpffs.CannotMount, NoCgroupRoot, ValueError, OSError) as error:
        print(f"bpf.loader {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
