"""Kinds that a cluster may or may not have: which are defined now, and under which version they are served.

A kind counts as gone only when its CustomResourceDefinition is seen to be gone. A collection that answers "not found"
while its definition stands is a server that is not ready for it (yet, or any more), and nothing is taken back.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from mesh.kube.api import Api
from mesh.kube.resources import DEFINITIONS, Resource


class Definitions:
    """The names of all definitions. Implements the Follower of their collection."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}
        self._is_listed = asyncio.Event()
        self._moved = asyncio.Event()

    def listed(self, items: Sequence[tuple[str, str]]) -> None:
        """Everything there is, as name and resourceVersion."""
        self._versions = dict(items)
        self._is_listed.set()
        self._notify()

    def changed(self, items: Sequence[tuple[bool, tuple[str, str]]]) -> None:
        """Definitions as they are now."""
        for is_there, (name, version) in items:
            if is_there:
                self._versions[name] = version
            else:
                self._versions.pop(name, None)
        self._notify()

    async def version(self, name: str) -> str | None:
        """The definition as it stands, None if there is none; waits for the first list."""
        await self._is_listed.wait()
        return self._versions.get(name)

    async def change(self, name: str, known: str | None) -> None:
        """Wait until the definition is another than the one that is known."""
        while self._versions.get(name) == known:
            await self._moved.wait()

    def _notify(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def name_and_version(document: Any) -> tuple[str, str]:
    """What `Definitions` keeps of a document."""
    metadata = document["metadata"]
    return str(metadata["name"]), str(metadata.get("resourceVersion", ""))


async def served(api: Api, group: str, plural: str, known: Sequence[str]) -> Resource | None:
    """The kind under the first known version that is served; None if none of them is. Raises ApiFault."""
    document = await api.get(DEFINITIONS, f"{plural}.{group}")
    versions = (document.get("spec") or {}).get("versions") or ()
    offered = {one.get("name") for one in versions if isinstance(one, dict) and one.get("served")}
    return next((Resource(group, version, plural) for version in known if version in offered), None)
