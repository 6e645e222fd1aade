"""How a ztunnel comes to serve: at once when it is alone, else when the one before it has handed over.

The order matters: configuration and certificates first, because what is accepted without them has to wait; then the
pods, from the agent's hand; then the word that lets the other one stop. After that this one is the one before the next.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mesh.identity import Identity
from ztunnel.inpod.agent_link import AgentLink
from ztunnel.inpod.handover import Predecessor, Serving, Successors

log = logging.getLogger(__name__)

# A certificate that is not there by then is no reason to let the one before serve for ever.
CERTIFICATES_S = 10.0


class Identities(Protocol):
    """Certificates, as far as they can be had before the pods are."""

    def acquire(self, identity: Identity) -> None:
        """Have one ready."""

    def release(self, identity: Identity) -> None:
        """One user less."""

    @property
    def pending(self) -> list[Identity]:
        """Those without a certificate yet."""


class Takeover:
    """One process's way into service, and out of it when the next one comes."""

    def __init__(
        self,
        socket: Path,
        agent: AgentLink,
        pods: Serving,
        identities: Identities,
        identity_of: Callable[[str, str], Identity],
        retired: Callable[[bool], None],
    ) -> None:
        self._socket = socket
        self._agent = agent
        self._identities = identities
        self._identity_of = identity_of
        self._retired = retired
        self._successors = Successors(socket, pods, self._retire)
        self._predecessor: Predecessor | None = None
        self._held: Sequence[Identity] = ()  # acquired before their pods are there
        self.is_done = False  # nobody before us serves any more
        self.stands_by = False  # ready, and waiting for the end of one that hands nothing over
        self.is_retired = False

    async def look(self) -> bool:
        """Whether another ztunnel serves this node; call once, before `run`."""
        self._predecessor = await Predecessor.find(self._socket)
        self.is_done = self._predecessor is None
        self._agent.inherit = self._predecessor.take if self._predecessor is not None else None
        return not self.is_done

    async def run(self, synced: asyncio.Event) -> None:
        """Come into service and wait for the next one, for as long as the task lives."""
        if self._predecessor is not None:
            await self._take_over(self._predecessor, synced)
        await self._successors.run()

    async def serve_pods(self, synced: asyncio.Event) -> None:
        """Take pods from the agent, when their time has come."""
        if self._predecessor is not None:
            await self._prepare(self._predecessor, synced)
        await self._agent.run()

    def close(self) -> None:
        """Let the one before know that we end."""
        if self._predecessor is not None:
            self._predecessor.close()

    async def _prepare(self, before: Predecessor, synced: asyncio.Event) -> None:
        """Wait for what a pod needs to be served without a pause."""
        if not before.is_able:
            self.stands_by = True
            await before.gone()
            self.stands_by = False
            return
        await synced.wait()
        self._held = list(self._usable(before.identities))
        for identity in self._held:
            self._identities.acquire(identity)
        try:
            async with asyncio.timeout(CERTIFICATES_S):
                while set(self._held) & set(self._identities.pending):  # noqa: ASYNC110 - the CA's answers have none
                    await asyncio.sleep(0.02)
        except TimeoutError:
            missing = set(self._held) & set(self._identities.pending)
            log.warning("taking over without certificates for %s", ", ".join(sorted(map(str, missing))))

    def _usable(self, identities: Sequence[tuple[str, str]]) -> Iterator[Identity]:
        for namespace, account in identities:
            try:
                yield self._identity_of(namespace, account)
            except ValueError as error:  # then its pods cannot be served either, which is said there
                log.debug("identity of %s/%s: %s", namespace, account, error)

    async def _take_over(self, before: Predecessor, synced: asyncio.Event) -> None:
        if before.is_able:
            await synced.wait()
            await self._agent.snapshot.wait()
            await before.taken()
            log.info("serving in the place of the ztunnel before this one")
            for identity in self._held:  # the pods hold theirs by now
                self._identities.release(identity)
            self._held = ()
        else:
            await before.gone()
        self.is_done = True

    def _retire(self, is_retired: bool) -> None:
        self.is_retired = is_retired
        self._agent.hold(is_held=is_retired)
        self._retired(is_retired)
