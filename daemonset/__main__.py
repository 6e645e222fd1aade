"""`python -m daemonset [SETTINGS]` runs the agent.

`upgrade-bpf`, `unload`, `remove-cni` and `status` act on a node from outside.
"""

import sys

if __name__ == "__main__":
    # Nothing here speaks TLS in Python (gRPC brings its own) and asyncio does without: 4 MB in a process of every node.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # so a module is marked as one that is not there

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemonset import app, commands
from daemonset.config import Config
from daemonset.enrolment import KernelFault
from daemonset.lock import AnotherAgent
from daemonset.pods import SourceUnavailable
from daemonset.programs import LoadFailed
from mesh import grpc_engine, logs, settings
from mesh.settings import setting

FAULTS = (SourceUnavailable, LoadFailed, KernelFault, AnotherAgent, app.SetReplaced, commands.CommandRefused, OSError)
COMMANDS = ("upgrade-bpf", "unload", "status", "remove-cni")


@dataclass(frozen=True, slots=True)
class CommandConfig:
    """Which node a command acts on."""

    key: str = setting(meaning="name of the node's pins and runtime directory")
    runtime: Path | None = setting(None, "its runtime directory; unset: /run/culvert/<key>")
    force: bool = setting(False, "unload also while the agent runs")
    cni_conf_dir: Path = setting(Path("/etc/cni/net.d"), "remove-cni: the node's CNI configuration")
    cni_bin_dir: Path = setting(Path("/opt/cni/bin"), "remove-cni: the node's CNI plugins")


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the agent or a command; the exit status: 0 done, 1 it failed, 2 settings are wrong."""
    try:
        if argv and argv[0] in COMMANDS:
            return _command(argv[0], settings.load(CommandConfig, f"daemonset {argv[0]}", argv[1:], env))
        config = Config.load(argv, env)
        if config.place.pod_source == "kubernetes" and sys.modules.get("ssl") is None:
            sys.modules.pop("ssl", None)  # an API server is asked over TLS
        logs.start(config.logs.log_level, as_json=config.logs.log_format == "json")
        grpc_engine.choose()
        asyncio.run(app.run(config))
    except settings.HelpAsked as text:
        print(text)
    except settings.SettingsFault as fault:
        print(fault, file=sys.stderr)
        return 2
    except FAULTS as fault:
        print(f"daemonset: {fault}", file=sys.stderr)
        return 1
    return 0


def entry() -> int:
    """The console script `culvert-agent`."""
    return main(sys.argv[1:], os.environ)


def _command(name: str, config: CommandConfig) -> int:
    runtime = config.runtime or Path("/run/culvert") / config.key
    if name == "upgrade-bpf":
        print(commands.upgrade_bpf(config.key))
    elif name == "unload":
        print(commands.unload(config.key, runtime, force=config.force))
    elif name == "remove-cni":
        print("\n".join(commands.remove_cni(config.cni_conf_dir, config.cni_bin_dir)) or "nothing of ours was there")
    else:
        print(json.dumps(commands.status(runtime), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(entry())
