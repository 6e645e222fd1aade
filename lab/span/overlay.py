"""The fabric between machines: one VXLAN port of the fabric's bridge, flooded to the machines that have joined.

The port's outer side stays in the namespace of the machine, its inner side lies in the fabric: it goes with the fabric,
also when the supervisor was killed.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from lab import wire


class Overlay:
    """Owns the port and the list of machines behind it; one writer, the supervisor's loop."""

    def __init__(self, fabric: Path, network_id: int, own_address: str) -> None:
        self._fabric = fabric
        self._network_id = network_id
        self.own_address = own_address
        self._peers: set[str] = set()
        self._lock = asyncio.Lock()

    async def make(self) -> None:
        """The port; raises OSError when this machine has no VXLAN."""
        await asyncio.to_thread(wire.make_overlay, self._fabric, self._network_id, self.own_address)

    async def reach(self, peers: Iterable[str]) -> None:
        """Frames for everybody go to these machines from now on."""
        wanted = set(peers) - {self.own_address}
        async with self._lock:
            added, gone = wanted - self._peers, self._peers - wanted
            if added or gone:
                await asyncio.to_thread(wire.flood, self._fabric, added, gone)
                self._peers = wanted
