"""Writes conditions onto policies. Only the leader does, only what differs, and each object once per version of it."""

import asyncio
import datetime
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from controller.election import WRITE_TIMEOUT_S, Leadership
from controller.index.index import Index
from controller.sources.base import KEPT, Fault, ObjectKey, Source
from controller.status.conditions import PLURALS, Patch, patches
from mesh.kube.api import Api
from mesh.kube.backoff import Backoff
from mesh.kube.errors import ApiFault, Conflict, Invalid, NotFound
from mesh.kube.resources import Resource

log = logging.getLogger(__name__)

# Written at once; a mesh with a thousand policies must not be a thousand requests in a moment.
_AT_ONCE = 8


def utc_now() -> datetime.datetime:
    """The clock of transitions."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(slots=True)
class StatusWriter:
    """Brings the API server's status up to date with the index whenever it is woken and this controller leads."""

    api: Api
    source: Source
    index: Index
    leadership: Leadership
    clock: Callable[[], datetime.datetime] = utc_now
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 30.0))
    faults: tuple[Fault, ...] = ()
    written: int = 0  # patches that were taken
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _tried: dict[ObjectKey, str] = field(default_factory=dict)  # the version that a patch was made from

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """What the source could not use."""
        self.faults = tuple(faults)
        self.wake()

    def wake(self) -> None:
        """Something may have to be written."""
        self._woken.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            if not self.leadership.is_leader:
                self._tried.clear()
                continue
            if await self._write_all():
                self.backoff.reset()
            else:
                await asyncio.sleep(self.backoff.next_s())
                self.wake()

    async def _write_all(self) -> bool:
        """False if something is left to be tried again."""
        standing = self.source.written
        self._tried = {key: version for key, version in self._tried.items() if key in standing}
        wanted = [
            patch
            for patch in patches(standing, self.index, self.faults, self.clock())
            if self._tried.get(patch.key) != patch.written.version
        ]
        is_done = True
        for start in range(0, len(wanted), _AT_ONCE):
            results = await asyncio.gather(*map(self._write, wanted[start : start + _AT_ONCE]))
            is_done = is_done and all(results)
        return is_done

    async def _write(self, patch: Patch) -> bool:
        if not self.leadership.is_leader:
            return True  # the next leader will
        kind, key = patch.key
        group, _, version = patch.written.api_version.partition("/")
        namespace, _, name = key.partition("/")
        document = {
            "metadata": {"resourceVersion": patch.written.version},
            "status": {"conditions": list(patch.conditions), KEPT: patch.kept or None},
        }
        try:
            await self.api.merge_patch(
                Resource(group, version, PLURALS[kind]), name, document, namespace, "status", timeout_s=WRITE_TIMEOUT_S
            )
        except (Conflict, NotFound, Invalid) as fault:
            # It has changed or gone, and the watch will say so; or it takes no status, and will not until it changes.
            log.debug("status of %s %s: %s", kind.value, key, fault)
        except ApiFault as fault:
            log.warning("status of %s %s is not written, another try follows: %s", kind.value, key, fault)
            return False
        else:
            self.written += 1
        self._tried[patch.key] = patch.written.version
        return True
