"""`python -m controller serve|credential`: exit 0 when told to stop, 1 on a fault, 2 on wrong settings."""

import asyncio
import os
import sys
from collections.abc import Sequence

from controller.config import Config, CredentialConfig
from mesh import grpc_engine, logs
from mesh.settings import HelpAsked, SettingsFault

_USAGE = """usage: controller COMMAND [--help] [--SETTING VALUE ...]

  serve        watch objects and serve nodes: xDS, certificates, capture reports
  credential   issue a node's client certificate from the state directory, offline"""


def main(argv: Sequence[str]) -> int:
    """Run a command; the process's exit status."""
    commands = {"serve": _serve, "credential": _credential}
    if not argv or argv[0] not in commands:
        is_help = bool(argv) and argv[0] in ("--help", "-h")
        print(_USAGE, file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    try:
        return commands[argv[0]](argv[1:])
    except HelpAsked as help_text:
        print(help_text)
        return 0
    except SettingsFault as fault:
        print(fault, file=sys.stderr)
        return 2


def _serve(argv: Sequence[str]) -> int:
    config = Config.load(argv, os.environ)
    logs.start(config.logs.log_level, as_json=config.logs.log_format == "json")
    logs.set_level("warning", "watchfiles")  # it would tell of every look at the directory
    grpc_engine.choose()
    from controller.app import serve  # noqa: PLC0415 - wrong settings are told without loading gRPC
    from controller.ca.issuer import IssuerUnavailable  # noqa: PLC0415
    from mesh.kube.errors import Misconfigured  # noqa: PLC0415

    try:
        asyncio.run(serve(config))
    except (IssuerUnavailable, Misconfigured, OSError, RuntimeError) as error:
        print(f"controller: {error}", file=sys.stderr)
        return 1
    return 0


def entry() -> int:
    """The console script `culvert-controller`."""
    return main(sys.argv[1:])


def _credential(argv: Sequence[str]) -> int:
    config = CredentialConfig.load(argv, os.environ)
    from controller.ca.authority import IssuerExpired  # noqa: PLC0415 - as above
    from controller.ca.credential import issue_from_state  # noqa: PLC0415
    from controller.ca.issuer import IssuerUnavailable  # noqa: PLC0415

    try:
        issue_from_state(config)
    except (IssuerUnavailable, IssuerExpired, OSError) as error:
        print(f"controller: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(entry())
