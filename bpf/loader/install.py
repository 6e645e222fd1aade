"""Putting a set in place, swapping its programs, taking it away. All of it under the node's lock.

A new set is made in a staging directory, attached by links that end with this process until they are pinned, and moved
into place by one rename. An upgrade swaps the programs of the links that are there, so that no connection meets a
moment without them, and goes back to the old ones when a step fails. Whatever a killed loader leaves in its staging
directory is removed by the next one.
"""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bpf import cgroup, kernel
from bpf.layout import SCHEMA, CEdge, CEdgeStats, Direction
from bpf.loader import build
from bpf.loader.source import fingerprint
from bpf.loader.specs import FIGURES, MAPS, PROGRAMS, ProgramSpec
from bpf.lock import changing
from bpf.manifest import BadManifest, Manifest, boot_id
from bpf.paths import NodePaths
from bpf.plane import possible_cpus

LINK_TO_GONE_TARGET = (errno.ENOLINK, errno.EINVAL)


class CannotInstall(Exception):
    """The step cannot be done; nothing was changed. The message says why and what helps."""


def load(paths: NodePaths) -> str:
    """Make sure that the node runs this version's set. Returns what was done, in a word."""
    return _converge(paths, is_forced=False)


def upgrade(paths: NodePaths) -> str:
    """Swap the programs of the set that is in place, also for equal ones."""
    if not paths.set.is_dir():
        raise CannotInstall(f"nothing is loaded for node {paths.key}: use load")
    return _converge(paths, is_forced=True)


def unload(paths: NodePaths) -> bool:
    """Detach and remove all of the node's set, however broken it is. False when there was nothing."""
    with changing(paths):
        found = paths.node.exists()
        for directory in paths.node.glob("*"):
            _detach(directory)
        remove_tree(paths.node)
        paths.manifest.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: other nodes live beside us
            paths.node.parent.rmdir()
    return found


def _detach(directory: Path) -> None:
    """End every link of a set or a staging directory: capture first, then what it relies on."""
    order = {spec.name: position for position, spec in enumerate(PROGRAMS)}
    for link in sorted(directory.glob("links/*"), key=lambda path: -order.get(path.name, 0)):
        kernel.link_remove(link)
    for link in sorted(directory.glob("pods/*/*")):  # the guard before what steers
        kernel.link_remove(link)


def remove_tree(directory: Path) -> None:
    """Remove a directory of pins. Objects end with their last pin and descriptor."""
    if not directory.is_dir():
        return
    for root, names, files in os.walk(directory, topdown=False):
        for name in files:
            (Path(root) / name).unlink(missing_ok=True)
        for name in names:
            (Path(root) / name).rmdir()
    directory.rmdir()


def _converge(paths: NodePaths, is_forced: bool) -> str:
    flags = build.flags()
    source = fingerprint(flags)
    with changing(paths), ExitStack() as stack:
        root = cgroup.open_root()
        stack.callback(os.close, root)
        before = _what_is_there(paths)
        if before is not None and not is_forced and before.source == source and _is_intact(paths, before, root):
            return "unchanged"
        staging = stack.enter_context(_staging(paths))
        if paths.set.is_dir():
            _stage_kept_maps(paths, staging)
        built = build.build(staging / "maps", flags)
        _stage_programs(built, staging)
        _seed(staging / "maps")
        manifest = _describe(paths, source, built, staging / "maps")
        if paths.set.is_dir():
            _swap(paths, staging, built, root)
            manifest.write(paths.manifest)
            return "upgraded"
        manifest.write(paths.manifest)
        try:
            _attach_all(staging, built, root)  # nothing slow between the first pinned link and the rename
            staging.rename(paths.set)
        except BaseException:
            paths.manifest.unlink()
            raise
        return "loaded"


def _what_is_there(paths: NodePaths) -> Manifest | None:
    """The manifest of the set in place. A set of a former boot, or of a schema we do not know, does not stay."""
    for leftover in paths.node.glob("staging-*"):
        _detach(leftover)
        remove_tree(leftover)
    for other in paths.node.glob("v*"):
        if other != paths.set:
            raise CannotInstall(
                f"{other} holds a set of another schema than {SCHEMA}: its maps cannot be kept. "
                "Unload it (enrolled pods leave the mesh meanwhile), then load"
            )
    try:
        manifest = Manifest.read(paths.manifest)
    except BadManifest:
        manifest = None  # the pins tell enough: all programs are swapped
    if manifest is not None and manifest.boot != boot_id():
        _detach(paths.set)
        remove_tree(paths.set)  # cookies restart at boot: whatever the maps say is about other namespaces
        return None
    return manifest


def _is_intact(paths: NodePaths, manifest: Manifest, root: int) -> bool:
    """Is every program of the manifest attached to the root, every map and program pinned?"""
    if any(not (paths.maps / name).exists() for name in MAPS):
        return False
    for spec in PROGRAMS:
        try:
            program = _program_at(paths.programs / spec.name)
            if program.tag != manifest.tags.get(spec.name):
                return False
            if spec.at_root and not _stands(paths.links / spec.name, root, program.id):
                return False
        except OSError:
            return False
    return True


def _stands(path: Path, root: int, program: int | None = None) -> bool:
    """Is there a link to the root (not to some other cgroup, perhaps a dead one), and does it run the program?"""
    if not path.exists():
        return False
    link = _link_at(path)
    return link.target == os.fstat(root).st_ino and program in (None, link.program_id)


def _program_at(path: Path) -> kernel.ProgramInfo:
    fd = kernel.open_pin(path)
    try:
        return kernel.program_info(fd)
    finally:
        os.close(fd)


def _link_at(path: Path) -> kernel.LinkInfo:
    fd = kernel.open_pin(path)
    try:
        return kernel.link_info(fd)
    finally:
        os.close(fd)


@contextmanager
def _staging(paths: NodePaths) -> Iterator[Path]:
    directory = paths.node / f"staging-{os.getpid()}"
    try:
        for part in ("maps", "progs", "links", "pods"):
            _make(directory / part)
        yield directory
    finally:
        _detach(directory)
        remove_tree(directory)
        if paths.node.is_dir() and not any(paths.node.iterdir()):
            paths.node.rmdir()


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileNotFoundError:  # another node's unload removed the parent that we all share, and may not again
        directory.mkdir(parents=True)


def _stage_kept_maps(paths: NodePaths, staging: Path) -> None:
    """Pin the maps that stay a second time, where BCC will find them."""
    for name, wanted in MAPS.items():
        try:
            fd = kernel.open_pin(paths.maps / name)
        except FileNotFoundError:
            if name in FIGURES:
                continue
            raise CannotInstall(f"map {name} of node {paths.key} is gone: unload and load again") from None
        try:
            shape = kernel.map_shape(fd)
            if shape == wanted:
                kernel.pin(fd, staging / "maps" / name)
            elif name not in FIGURES:
                raise CannotInstall(
                    f"map {name} has another shape than this version's ({shape}, now {wanted}): "
                    "unload (enrolled pods leave the mesh meanwhile), then load"
                )
        finally:
            os.close(fd)


def _stage_programs(built: build.Built, staging: Path) -> None:
    for spec in PROGRAMS:
        kernel.pin(built.fds[spec.name], staging / "progs" / spec.name)


def _seed(maps: Path) -> None:
    """The edge from unknown to unknown takes what finds no room, so that it must be there from the start."""
    fd = kernel.open_pin(maps / "edges")
    try:
        zeros = bytes(len(bytes(CEdgeStats())) * possible_cpus())
        for direction in (Direction.OUTBOUND, Direction.INBOUND, Direction.TUNNEL):
            key = bytes(CEdge(direction=direction))
            if kernel.map_lookup(fd, key, len(zeros)) is None:
                kernel.map_update(fd, key, zeros)
    finally:
        os.close(fd)


def _describe(paths: NodePaths, source: str, built: build.Built, maps: Path) -> Manifest:
    shapes = {}
    for name in MAPS:
        fd = kernel.open_pin(maps / name)
        shapes[name] = kernel.map_shape(fd)
        os.close(fd)
    return Manifest(
        key=paths.key,
        schema=SCHEMA,
        source=source,
        boot=boot_id(),
        kernel=os.uname().release,
        tags={name: kernel.program_info(fd).tag for name, fd in built.fds.items()},
        shapes=shapes,
    )


def _attach_all(staging: Path, built: build.Built, root: int) -> None:
    """Links that end with this process, pinned only when all of them exist."""
    links: dict[str, int] = {}
    try:
        for spec in PROGRAMS:
            if spec.at_root:
                links[spec.name] = _link(built.fds[spec.name], root, spec.attach_type, spec.name)
        _verify(built, root)
        for name, fd in links.items():
            kernel.pin(fd, staging / "links" / name)
    finally:
        for fd in links.values():
            os.close(fd)


def _link(program: int, root: int, attach_type: int, name: str) -> int:
    try:
        return kernel.link_create(program, root, attach_type)
    except PermissionError as error:
        raise CannotInstall(
            f"program {name} cannot be attached at the cgroup root: another one stands there exclusively, "
            "or this process lacks CAP_NET_ADMIN"
        ) from error


def _verify(built: build.Built, root: int) -> None:
    """The kernel's own answer, not ours, to what runs at the root."""
    for spec in PROGRAMS:
        if spec.at_root:
            wanted = kernel.program_info(built.fds[spec.name]).id
            if wanted not in kernel.attached_programs(root, spec.attach_type):
                raise CannotInstall(f"program {spec.name} is linked but does not run at the cgroup root")


class _Swap:
    """A change of several links that can be taken back. The descriptors live as long as `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._made: list[Path] = []
        self._former: list[tuple[int, int]] = []  # link, the program it ran

    def update(self, path: Path, program: int, former: Path) -> None:
        """Give a link its new program. `former` is where the old one is pinned."""
        link = self._opened(path)
        try:
            kernel.link_update(link, program)
        except OSError as error:
            if error.errno in LINK_TO_GONE_TARGET and kernel.link_info(link).target == 0:
                return  # of a pod that is gone; the agent removes its link
            raise
        if former.exists():
            self._former.append((link, self._opened(former)))

    def make(self, path: Path, program: int, root: int, spec: ProgramSpec) -> None:
        """Make a link that is missing, or that is not to the root."""
        link = _link(program, root, spec.attach_type, spec.name)
        self._stack.callback(os.close, link)
        path.parent.mkdir(exist_ok=True)
        kernel.link_remove(path)
        kernel.pin(link, path)
        self._made.append(path)

    def take_back(self) -> None:
        """Every link runs what it ran before."""
        for link, program in reversed(self._former):
            kernel.link_update(link, program)
        for path in self._made:
            kernel.link_remove(path)

    def _opened(self, path: Path) -> int:
        fd = kernel.open_pin(path)
        self._stack.callback(os.close, fd)
        return fd


def _swap(paths: NodePaths, staging: Path, built: build.Built, root: int) -> None:
    """Give every link its new program, or, when one fails, back its old one; then move the pins into place."""
    with ExitStack() as stack:
        swap = _Swap(stack)
        try:
            for spec in PROGRAMS:
                program, former = built.fds[spec.name], paths.programs / spec.name
                for path in _links_of(paths, spec):
                    if spec.at_root and not _stands(path, root):
                        swap.make(path, program, root, spec)
                    else:
                        swap.update(path, program, former)
            _verify(built, root)
        except BaseException:
            swap.take_back()
            raise
    _move_pins(paths, staging)


def _links_of(paths: NodePaths, spec: ProgramSpec) -> list[Path]:
    return [paths.links / spec.name] if spec.at_root else sorted(paths.pods.glob(f"*/{spec.name}*"))


def _move_pins(paths: NodePaths, staging: Path) -> None:
    paths.programs.mkdir(exist_ok=True)
    paths.maps.mkdir(exist_ok=True)
    paths.pods.mkdir(exist_ok=True)
    known = {spec.name for spec in PROGRAMS}
    for name in known:
        (staging / "progs" / name).rename(paths.programs / name)
    for name in MAPS:
        (staging / "maps" / name).rename(paths.maps / name)
    for directory in (paths.programs, paths.links):
        for pin in directory.iterdir():
            if pin.name not in known:  # a program that this version no longer has
                pin.unlink() if directory == paths.programs else kernel.link_remove(pin)


def enrolled(paths: NodePaths) -> int:
    """How many pods would leave the mesh if the set were unloaded."""
    try:
        fd = kernel.open_pin(paths.maps / "pods")
    except OSError:
        return 0
    try:
        entries = kernel.map_batch(fd, 8, MAPS["pods"].value_size)
        return sum(1 for _, raw in entries if struct.unpack_from("=I", raw, 32)[0])
    finally:
        os.close(fd)
