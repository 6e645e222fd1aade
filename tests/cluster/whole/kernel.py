"""What the kernel has loaded, by its own numbers: nothing hides from these as a program that is not pinned would."""

import ctypes
import errno
import os
import struct

SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
BPF_LINK_GET_NEXT_ID = 31

_libc = ctypes.CDLL(None, use_errno=True)


def links() -> set[int]:
    """The ids of all BPF links of this machine."""
    found: set[int] = set()
    last = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=III", last, 0, 0), 12)
        if _libc.syscall(SYSCALL_BPF, BPF_LINK_GET_NEXT_ID, attributes, len(attributes)) != 0:
            number = ctypes.get_errno()
            if number != errno.ENOENT:
                raise OSError(number, os.strerror(number))
            return found
        _, last, _ = struct.unpack("=III", attributes.raw)
        found.add(last)
