"""The gRPC channel of a node's process to the controller.

Who we are is a client certificate, a bearer token, or both; who the controller is, its certificate says against the
mesh's roots. Files are read again each time a channel is made, so renewed credentials and roots need no restart; that
kubelet replaces a mounted directory by swapping a link is a replacement like any other.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

_OPTIONS = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 200 << 20),  # what the protocol allows for one response
    ("grpc.initial_reconnect_backoff_ms", 50),
    # The time for a connection with its handshake: enough for a controller to which a whole cluster comes back at once.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class Keepalive:
    """HTTP/2 PINGs of either end: one that vanished without a word, or hangs, is noticed within the sum of both."""

    silence_s: float = 30.0  # Istio's control plane takes offence at less than 15
    answer_s: float = 10.0

    def options(self) -> list[tuple[str, int]]:
        """As gRPC wants it, for a channel or a server.

        `keepalive_timeout` alone is for an end whose kernel does not answer; one whose kernel does, while its process
        stands still, would be waited for a whole minute, the default of `ping_timeout`.
        """
        silence_ms, answer_ms = round(self.silence_s * 1000), round(self.answer_s * 1000)
        return [
            ("grpc.keepalive_time_ms", silence_ms),
            ("grpc.keepalive_timeout_ms", answer_ms),
            ("grpc.http2.ping_timeout_ms", answer_ms),
        ]


class CredentialFault(Exception):
    """A credential file is missing or unreadable; the message names it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a process finds what it shows to the controller and what it trusts."""

    directory: Path  # cert.pem with key.pem unless only a token is used, and roots.pem unless `roots` says where else
    token: Path | None = None
    cluster_id: str = "Kubernetes"
    roots: Path | None = None  # a file

    @property
    def roots_file(self) -> Path:
        """What the controller's certificate is checked against."""
        return self.roots or self.directory / "roots.pem"

    def metadata(self) -> Sequence[tuple[str, str]]:
        """Call metadata; the token is read anew, because kubelet replaces it."""
        found = [("clusterid", self.cluster_id)]
        if self.token is not None:
            found.append(("authorization", f"Bearer {_read(self.token).decode().strip()}"))
        return found

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Changes when a credential file is replaced: then a new channel is due."""
        found = []
        for path in (self.directory / "cert.pem", self.directory / "key.pem", self.roots_file):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_ino, status.st_mtime_ns))
        return tuple(found)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """TLS credentials for a new channel; raises CredentialFault."""
        roots = _read(self.roots_file)
        if b"-----BEGIN CERTIFICATE-----" not in roots:  # gRPC would trust the system's roots instead of none
            raise CredentialFault(f"credential {self.roots_file}: no certificate in it")
        certificate = self.directory / "cert.pem"
        if self.token is not None and not certificate.exists():
            return grpc.ssl_channel_credentials(root_certificates=roots)
        return grpc.ssl_channel_credentials(roots, _read(self.directory / "key.pem"), _read(certificate))


def open_channel(
    address: str, name: str, credentials: Credentials, keepalive: Keepalive | None = None
) -> grpc.aio.Channel:
    """A channel to the controller at `address`, whose certificate must carry the DNS name `name`."""
    options = [*(keepalive or Keepalive()).options(), *_OPTIONS, ("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(address, credentials.channel_credentials(), options=options)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialFault(f"credential {path}: {error.strerror}") from error
