"""A collection, followed whatever happens: listed in pages, watched from there, listed again when history is lost.

    list -> watch -> (ended, cut, silent: watch again from the last event) -> (history lost: list again) -> ...

That a watch is silent is no fault yet: whether the server still answers is asked before the next one.

What makes a new list necessary, besides the server saying so (410):

- The server has come less far than what we have seen: its storage was restored from a backup. It would otherwise let us
  wait in silence until its numbers have caught up with ours, and keep all that happens meanwhile to itself.
- It was away for longer than `trust_s`: time enough for a restore whose numbers have passed ours since.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from mesh.kube.api import Api, Selection
from mesh.kube.backoff import Backoff
from mesh.kube.errors import ApiFault, Gone, NotFound, Silent, Unavailable
from mesh.kube.watch import DELETED, OPENED, SILENCE_S, Event, Watch, WatchEnded

log = logging.getLogger(__name__)

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")

# A list whose pages' history is lost on the way is asked for in one piece after so many tries.
_PAGED_TRIES = 2


class Follower(Protocol[T_contra]):
    """Takes what is found; both calls on the loop, in order."""

    def listed(self, items: Sequence[T_contra]) -> None:
        """Everything there is; what is not in it is gone."""

    def changed(self, items: Sequence[tuple[bool, T_contra]]) -> None:
        """Objects as they are now, each with whether it is there; a later one counts more."""


@dataclass(slots=True)
class Pace:
    """Times of a Follow, in seconds."""

    shortest_backoff_s: float = 0.2
    longest_backoff_s: float = 10.0
    silence_s: float = SILENCE_S
    trust_s: float = 30.0
    shortest_watch_s: float = 1.0
    page_size: int = 500

    def backoff(self) -> Backoff:
        """A fresh backoff of this pace."""
        return Backoff(self.shortest_backoff_s, self.longest_backoff_s)


@dataclass(slots=True)
class Standing:
    """How a Follow stands with the server."""

    fault: str = ""  # why it does not follow now; empty while it does
    since: float = field(default_factory=time.monotonic)  # when that began
    lists: int = 0
    watches: int = 0


class Follow(Generic[T]):
    """One collection; `run` is its life. `decode` runs beside the loop on every object.

    `may_vanish`: that there is no such collection ends `run`; else it is a fault as any other.
    """

    def __init__(
        self,
        api: Api,
        selection: Selection,
        decode: Callable[[Any], T],
        follower: Follower[T],
        pace: Pace | None = None,
        *,
        may_vanish: bool = False,
    ) -> None:
        self._api = api
        self._selection = selection
        self._decode = decode
        self._follower = follower
        self._pace = pace or Pace()
        self._may_vanish = may_vanish
        self._backoff = self._pace.backoff()
        self._version = ""  # up to where the follower knows; empty: nothing
        self._open: Watch[T] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self.standing = Standing()

    async def run(self) -> None:
        """Follow until cancelled. Raises NotFound if there is no such collection (any more) and it may vanish."""
        while True:
            try:
                if not self._version or self._waiting:
                    await self._list()
                elif await self._has_gone_back():
                    self._version = ""
                    continue
                await self._watch()
            except (WatchEnded, Silent):
                pass
            except NotFound as fault:
                if self._may_vanish:
                    raise
                await self._recover(fault)
            except ApiFault as fault:
                await self._recover(fault)

    async def catch_up(self) -> None:
        """Return when a list that began after this call has reached the follower."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._open is not None:
            self._open.stop()
        await done

    # --- listing

    async def _list(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            items, version = await self._list_all()
        except BaseException:
            self._waiting += waiting
            raise
        self.standing.lists += 1
        self._follower.listed(items)
        self._version = version
        self._stand("")
        for done in waiting:
            if not done.done():  # it is when who asked has given up
                done.set_result(None)

    async def _list_all(self) -> tuple[list[T], str]:
        for _ in range(_PAGED_TRIES):
            try:
                return await self._list_pages(self._pace.page_size)
            except Gone as fault:
                log.info("%s: the list's history was lost on the way: %s", self._selection.resource, fault)
        return await self._list_pages(0)

    async def _list_pages(self, size: int) -> tuple[list[T], str]:
        page = await self._api.page_of(self._selection, self._decode, limit=size)
        found = list(page.items)
        while page.rest:
            page = await self._api.page_of(self._selection, self._decode, page.rest, limit=size)
            found += page.items
        return found, page.version

    # --- watching

    async def _watch(self) -> None:
        """Take events until the watch ends, which it always does by an exception."""
        self.standing.watches += 1
        started = time.monotonic()
        watch = Watch(self._api.transport, self._selection, self._version, self._decode, self._pace.silence_s)
        try:
            async with watch:
                self._open = watch
                while not self._waiting:
                    self._take(await watch.take())
        except WatchEnded:
            if time.monotonic() - started < self._pace.shortest_watch_s and not self._waiting:
                raise Unavailable(f"{self._selection.resource}: the watch was ended at once") from None
        finally:
            self._open = None
            if time.monotonic() - started > self._pace.longest_backoff_s:
                self._backoff.reset()
        if self._waiting:
            self._version = ""

    def _take(self, events: list[Event[T]]) -> None:
        changed: list[tuple[bool, T]] = []
        for event in events:
            if event.type == OPENED:
                self._stand("")
                continue
            self._backoff.reset()
            if is_before(event.version, self._version):
                self._deliver(changed)
                raise Gone(f"{self._selection.resource}: an event of {event.version} after {self._version}", 410)
            self._version = event.version
            if event.object is not None:
                changed.append((event.type != DELETED, event.object))
        self._deliver(changed)

    def _deliver(self, changed: list[tuple[bool, T]]) -> None:
        if changed:
            self._follower.changed(changed)

    # --- faults

    async def _recover(self, fault: ApiFault) -> None:
        if isinstance(fault, Gone):
            self._version = ""
        self._stand(str(fault))
        await asyncio.sleep(self._backoff.next_s(fault.retry_after_s))
        if time.monotonic() - self.standing.since > self._pace.trust_s:
            self._version = ""

    async def _has_gone_back(self) -> bool:
        """The server's history ends before what we know."""
        page = await self._api.page_of(self._selection, lambda item: None, limit=1, timeout_s=10.0)
        if not is_before(page.version, self._version):
            return False
        log.warning(
            "%s: the API server has gone back from %s to %s (restored from a backup?): listing again",
            self._selection.resource,
            self._version,
            page.version,
        )
        return True

    def _stand(self, fault: str) -> None:
        was, self.standing.fault = self.standing.fault, fault
        if bool(fault) == bool(was):
            return
        self.standing.since = time.monotonic()
        if fault:
            log.warning("not following %s: %s", self._selection.resource, fault)
        else:
            log.info("following %s again", self._selection.resource)


def is_before(version: str, other: str) -> bool:
    """One resourceVersion is earlier than another; False if they are no numbers."""
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)
