"""The controller's metrics, `culvert_controller_*`, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PREFIX = "culvert_controller"

# From one wake-up of a loop to a node that hangs.
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """One object per process, passed to whoever counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pushes = self._counter("xds_pushes", "Responses sent to nodes", "type")
        self.pushed_resources = self._counter("xds_pushed_resources", "Resources and removals sent to nodes", "type")
        self.encoded = self._counter("resources_encoded", "Resources encoded, once for all nodes")
        self.nacks = self._counter("xds_nacks", "Responses of which a node refused resources", "type")
        self.streams = self._gauge("xds_streams", "Nodes connected now")
        self.resources = self._gauge("resources", "Resources served", "type")
        self.objects = self._gauge("objects", "Cluster objects known", "kind")
        self.convergence_s = Histogram(
            f"{_PREFIX}_xds_convergence_seconds",
            "From a response to its answer by the node",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.certificates = self._counter("certificates_issued", "Certificates signed for workloads")
        self.refusals = self._counter("certificates_refused", "Certificate requests refused", "reason")
        self.leader = self._gauge("leader", "This controller writes status, secrets and config maps (1), or another")
        self.ca_expiry = self._gauge(
            "ca_expiry_timestamp_seconds", "When what signs certificates ends, seconds of the epoch", "certificate"
        )
        self.ca_roots = self._gauge("ca_roots", "Roots that the mesh trusts now")
        self.ca_phase = self._gauge("ca_phase", "1 for the phase that the rotation of roots is in", "phase")
        self.callers_refused = self._counter("callers_refused", "Calls of nobody who may make them", "reason")
        self.source_errors = self._gauge("source_errors", "Malformed files, documents and objects now")
        self.source_away = self._gauge("source_away", "Kinds of objects that the API server does not let us follow now")
        self.policies_rejected = self._gauge("policies_not_accepted", "Policies of which nothing is enforced")
        self.capture_reports = self._counter("capture_reports", "Reports of node agents about captured pods")
        self.captures_unsettled = self._counter(
            "capture_reports_unsettled", "Reports acknowledged before every node had answered the announcement"
        )

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", meaning, labels, registry=self.registry)
