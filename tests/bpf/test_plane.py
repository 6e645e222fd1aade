"""The maps of a loaded set as long-lived processes use them."""

import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpf import kernel
from bpf.loader.specs import MAPS
from bpf.plane import MapFull, Note, NoteKind, Plane, PodFlag


def test_thousands_of_entries_are_read_in_batches(plane: Plane) -> None:
    numbers = {ip_address(f"10.{index >> 8}.{index & 255}.9"): index + 1 for index in range(5000)}
    for address, number in numbers.items():
        plane.put_workload(address, number)
    assert plane.workloads() == numbers


def test_full_map_is_told(plane: Plane) -> None:
    with pytest.raises(MapFull, match="map pods"):
        for cookie in range(1 << 42, (1 << 42) + 2000):
            plane.enrol(cookie, None, None, PodFlag(0))
    assert len(plane.pods()) == 1024


def test_maps_have_the_shapes_that_are_written_down(plane: Plane) -> None:
    assert {name: kernel.map_shape(plane.map_fd(name)) for name in MAPS} == MAPS


def test_resident_cost_of_the_plane(loaded: str) -> None:
    """No bcc in a long-lived process."""
    code = (
        "import sys; from bpf.plane import Plane; Plane.open(sys.argv[1]);"
        "assert not any(name == 'bcc' or name.startswith('bcc.') for name in sys.modules);"
        "print([l for l in open('/proc/self/status') if l.startswith('VmRSS')][0].split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, loaded], capture_output=True, text=True, timeout=20, check=True)
    assert int(done.stdout) < 40_000, "kB"


def test_note_on_what_is_no_socket_is_an_error(plane: Plane) -> None:
    with Path(os.devnull).open() as null, pytest.raises(OSError, match="map update"):
        plane.put_note(null.fileno(), Note(NoteKind.OWN))
