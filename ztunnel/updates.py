"""What the controller announced becomes what the engine and the kernel go by.

One update: store, compile, publish, then the kernel's copies (workload numbers, fallback bits). Nothing is published
before both resource types have arrived once, because addresses without their policies would let everybody in; until
then connections wait.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mesh import xds
from ztunnel.change import Change
from ztunnel.compile import Compiler
from ztunnel.inpod.pods import Pod, PodTable
from ztunnel.kernel import KernelMaps
from ztunnel.state import Store

log = logging.getLogger(__name__)


class SnapshotSink(Protocol):
    """Where snapshots go: the engine."""

    def publish(self, tables: Any) -> None:
        """Decide by these tables from now on, also about what is open."""


class Updates:
    """Applies xDS updates, from the event loop; the one writer of the store."""

    def __init__(
        self,
        store: Store,
        compiler: Compiler,
        engine: SnapshotSink,
        kernel: KernelMaps,
        pods: PodTable,
        policies_changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._compiler = compiler
        self._engine = engine
        self._kernel = kernel
        self._pods = pods
        self._policies_changed = policies_changed
        self._arrived: set[str] = set()
        self.published = 0
        self._is_retired = False

    @property
    def may_name(self) -> bool:
        """Whether this process says which number means whom in the kernel's figures."""
        return self.is_complete and not self._is_retired

    def retire(self, is_retired: bool) -> None:
        """Another ztunnel of this node serves now and writes the numbers; or it has ended, and we write ours again."""
        if self._is_retired and not is_retired:
            self._kernel.write_numbers(self._store.address_numbers)
        self._is_retired = is_retired

    @property
    def is_complete(self) -> bool:
        """Both types have arrived at least once."""
        return self._arrived >= {xds.ADDRESS_TYPE, xds.AUTHORIZATION_TYPE}

    def apply(self, update: xds.Update) -> Mapping[str, str]:
        """Take one update; returns what was refused and why."""
        was_complete = self.is_complete
        change = self._store.apply(update)
        self._arrived.add(update.type_url)
        is_first = self.is_complete and not was_complete  # what came before was kept back, also when this is empty
        if self.is_complete:
            self._engine.publish(self._compiler.apply(change if was_complete else self._store.everything()))
            self.published += 1
        if not self._is_retired:
            self._kernel.write_numbers(change.addresses)
        if is_first:
            self._kernel.keep_numbers(self._store.address_numbers)
        if is_first or change.policies or change.removed or change.workloads:
            self._judge_again(change)
        return change.refused

    def _judge_again(self, change: Change) -> None:
        if not self.is_complete:
            return
        for pod in self._pods:
            self.refresh_fallback(pod)
        self._policies_changed()
        log.debug("applied %d workloads, %d policies", len(change.workloads), len(change.policies))

    def refresh_fallback(self, pod: Pod) -> None:
        """Say in the kernel whether strangers may reach a pod while no ztunnel runs."""
        is_open = self.is_complete and self._store.lets_pass_unguarded(pod.workload_uid)
        self._kernel.set_fallback(pod.netns_cookie, is_open)
