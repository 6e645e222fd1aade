"""`python -m ztunnel`: run the node proxy until it is told to end. Exit status 0, 1 on failure, 2 on bad settings."""

import asyncio
import os
import sys

from mesh import grpc_engine, logs
from mesh.channel import CredentialFault
from mesh.settings import HelpAsked, SettingsFault
from ztunnel.config import Config


def main() -> int:
    """Run; returns the exit status."""
    try:
        config = Config.load(sys.argv[1:], os.environ)
    except HelpAsked as help_asked:
        print(help_asked)
        return 0
    except SettingsFault as fault:
        print(fault, file=sys.stderr)
        return 2
    logs.start(config.logs.log_level, as_json=config.logs.log_format == "json")
    grpc_engine.choose()
    from ztunnel.app import NotReadyInTime, run  # noqa: PLC0415 - bad settings are told before the heavy imports
    from ztunnel.data_path import EngineFault  # noqa: PLC0415

    try:
        asyncio.run(run(config))
    except (EngineFault, NotReadyInTime, CredentialFault, OSError) as error:
        print(f"ztunnel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
