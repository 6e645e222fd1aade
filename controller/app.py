"""The controller process: builds the parts, joins them, runs until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Sequence

from controller.ca.service import CertificateService
from controller.cluster import Cluster
from controller.config import Config, split_address
from controller.credentials import CredentialParts
from controller.index.captures import Captures
from controller.index.index import Index
from controller.index.objects import Change
from controller.pipeline import Pipeline
from controller.serve.ads import DeltaAds
from controller.serve.callers import Gate
from controller.serve.closing import Closing
from controller.serve.hub import Hub
from controller.serve.reports import CaptureReports
from controller.serve.server import ServingCertificate, make_server
from controller.serve.store import ResourceSet
from controller.sources.base import STATUS_KINDS, Fault, Source
from controller.sources.files import FilesSource
from controller.status.announced import Announced
from controller.status.metrics import Metrics
from controller.status.pages import debug_routes, monitoring_routes
from controller.status.report import FILE, StatusReport
from controller.translate.compile import Inputs
from controller.translate.facts import Mesh
from mesh.aio import Background
from mesh.http import HttpServer
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, ROOTS_TYPE

log = logging.getLogger(__name__)


class Controller:
    """One controller; `run` is its life. Implements the Sink of its source."""

    def __init__(self, config: Config) -> None:
        self.config = config
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.metrics = Metrics()
        self.hub = Hub([ResourceSet(one) for one in (ADDRESS_TYPE, AUTHORIZATION_TYPE, ROOTS_TYPE)])
        self.hub.on_count = self.metrics.streams.set
        is_cluster = config.source.source == "kubernetes"
        # In a cluster the pods' annotations outlive a restart, and every replica sees them.
        self.captures = Captures(None if is_cluster else config.state / "captures.json")
        mesh = Mesh(
            cluster_id=config.mesh.cluster_id,
            cluster_domain=config.mesh.cluster_domain,
            trust_domain=config.mesh.trust_domain,
            root_namespace=config.mesh.root_namespace,
            istio_labels=config.mesh.istio_labels,
        )
        self.index = Index(mesh.root_namespace)
        self.pipeline = Pipeline(Inputs(self.index, self.captures, mesh), self.hub, self.metrics)
        self.cluster = Cluster(config, self.index, self.metrics) if is_cluster else None
        self.status = StatusReport(None if is_cluster else config.state / FILE)
        parts = CredentialParts(config, self.hub, self.metrics, self.cluster.api if self.cluster else None)
        self.authority = parts.authority(lambda: self.cluster is None or self.cluster.leadership.is_leader)
        self.certificate = ServingCertificate(self.authority, config.serve.dns_names, config.serve.addresses)
        self.authority.on_issuer = self.certificate.renew
        gate = Gate(parts.authenticator(self.index), self.metrics)
        self.closing = Closing(config.serve.stream_life_s)
        self.ads = DeltaAds(self.hub, gate, self.metrics, self.closing)
        self.certificates = CertificateService(
            self.authority, gate, self.index.runs_on, mesh.trust_domain, self.metrics
        )
        reports = CaptureReports(self.pipeline, self.hub, gate, self.metrics, self.closing)
        if self.cluster:
            reports.on_refused = self.cluster.events.tell
        self.server = make_server(self.ads, self.certificates, reports)
        self.source = self._make_source()
        self.announced = Announced(self.pipeline.inputs, self.hub, self.status, self.source.catch_up)
        self.port = 0
        self.is_ready = False

    def _make_source(self) -> Source:
        if self.cluster:
            return self.cluster.source
        assert self.config.source.manifests is not None, "settings were checked"
        return FilesSource(self.config.source.manifests)

    # --- Sink

    def apply(self, changes: Sequence[Change]) -> None:
        """Take a batch of the source; the first one opens the doors."""
        self.pipeline.apply(changes)
        if not self.is_ready or any(change.kind in STATUS_KINDS for change in changes):
            self._write_status()
        if not self.is_ready:
            self.is_ready = True
            gc.freeze()  # what is loaded stays; to look for cycles in it holds up every stream for a tenth of a second
            self.ads.open_for_nodes()
            self.certificates.open_for_nodes()
            log.info("serving %s", ", ".join(f"{count} {kind}" for kind, count in self.index.counts().items() if count))

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Take the source's list of what is malformed."""
        self.metrics.source_errors.set(len(faults))
        self.status.set_faults(faults)
        if self.cluster:
            self.cluster.writer.set_faults(faults)
        self._write_status()

    def look_again(self) -> None:
        """What is written on objects has changed."""
        if self.cluster:
            self.cluster.writer.wake()

    def _write_status(self) -> None:
        self.status.write(self.index)
        self.look_again()
        self.metrics.policies_rejected.set(self.status.not_accepted)

    # --- life

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then drain. Raises what ended a part that should have lasted."""
        address = split_address(self.config.serve.metrics_listen)
        async with HttpServer(*address, monitoring_routes(self.metrics, lambda: self.is_ready)):
            # From the beginning: who waits for an API server is alive, and is not to be restarted.
            if await self._opened(stop):
                await self._serve(stop)

    async def _serve(self, stop: asyncio.Event) -> None:
        async with self._listening(), Background() as tasks:
            tasks.start(self.authority.run(), "certificates")
            tasks.start(self.source.run(self), "source")
            for work, name in self.cluster.tasks() if self.cluster else ():
                tasks.start(work, name)
            tasks.start(self.certificate.keep_fresh(), "serving-certificate")
            stopped = tasks.run_once(stop.wait(), "stop")
            failed = tasks.run_once(tasks.failed(), "failed")
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
            log.info("draining")

    async def _opened(self, stop: asyncio.Event) -> bool:
        """Get what signs, which may have to wait for an API server; False if the process is told to end before."""

        async def open_both() -> None:
            await self.authority.open()
            await self.certificate.open()

        async with Background() as tasks:
            opened = tasks.run_once(open_both(), "opening")
            stopped = tasks.run_once(stop.wait(), "stop")
            await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                opened.result()
            return opened.done()

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        serve = self.config.serve
        debug = HttpServer(
            *split_address(serve.debug_listen),
            debug_routes(self.config, self.hub, self.captures, self.status, self.announced),
        )
        async with debug:
            self.port = self.server.add_secure_port(
                serve.listen,
                self.certificate.credentials(nodes_show_certificates=self.config.callers.auth == "certificates"),
            )
            await self.server.start()
            log.info("listening on %s (port %d), metrics on %s", serve.listen, self.port, serve.metrics_listen)
            try:
                yield
            finally:
                self.is_ready = False
                self.closing.set()
                await self.server.stop(self.config.drain_s)


async def serve(config: Config) -> None:
    """Run a controller until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Controller(config).run(stop)
