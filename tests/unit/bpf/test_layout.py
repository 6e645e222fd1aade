"""maps.h, as a C compiler and BCC see it, and its restatement in Python are one."""

import ctypes
import re
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from bpf import layout

HEADER = Path(layout.__file__).parent / "include" / "maps.h"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Offsets, sizes and constants as the compiler computes them."""
    lines = []
    for name, structure in layout.STRUCTURES.items():
        lines.append(f'printf("size {name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in structure._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
            lines.append(f'printf("{name}.{field}.size %zu\\n", sizeof(((struct {name} *)0)->{field}));')
    for constant in re.findall(r"\bCV_[A-Z0-9_]+\b", HEADER.read_text()):
        lines.append(f'printf("{constant} %d\\n", (int){constant});')
    directory = tmp_path_factory.mktemp("layout")
    source = directory / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "{HEADER}"\nint main(void) {{\n' + "\n".join(lines) + "\nreturn 0; }\n"
    )
    program = directory / "layout"
    subprocess.run(["cc", "-Wall", "-Werror", "-o", str(program), str(source)], check=True, timeout=60)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=10).stdout
    return {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in printed.splitlines()}


@pytest.mark.parametrize("name", layout.STRUCTURES)
def test_structure_equals_its_header(compiled: dict[str, int], name: str) -> None:
    structure = layout.STRUCTURES[name]
    assert ctypes.sizeof(structure) == compiled[f"size {name}"]
    total = 0
    for field, *_ in structure._fields_:
        member = getattr(structure, field)
        assert (member.offset, member.size) == (compiled[f"{name}.{field}"], compiled[f"{name}.{field}.size"])
        total += member.size
    assert total == ctypes.sizeof(structure), "no padding"


def test_every_structure_of_the_header_is_restated() -> None:
    named = set(re.findall(r"^struct (cv_\w+) \{", HEADER.read_text(), re.MULTILINE))
    assert named - {"cv_addr16"} == set(layout.STRUCTURES)


@pytest.mark.parametrize(
    ("enumeration", "prefix", "last"),
    [
        (layout.Port, "CV_PORT_", None),
        (layout.NoteKind, "CV_NOTE_", None),
        (layout.Direction, "CV_DIR_", None),
        (layout.PodFlag, "CV_POD_", None),
        (layout.RefusedPort, "CV_REFUSED_", None),
        (layout.Failure, "CV_FAIL_", "CV_FAILURES"),
        (layout.FlowFlag, "CV_FLOW_", None),
        (layout.Counter, "CV_COUNT_", "CV_COUNTERS"),
    ],
)
def test_enumeration_equals_its_header(
    compiled: dict[str, int], enumeration: type[IntEnum], prefix: str, last: str | None
) -> None:
    ours = {f"{prefix}{member.name}": int(member) for member in enumeration}
    theirs = {name: value for name, value in compiled.items() if name.startswith(prefix)}
    assert ours == theirs
    if last is not None:
        assert compiled[last] == len(enumeration)


def test_histogram_has_its_length(compiled: dict[str, int]) -> None:
    assert compiled["CV_HISTOGRAM_BUCKETS"] == layout.HISTOGRAM_BUCKETS
    assert compiled["CV_FAILURES"] == layout.FAILURES
