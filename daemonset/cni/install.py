"""Puts the plugin onto the node and into its network's configuration, keeps it there, and takes it away.

The runtime takes the first file (by name) of the configuration directory that it can read; our entry stands last in
that file's list. Other installers rewrite their file at any time, so the directory is watched. A lone `.conf` becomes a
list beside it, under the same name with `list` appended, and is kept as `.conf.before-culvert`. Every write is a new
file renamed over the old one. Nothing is taken away when an agent ends: a pod that starts while none runs must not
start outside of the mesh. Only `remove` takes away, and says what it did.
"""

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemonset.watch import DirectoryWatch

log = logging.getLogger(__name__)

TYPE = "culvert-cni"
KEPT = ".before-culvert"
SUFFIXES = (".conf", ".conflist", ".json")
MAX_FILE_BYTES = 1 << 20
RESYNC_S = 10.0
SETTLE_S = 0.05

Document = dict[str, Any]


class NotInstalled(Exception):
    """There is nothing to stand in, or it cannot be changed; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are, as this process sees them; `socket` as the node's runtime sees it."""

    plugin: Path  # what is installed
    bin_dir: Path
    conf_dir: Path
    socket: Path
    exclude: tuple[str, ...] = ()

    @property
    def entry(self) -> Document:
        """Our element of the list."""
        return {"type": TYPE, "socket": str(self.socket), "exclude": list(self.exclude)}


class Installer:
    """Keeps the plugin installed; `fault` says why it is not, empty: it is."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.fault = "not installed yet"

    async def run(self) -> None:
        """Install, and again whenever the directory changes, for as long as the task lives."""
        while True:
            try:
                with DirectoryWatch([self._places.conf_dir]) as watch:
                    while True:
                        self._repair()
                        if await watch.changed(RESYNC_S):
                            await asyncio.sleep(SETTLE_S)
                            watch.drain()
            except OSError as error:  # the directory is not there yet, or not any more
                self._say(f"{self._places.conf_dir}: {error.strerror}")
                await asyncio.sleep(1.0)

    def _repair(self) -> None:
        try:
            if done := install(self._places):
                log.info("CNI: %s", done)
            self._say("")
        except (NotInstalled, OSError) as error:
            self._say(str(error))

    def _say(self, fault: str) -> None:
        if fault and fault != self.fault:
            log.warning("the CNI plugin is not in place: %s", fault)
        self.fault = fault


def install(places: Places) -> str:
    """Bring plugin and entry into place; what was done, empty: all was there. Raises NotInstalled and OSError."""
    done = []
    if _copy(places.plugin, places.bin_dir / TYPE):
        done.append(f"{places.bin_dir / TYPE} written")
    path, document = _primary(places.conf_dir)
    wanted = _with_entry(path, document, places.entry)
    if wanted != document:
        target = path if path.suffix == ".conflist" or "plugins" in document else path.with_name(path.name + "list")
        _replace(target, wanted)
        if target != path:
            path.rename(path.with_name(path.name + KEPT))
        done.append(f"{TYPE} added to {target}")
    return ", ".join(done)


def remove(places: Places) -> list[str]:
    """Take the entry out of every file and the plugin away; what was done. Raises OSError."""
    done = []
    for path in _candidates(places.conf_dir):
        try:
            document = _load(path)
        except NotInstalled:
            continue  # then there is no entry of ours in it
        plugins = document.get("plugins")
        if not isinstance(plugins, list) or not any(_is_ours(entry) for entry in plugins):
            continue
        done.append(_remove_from(path, document))
    if (binary := places.bin_dir / TYPE).exists():
        binary.unlink()
        done.append(f"{binary} removed")
    return done


def _remove_from(path: Path, document: Document) -> str:
    rest = [entry for entry in document["plugins"] if not _is_ours(entry)]
    before = path.with_name(path.name.removesuffix("list") + KEPT)
    if before.exists():
        before.rename(before.with_name(before.name.removesuffix(KEPT)))
        path.unlink()
        return f"{path} removed, {before.name.removesuffix(KEPT)} put back"
    _replace(path, document | {"plugins": rest})
    return f"{TYPE} taken out of {path}"


def _with_entry(path: Path, document: Document, entry: Document) -> Document:
    plugins = document.get("plugins")
    if plugins is None:
        if not document.get("type"):
            raise NotInstalled(f"{path} is neither a plugin nor a list of plugins")
        inner = {key: value for key, value in document.items() if key not in ("cniVersion", "name")}
        named = {key: document[key] for key in ("cniVersion", "name") if key in document}
        return named | {"plugins": [inner, entry]}
    if not isinstance(plugins, list) or not plugins:
        raise NotInstalled(f"{path} has no list of plugins")
    return document | {"plugins": [other for other in plugins if not _is_ours(other)] + [entry]}


def _primary(directory: Path) -> tuple[Path, Document]:
    """The file that the runtime goes by."""
    faults = []
    for path in _candidates(directory):
        try:
            document = _load(path)
            if document.get("plugins") or document.get("type"):
                return path, document
        except NotInstalled as fault:
            faults.append(str(fault))
    raise NotInstalled("; ".join(faults) or f"{directory} has no network configuration yet")


def _candidates(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _load(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:  # perhaps half written: looked at again with the next change
        raise NotInstalled(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise NotInstalled(f"{path} is not an object")
    return document


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("type") == TYPE


def _copy(source: Path, target: Path) -> bool:
    """Whether it had to be copied."""
    content = source.read_bytes()
    try:
        if target.read_bytes() == content and target.stat().st_mode & 0o111 == 0o111:
            return False
    except FileNotFoundError:
        pass
    _write(target, content, 0o755)
    return True


def _replace(target: Path, document: Document) -> None:
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    _write(target, json.dumps(document, indent=2).encode() + b"\n", mode)


def _write(target: Path, content: bytes, mode: int) -> None:
    # The name has no suffix that a runtime reads, and differs for two agents that do it at once.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
