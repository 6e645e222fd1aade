import asyncio
from pathlib import Path

from lab import wire
from lab.span.overlay import Overlay

FABRIC = Path("/run/netns/x")


def test_only_what_changes_is_told_to_the_kernel_and_the_own_address_never(monkeypatch):
    told = []
    monkeypatch.setattr(wire, "flood", lambda _, added, gone: told.append((set(added), set(gone))))

    async def reach():
        overlay = Overlay(FABRIC, 7, "192.0.2.1")
        await overlay.reach(["192.0.2.1", "192.0.2.2"])
        await overlay.reach(["192.0.2.2"])
        await overlay.reach(["192.0.2.3"])

    asyncio.run(reach())
    assert told == [({"192.0.2.2"}, set()), ({"192.0.2.3"}, {"192.0.2.2"})]
