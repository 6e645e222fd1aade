"""A controller for tests of the agent: takes capture reports over TLS and answers them when it is told to."""

import threading
from collections.abc import Iterator
from concurrent import futures
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from daemonset.controller_link import METHOD
from mesh.wire import agent_pb2 as wire
from tests.support.pki import Authority

NAME = "culvert-controller.culvert-system.svc"


class ControllerStub(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """Serves `Report` on loopback, to callers with a certificate of its authority; a context manager."""

    def __init__(self, directory: Path, port: int = 0, authority: Authority | None = None) -> None:
        self.authority = authority or Authority()
        self.directory = directory
        self.port = port
        self.reports: list[wire.CaptureReport] = []
        self.streams = 0
        self.callers: list[str] = []
        self.answers = True
        self.ends_at = 0  # the stream ends well at so many reports, as streams do from time to time
        self._changed = threading.Condition()
        self.issue()

    def __enter__(self) -> "ControllerStub":
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        key, certificate = self._serving()
        roots = self.authority.pem.encode()
        credentials = grpc.ssl_server_credentials([(key, certificate)], roots, require_client_auth=True)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._changed.notify_all()
        self._server.stop(None).wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def issue(self) -> None:
        """Write a new client credential for the node."""
        made = self.authority.issue("spiffe://cluster.local/ns/culvert-system/sa/culvert-node")
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in (("key.pem", made.key), ("cert.pem", made.chain), ("roots.pem", made.roots)):
            temporary = self.directory / f"{name}.tmp"
            temporary.write_text(text)
            temporary.replace(self.directory / name)

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(
            self._report,
            request_deserializer=wire.CaptureReport.FromString,
            response_serializer=wire.CaptureAck.SerializeToString,
        )

    def allow(self, answers: bool) -> None:
        """Answer reports from now on, those that wait included, or keep silent."""
        with self._changed:
            self.answers = answers
            self._changed.notify_all()

    def captured(self) -> set[str]:
        """Names of the last report."""
        return {pod.name for pod in self.reports[-1].pods} if self.reports else set()

    def refused(self) -> set[tuple[str, str]]:
        """Names and reasons of the last report."""
        return {(pod.name, pod.reason) for pod in self.reports[-1].refused} if self.reports else set()

    def _report(self, requests: Iterator[wire.CaptureReport], context: Any) -> Iterator[wire.CaptureAck]:
        self.streams += 1
        self.callers += [name.decode() for name in context.auth_context().get("x509_subject_alternative_name", [])]
        for report in requests:
            self.reports.append(report)
            if self.ends_at == len(self.reports):
                return
            with self._changed:
                while not self.answers and context.is_active():
                    self._changed.wait(0.05)
            yield wire.CaptureAck(generation=report.generation)

    def _serving(self) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.authority.now - timedelta(hours=1))
            .not_valid_after(self.authority.now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=True)
            .sign(self.authority.key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem, certificate.public_bytes(Encoding.PEM)
