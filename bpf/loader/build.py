"""Compiling and loading through BCC. The only module that imports it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf import features, kernel
from bpf.loader.source import HEADERS, assemble
from bpf.loader.specs import NO_EXPECTED_TYPE, PROGRAMS, ProgramSpec


class LoadFailed(Exception):
    """A program did not compile or did not load; the message says which and what helps."""


def flags() -> tuple[str, ...]:
    """What this kernel offers beyond what is required."""
    return ("-DCV_MPTCP",) if features.has_mptcp() else ()


@dataclass(frozen=True, slots=True)
class Built:
    """Loaded programs. The descriptors are BCC's and end with `module`."""

    module: Any
    fds: dict[str, int]

    def code(self, name: str) -> bytes:
        """The instructions of a program as the verifier got them."""
        instructions: bytes = self.module.dump_func(name.encode())
        return instructions


@contextmanager
def _kernel_source(directory: Path) -> Iterator[None]:
    """BCC takes the place of kernel headers from the environment only; it changes directory while it compiles."""
    name, before, here = "BCC_KERNEL_SOURCE", os.environ.get("BCC_KERNEL_SOURCE"), Path.cwd()
    os.environ[name] = str(directory)
    try:
        yield
    finally:
        os.chdir(here)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def build(maps: Path, compile_flags: tuple[str, ...]) -> Built:
    """Compile, and load every program. Maps that are pinned in `maps` are used, the others made and pinned there."""
    try:
        from bcc import BPF  # noqa: PLC0415 -- 65 MB that only this function needs
    except ImportError as error:
        raise LoadFailed(f"python3-bpfcc is not installed for this Python: {error}") from error
    with _kernel_source(HEADERS):
        try:
            module = BPF(text=assemble(maps).encode(), cflags=list(compile_flags))
        except Exception as error:
            raise LoadFailed(f"the programs do not compile, or their maps cannot be made: {error}") from error
    fds: dict[str, int] = {}
    for spec in PROGRAMS:
        fds[spec.name] = _load(module, spec)
    return Built(module, fds)


def _load(module: Any, spec: ProgramSpec) -> int:
    expected = spec.attach_type if spec.expects else NO_EXPECTED_TYPE
    try:
        fd: int = module.load_func(spec.name.encode(), spec.type, attach_type=expected).fd
    except Exception as error:
        raise LoadFailed(f"the kernel refuses program {spec.name}: {error}") from error
    return fd


@dataclass(frozen=True, slots=True)
class Figures:
    """What a program costs the verifier and the stack."""

    name: str
    instructions: int
    processed: int
    stack_bytes: int


def figures(built: Built, spec: ProgramSpec) -> Figures:
    """Load a program once more with the verifier's statistics switched on."""
    code = built.code(spec.name)
    expected = spec.attach_type if spec.expects else 0
    fd, log = kernel.load_program(spec.type, expected, code, log_level=4, name=spec.name)
    info = kernel.program_info(fd)
    os.close(fd)
    depth = 0
    for line in log.splitlines():
        if line.startswith("stack depth "):
            depth = max(int(part) for part in line.split()[2].split("+"))
    return Figures(spec.name, info.xlated_instructions, info.verified_instructions, depth)
