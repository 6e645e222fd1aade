"""A directory of Kubernetes manifests as a source: `*.yaml`, `*.yml`, `*.json`, nested, watched.

Every look at the directory compares it with the last one and yields a batch of what differs; a missed event is healed
by the next look, which comes at least every `RESCAN_S`. What is malformed is listed, and its last good version stays
in force. If an object stands in two files, the first by path counts and the other is listed.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from watchfiles import awatch

from controller.index.objects import Change, Object
from controller.sources.base import Fault, ObjectKey, Sink, Written
from controller.sources.documents import Manifest, keep_last_good, read_manifest

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")

# An editor's burst of writes and renames is one look; more would delay a policy change that somebody waits for.
_DEBOUNCE_MS, _STEP_MS = 50, 10
RESCAN_S = 5.0
MAX_FILE_BYTES = 64 << 20

_Stamp = tuple[int, int, int]


@dataclass(slots=True)
class _File:
    stamp: _Stamp
    manifest: Manifest


class ManifestDirectory:
    """The directory as it was at the last look. Used by one task at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, _File] = {}
        self._objects: dict[ObjectKey, Object] = {}
        self._reported_kinds: set[str] = set()
        self.faults: list[Fault] = []

    def look(self) -> list[Change]:
        """Read what changed; the objects that are different now."""
        try:
            found = dict(self._walk())
        except OSError as error:
            self.faults = [Fault(str(self._root), "", "", f"cannot be read, what it held stays: {error.strerror}")]
            return []
        for name in self._files.keys() - found.keys():
            del self._files[name]
        for name, stamp in found.items():
            known = self._files.get(name)
            if known is None or known.stamp != stamp:
                self._files[name] = _File(stamp, self._read(name, known))
        return self._difference(self._merge())

    def _walk(self) -> Iterable[tuple[str, _Stamp]]:
        def fail(error: OSError) -> None:
            raise error

        for folder, folders, names in os.walk(self._root, onerror=fail, followlinks=False):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    path = Path(folder, name)
                    try:
                        status = path.stat()
                    except FileNotFoundError:
                        continue
                    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                    yield str(path.relative_to(self._root)), stamp

    def _read(self, name: str, known: _File | None) -> Manifest:
        path = self._root / name
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"has more than {MAX_FILE_BYTES} bytes")
            manifest = read_manifest(path.read_text(encoding="utf-8"), name)
        except (OSError, ValueError) as error:
            manifest = Manifest(faults=[Fault(name, "", "", str(error))], has_unnamed_faults=True)
        if known is not None:
            keep_last_good(manifest, known.manifest)
        for kind in sorted(set(manifest.unknown_kinds.values()) - self._reported_kinds):
            self._reported_kinds.add(kind)
            log.info("%s: objects of %s are not used and skipped", name, kind)
        return manifest

    def _merge(self) -> dict[ObjectKey, Object]:
        merged: dict[ObjectKey, Object] = {}
        places: dict[ObjectKey, str] = {}
        faults: list[Fault] = []
        for name, file in sorted(self._files.items()):
            faults += file.manifest.faults
            for key, item in file.manifest.objects.items():
                if key in merged:
                    what = f"stands in {places[key]} too; that one counts"
                    faults.append(Fault(name, f"{key[0].value} {key[1]}", "", what))
                else:
                    merged[key], places[key] = item, name
        self.faults = faults
        return merged

    def _difference(self, now: dict[ObjectKey, Object]) -> list[Change]:
        before, self._objects = self._objects, now
        gone = [Change(kind, key, None) for kind, key in before.keys() - now.keys()]
        new = [Change(kind, key, item) for (kind, key), item in now.items() if before.get((kind, key)) != item]
        return [*gone, *new]


class FilesSource:
    """Feeds a sink from a directory until it is cancelled."""

    def __init__(self, root: Path, rescan_s: float = RESCAN_S) -> None:
        self._root = root
        self._rescan_ms = int(rescan_s * 1000)
        self._directory = ManifestDirectory(root)
        self._events = asyncio.Event()
        self._asked: list[asyncio.Future[None]] = []

    @property
    def written(self) -> Mapping[ObjectKey, Written]:
        """Nothing: a manifest has no status."""
        return {}

    async def catch_up(self) -> None:
        """Return when what the directory holds now has reached the sink: after a look that began after this call."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(done)
        self._events.set()
        await done

    async def run(self, sink: Sink) -> None:
        """Load, then follow the directory."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="manifests-watch")
            await asyncio.sleep(0)  # the watch stands before the first look, so that nothing falls between them
            await self._look(sink, is_first=True)
            while True:
                await self._events.wait()
                self._events.clear()
                asked, self._asked = self._asked, []
                await self._look(sink)
                for done in asked:
                    if not done.done():  # it is when who asked has given up
                        done.set_result(None)

    async def _watch(self) -> None:
        stop = asyncio.Event()
        watch = awatch(
            self._root,
            watch_filter=None,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            rust_timeout=self._rescan_ms,
            yield_on_timeout=True,
            stop_event=stop,
        )
        try:
            async for _ in watch:
                self._events.set()
        finally:
            stop.set()

    async def _look(self, sink: Sink, *, is_first: bool = False) -> None:
        before = self._directory.faults
        changes = await asyncio.to_thread(self._directory.look)
        for fault in self._directory.faults:
            if fault not in before:
                log.warning("manifest refused: %s", fault)
        if self._directory.faults != before or is_first:
            sink.set_faults(self._directory.faults)
        if changes or is_first:
            sink.apply(changes)
