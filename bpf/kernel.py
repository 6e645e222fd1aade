"""bpf(2), as far as Culvert uses it: maps, pins, links, programs. No library, no bcc.

Each function makes one system call and raises OSError with the name of the step when it fails. Descriptors that are
returned belong to the caller.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_ATTR_SIZE = 152  # of union bpf_attr in Linux 6.1; the kernel accepts a longer one when the rest is zero

_libc = ctypes.CDLL(None, use_errno=True)

MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY, PROG_LOAD, OBJ_PIN, OBJ_GET = 1, 2, 3, 4, 5, 6, 7
PROG_TEST_RUN, GET_INFO, PROG_QUERY = 10, 15, 16
MAP_LOOKUP_BATCH, LINK_CREATE, LINK_UPDATE, LINK_DETACH = 24, 28, 29, 34

LINK_CGROUP = 3  # enum bpf_link_type


def call(command: int, attribute: bytes | bytearray, step: str) -> int:
    """One bpf(2) call. `attribute` is padded with zeros; what the kernel writes comes back in a bytearray."""
    buffer = ctypes.create_string_buffer(bytes(attribute), max(_ATTR_SIZE, len(attribute)))
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"{step}: bpf(2) has no known number on {platform.machine()}")
    result: int = _libc.syscall(number, command, buffer, len(buffer))
    code = ctypes.get_errno()
    if isinstance(attribute, bytearray):
        attribute[:] = buffer.raw[: len(attribute)]
    if result < 0:
        raise OSError(code, f"{step}: {os.strerror(code)}")
    return result


def _pointer(data: bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    if data is None:
        return 0
    if isinstance(data, bytes):
        return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    return ctypes.addressof(data)


@dataclass(frozen=True, slots=True)
class MapShape:
    """What must be equal for a map to be kept."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A loaded program as the kernel describes it."""

    id: int
    type: int
    tag: str
    name: str
    xlated_instructions: int
    verified_instructions: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A link: which program it runs and on what.

    `target` is a cgroup id, a netns inode or the index of a network link; the last two are 0 once it is gone.
    """

    id: int
    type: int
    program_id: int
    target: int
    attach_type: int


def open_pin(path: Path) -> int:
    """A descriptor of a pinned object."""
    name = os.fsencode(path)
    return call(OBJ_GET, struct.pack("=QII", _pointer(name), 0, 0), f"open pin {path}")


def pin(fd: int, path: Path) -> None:
    """Pin an object; the path must not exist."""
    name = os.fsencode(path)
    call(OBJ_PIN, struct.pack("=QII", _pointer(name), fd, 0), f"pin {path}")


def map_lookup(fd: int, key: bytes, value_size: int, flags: int = 0) -> bytes | None:
    """The value of a key, or None. Per-CPU maps need room for all possible CPUs."""
    value = ctypes.create_string_buffer(value_size)
    attribute = struct.pack("=IIQQQ", fd, 0, _pointer(key), _pointer(value), flags)
    try:
        call(MAP_LOOKUP, attribute, "map lookup")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Put a value; raises OSError with E2BIG when the map is full."""
    call(MAP_UPDATE, struct.pack("=IIQQQ", fd, 0, _pointer(key), _pointer(value), flags), "map update")


def map_delete(fd: int, key: bytes) -> bool:
    """Remove a key; False when it was not there."""
    try:
        call(MAP_DELETE, struct.pack("=IIQQQ", fd, 0, _pointer(key), 0, 0), "map delete")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_keys(fd: int, key_size: int) -> list[bytes]:
    """All keys of a map without batches. A concurrent deletion may throw the walk back to its start, a few times."""
    found: dict[bytes, None] = {}
    key: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    restarts = 0
    while restarts < 16:
        attribute = struct.pack("=IIQQQ", fd, 0, _pointer(key), _pointer(following), 0)
        try:
            call(MAP_NEXT_KEY, attribute, "map walk")
        except OSError as error:
            if error.errno == errno.ENOENT:
                break
            raise
        key = following.raw
        restarts += next(iter(found), None) == key
        found[key] = None
    return list(found)


def map_batch(fd: int, key_size: int, value_size: int, size: int = 512) -> list[tuple[bytes, bytes]]:
    """All entries of a hash, read in batches. A batch grows when one bucket holds more than fits."""
    entries: list[tuple[bytes, bytes]] = []
    token_in: ctypes.Array[ctypes.c_char] | None = None
    while True:
        keys = ctypes.create_string_buffer(key_size * size)
        values = ctypes.create_string_buffer(value_size * size)
        token_out = ctypes.create_string_buffer(max(key_size, 4))
        # in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags
        attribute = bytearray(
            struct.pack(
                "=QQQQIIQQ",
                _pointer(token_in),
                _pointer(token_out),
                _pointer(keys),
                _pointer(values),
                size,
                fd,
                0,
                0,
            )
        )
        is_last = False
        try:
            call(MAP_LOOKUP_BATCH, attribute, "map batch lookup")
        except OSError as error:
            if error.errno == errno.ENOSPC:
                size *= 2
                continue
            if error.errno != errno.ENOENT:
                raise
            is_last = True
        count: int = struct.unpack_from("=I", attribute, 32)[0]
        for index in range(count):
            key = keys.raw[index * key_size : (index + 1) * key_size]
            entries.append((key, values.raw[index * value_size : (index + 1) * value_size]))
        if is_last:
            return entries
        token_in = token_out


def _info(fd: int, step: str) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    call(GET_INFO, struct.pack("=IIQ", fd, len(buffer), _pointer(buffer)), step)
    return buffer.raw


def map_shape(fd: int) -> MapShape:
    """Type, sizes and flags of a map."""
    kind, _, key_size, value_size, max_entries, flags = struct.unpack_from("=6I", _info(fd, "map info"))
    return MapShape(kind, key_size, value_size, max_entries, flags)


def map_id(fd: int) -> int:
    """The kernel's number of a map."""
    number: int = struct.unpack_from("=2I", _info(fd, "map info"))[1]
    return number


def program_info(fd: int) -> ProgramInfo:
    """Tag and size of a program."""
    buffer = ctypes.create_string_buffer(232)
    call(GET_INFO, struct.pack("=IIQ", fd, len(buffer), _pointer(buffer)), "program info")
    kind, number, tag, _, xlated = struct.unpack_from("=II8sII", buffer.raw)
    name = buffer.raw[64:80].split(b"\0")[0].decode()
    verified = struct.unpack_from("=I", buffer.raw, 216)[0]
    return ProgramInfo(number, kind, tag.hex(), name, xlated // 8, verified)


def link_info(fd: int) -> LinkInfo:
    """The program and the target of a link."""
    raw = _info(fd, "link info")
    kind, number, program = struct.unpack_from("=3I", raw)
    if kind == LINK_CGROUP:
        target, attach_type = struct.unpack_from("=QI", raw, 16)
    else:
        target, attach_type = struct.unpack_from("=II", raw, 16)
    return LinkInfo(number, kind, program, target, attach_type)


def link_create(program_fd: int, target: int, attach_type: int, flags: int = 0) -> int:
    """Attach a program by a link, which ends with its last descriptor unless pinned.

    `target` is a descriptor, for tcx the index of a network link in the caller's namespace.
    """
    return call(LINK_CREATE, struct.pack("=IIII", program_fd, target, attach_type, flags), "create link")


def link_update(link_fd: int, program_fd: int) -> None:
    """Swap the program that a link runs, without a moment in which none runs."""
    call(LINK_UPDATE, struct.pack("=IIII", link_fd, program_fd, 0, 0), "update link")


def link_remove(path: Path) -> bool:
    """Detach a pinned link and remove its pin; False when there was none.

    Unpinning alone detaches too, but only some time later: the kernel lets go of bpffs inodes after a grace period.
    """
    try:
        fd = open_pin(path)
    except FileNotFoundError:
        return False
    try:
        call(LINK_DETACH, struct.pack("=I", fd), f"detach {path}")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not a link, or one whose target is gone
            raise
    finally:
        os.close(fd)
    path.unlink()
    return True


def attached_programs(target_fd: int, attach_type: int) -> list[int]:
    """Ids of the programs that run at a cgroup or netns, in order."""
    ids = (ctypes.c_uint32 * 64)()
    attribute = bytearray(struct.pack("=IIIIQII", target_fd, attach_type, 0, 0, ctypes.addressof(ids), len(ids), 0))
    call(PROG_QUERY, attribute, "query programs")
    count: int = struct.unpack_from("=I", attribute, 24)[0]
    return list(ids[:count])


class Rejected(Exception):
    """The verifier refused a program; `log` is what it said."""

    def __init__(self, log: str) -> None:
        lines = log.strip().splitlines()
        super().__init__(lines[-1] if lines else "program refused")
        self.log = log


def load_program(
    kind: int, attach_type: int, instructions: bytes, log_level: int = 1, name: str = "culvert"
) -> tuple[int, str]:
    """Load a program and return its descriptor and the verifier's log; raises Rejected."""
    log = ctypes.create_string_buffer(1 << 20 if log_level else 1)
    licence = b"GPL"
    attribute = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        len(instructions) // 8,
        _pointer(instructions),
        _pointer(licence),
        log_level,
        len(log) if log_level else 0,
        _pointer(log) if log_level else 0,
        0,
        0,
        name.encode()[:15],
        0,
        attach_type,
    )
    try:
        fd = call(PROG_LOAD, attribute, f"load program {name}")
    except OSError as error:
        if error.errno == errno.EPERM and not log.value:
            raise
        raise Rejected(log.value.decode(errors="replace")) from error
    return fd, log.value.decode(errors="replace")


def test_run(program_fd: int, context: bytes) -> int:
    """Run a program once on a context (BPF_PROG_TEST_RUN) and return its verdict."""
    attribute = bytearray(80)
    struct.pack_into("=I", attribute, 0, program_fd)
    struct.pack_into("=I", attribute, 40, len(context))
    struct.pack_into("=Q", attribute, 48, _pointer(context))
    call(PROG_TEST_RUN, attribute, "test run")
    verdict: int = struct.unpack_from("=I", attribute, 4)[0]
    return verdict
