"""The one TLS port of the control plane: delta ADS, certificates and capture reports over gRPC.

Messages cross gRPC as bytes: a response is assembled from resources that were encoded once. The serving certificate
comes from the mesh's own root and is replaced long before it expires, without a restart.
"""

import asyncio
import datetime
import logging
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import grpc
from cryptography import x509

from controller.ca import keys, service
from controller.ca.authority import NotIssued
from controller.ca.base import CertificateAuthority
from controller.serve import reports
from controller.serve.ads import DeltaAds
from mesh.channel import Keepalive
from mesh.xds import METHOD, SERVICE

log = logging.getLogger(__name__)

# A node that pings at ztunnel's pace (30 s) is not taken for an attacker.
_OPTIONS = [
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.so_reuseport", 0),
]

SERVING_LIFETIME = datetime.timedelta(hours=24)

_RETRY_S = 1.0


class ServingCertificate:
    """The server's own leaf: made by `open`, renewed at half its life, and when asked to, by `keep_fresh`."""

    def __init__(self, authority: CertificateAuthority, dns_names: Sequence[str], addresses: Sequence[str]) -> None:
        self._authority = authority
        self._names = [
            *(x509.DNSName(name) for name in dns_names),
            *(x509.IPAddress(ip_address(address)) for address in addresses),
        ]
        self._current: tuple[grpc.ServerCertificateConfiguration, x509.Certificate] | None = None
        self._wanted = asyncio.Event()

    async def open(self) -> None:
        """Make the first one, however often that has to be tried."""
        while self._current is None:
            try:
                self._current = await self._issue()
            except NotIssued as error:
                log.warning("no serving certificate yet: %s", error)
                await asyncio.sleep(_RETRY_S)

    def credentials(self, *, nodes_show_certificates: bool) -> grpc.ServerCredentials:
        """Credentials that ask at each handshake whether there is another certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._latest(),
            self.changes(),  # type: ignore[arg-type]  # None, which the stubs do not know, is "no other"
            require_client_authentication=nodes_show_certificates,
        )

    def changes(self) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        """What answers, from any thread, with the current certificate if it is another than it was, else with None.

        Each answer makes gRPC free what handshakes in other threads may still use, which crashes the process
        (https://github.com/grpc/grpc/issues/36693): many nodes that connect at once must not be that many answers.
        """
        given = self._latest()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            before, given = given, self._latest()
            return None if given is before else given

        return fetch

    def renew(self) -> None:
        """Make another one now: who signs, or what clients are checked against, has changed."""
        self._wanted.set()

    async def keep_fresh(self) -> None:
        """Renew until cancelled."""
        while True:
            assert self._current is not None, "opened before"
            lifetime = self._current[1].not_valid_after_utc - datetime.datetime.now(datetime.UTC)
            try:
                async with asyncio.timeout(max(lifetime.total_seconds() / 2, _RETRY_S)):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                self._current = await self._issue()
            except NotIssued as error:
                log.warning("the serving certificate is not renewed: %s", error)
                await asyncio.sleep(_RETRY_S)
                self._wanted.set()
                continue
            log.info("serving certificate renewed until %s", self._current[1].not_valid_after_utc)

    def _latest(self) -> grpc.ServerCertificateConfiguration:
        assert self._current is not None, "opened before"
        return self._current[0]

    async def _issue(self) -> tuple[grpc.ServerCertificateConfiguration, x509.Certificate]:
        key = keys.new_key()
        issued = await self._authority.issue_serving(key, self._names, SERVING_LIFETIME)
        *chain, roots = issued.pem_chain
        pair = keys.key_pem(key), "".join(chain).encode()
        return grpc.ssl_server_certificate_configuration([pair], roots.encode()), issued.certificate


def make_server(
    ads: DeltaAds,
    certificates: service.CertificateService,
    captures: reports.CaptureReports,
    keepalive: Keepalive | None = None,
) -> "grpc.aio.Server":
    """The gRPC server with its methods, not yet listening."""
    server = grpc.aio.server(options=[*(keepalive or Keepalive()).options(), *_OPTIONS])
    stream, unary = grpc.stream_stream_rpc_method_handler, grpc.unary_unary_rpc_method_handler
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, {METHOD: stream(ads.serve)}),
            grpc.method_handlers_generic_handler(service.SERVICE, {service.METHOD: unary(certificates.create)}),
            grpc.method_handlers_generic_handler(reports.SERVICE, {reports.METHOD: stream(captures.serve)}),
        )
    )
    return server
