"""Groups of settings that more than one process has: each is written once, a component adds what only it needs.

A group that a component extends by inheritance keeps its section in a settings file and its flags.
"""

from dataclasses import dataclass
from pathlib import Path

from mesh.logs import FORMATS, LEVELS
from mesh.settings import setting

CONTROL_PLANES = ("culvert", "istio")


@dataclass(frozen=True, slots=True)
class Control:
    """The controller, as a process of a node reaches it."""

    controller: str = setting(meaning="host:port of the controller")
    controller_name: str = setting(
        "culvert-controller.culvert-system.svc", "DNS name that the controller's certificate must carry"
    )
    control_plane: str = setting(
        "culvert", f"{' or '.join(CONTROL_PLANES)}: whose it is; Istio's is told and asked only what it knows"
    )
    token: Path | None = setting(None, "file with a service account token, sent as bearer token; unset: none")
    roots: Path | None = setting(
        None,
        "file with the roots of the controller's certificate; unset: credentials/roots.pem of the runtime directory",
    )

    def faults(self) -> list[str]:
        """What is wrong with it, one line each."""
        host, _, port = self.controller.rpartition(":")
        is_valid = host and port.isascii() and port.isdigit() and 0 < int(port) < 65536
        found = [] if is_valid else [f"--controller: {self.controller!r} is not host:port"]
        if self.control_plane not in CONTROL_PLANES:
            found.append(f"--control-plane: {self.control_plane!r} is none of {', '.join(CONTROL_PLANES)}")
        return found


@dataclass(frozen=True, slots=True)
class Logs:
    """The log of a process (mesh.logs)."""

    log_level: str = setting("info", f"{', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    log_format: str = setting("text", " or ".join(FORMATS))

    def faults(self) -> list[str]:
        """What is wrong with it, one line each."""
        found = []
        for flag, value, known in (
            ("--log-level", self.log_level, LEVELS),
            ("--log-format", self.log_format, FORMATS),
        ):
            if value not in known:
                found.append(f"{flag}: {value!r} is none of {', '.join(known)}")
        return found
