"""What a controller has only where there is an API server: the way there, source, election, what it writes."""

from collections.abc import Coroutine, Iterator
from typing import Any

from controller.config import Config
from controller.election import Alone, Election
from controller.index.index import Index
from controller.sources.kubernetes import KubernetesSource
from controller.status.events import Events
from controller.status.metrics import Metrics
from controller.status.writer import StatusWriter
from mesh.kube.api import Api


class Cluster:
    """The parts, joined; raises Misconfigured."""

    def __init__(self, config: Config, index: Index, metrics: Metrics) -> None:
        self.api = Api.connect(config.source.kubeconfig)
        # Turns of their own: a storm of token reviews delays neither objects nor the renewal of the lease.
        self.source = KubernetesSource(Api(self.api.transport))
        election_api = Api(self.api.transport)
        self.election = Election(election_api, config.election.lease_namespace) if config.election.elect else None
        self.leadership = self.election or Alone()
        self.writer = StatusWriter(self.api, self.source, index, self.leadership)
        self.events = Events(self.api)
        metrics.leader.set_function(lambda: self.leadership.is_leader)
        metrics.source_away.set_function(lambda: len(self.source.away))
        if self.election:
            self.election.on_change = lambda is_leader: self.writer.wake()

    def tasks(self) -> Iterator[tuple[Coroutine[Any, Any, None], str]]:
        """What runs for as long as the controller does, but for the source."""
        yield self.writer.run(), "status"
        yield self.events.run(), "events"
        if self.election:
            yield self.election.run(), "election"
