"""What does the guard cost each packet that leaves a pod?

The program alone, run by the kernel on a made-up frame (BPF_PROG_TEST_RUN), a million times: segments of open
connections, which are nearly all that passes it, datagrams, and an opening that is dropped. Bulk traffic is one
packet per 64 KiB here.

Number that would change a decision (ADR 6, on by default): a segment above 200 ns.

    python -m bench.micro.guard --json bench/results/guard.json
"""

import argparse
import ctypes
import json
import os
import struct
from pathlib import Path
from typing import Any

from bench import machine
from bpf import kernel
from bpf.loader import build, install
from bpf.paths import BPFFS
from tests.bpf.packets import ACK, SYN, ip4, ip6, tcp

TURNS = 1_000_000
REPEATS = 5
V4, V6 = ("10.77.1.1", "10.77.9.1"), ("fd77:1::1", "fd77:9::1")
DURATION_AT = 36  # in the attribute of BPF_PROG_TEST_RUN, nanoseconds per turn

FRAMES = {
    "segment_v4": (0x0800, ip4(tcp(*V4, ACK), *V4)),
    "segment_v6": (0x86DD, ip6(tcp(*V6, ACK), *V6)),
    "datagram_v4": (0x0800, ip4(tcp(*V4), *V4, protocol=17)),
    "dropped_opening_v4": (0x0800, ip4(tcp(*V4, SYN), *V4)),
}


def turn_ns(program: int, frame: bytes) -> int:
    """The least of some repeats: everything above it is somebody else's time."""
    data = ctypes.create_string_buffer(frame, len(frame))
    best: list[int] = []
    for _ in range(REPEATS):
        attribute = bytearray(80)
        # program, verdict, sizes in and out, data in and out, turns, duration
        struct.pack_into("=IIIIQQII", attribute, 0, program, 0, len(frame), 0, ctypes.addressof(data), 0, TURNS, 0)
        kernel.call(kernel.PROG_TEST_RUN, attribute, "test run")
        best.append(struct.unpack_from("=I", attribute, DURATION_AT)[0])
    return min(best)


def measure() -> dict[str, int]:
    """All frames, on a program that is attached to nothing."""
    directory = BPFFS / "culvert" / f"bench-{os.getpid()}"
    directory.mkdir(parents=True)
    try:
        built = build.build(directory, build.flags())
        program = built.fds["guard"]
        return {
            f"{name}_ns": turn_ns(program, bytes(12) + struct.pack("!H", kind) + packet)
            for name, (kind, packet) in FRAMES.items()
        }
    finally:
        install.remove_tree(directory)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = machine.facts() | {"busy_with_others": machine.wait_until_quiet(20.0)}
    record |= measure()
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
