"""The text that is compiled."""

from pathlib import Path

import pytest

from bpf.loader.source import FILES, ROOT, assemble, fingerprint


def test_every_header_stands_in_the_text_once() -> None:
    text = assemble(Path("/sys/fs/bpf/x/maps"))
    for header in sorted((ROOT / "include").glob("*.h")):
        guard = f"#ifndef CULVERT_{header.stem.upper()}_H"
        assert text.count(guard) == 1, header


def test_every_program_file_is_in_the_text_and_no_include_is_left() -> None:
    text = assemble(Path("/m"))
    assert {path.name for path in (ROOT / "programs").glob("*.c")} == set(FILES)
    assert all(f'#line 1 "{name}"' in text for name in FILES)
    assert '#include "' not in text
    assert '#define CV_MAPS "/m"' in text


def test_line_numbers_are_those_of_the_files() -> None:
    """A compiler's message must lead to the place."""
    lines = assemble(Path("/m")).splitlines()
    name, number, checked = "", 0, 0
    for line in lines:
        if line.startswith("#line "):
            _, text, quoted = line.split(" ", 2)
            number, name = int(text), quoted.strip('"')
            continue
        if name:
            folder = "include" if name.endswith(".h") else "programs"
            source = (ROOT / folder / name).read_text().splitlines()[number - 1]
            assert source == line or (line == "" and source.startswith('#include "'))
            number += 1
            checked += 1
        if number and name and number > len((ROOT / folder / name).read_text().splitlines()):
            name = ""
    assert checked > 500


@pytest.mark.parametrize("path", ["programs/connect.c", "include/maps.h", "include/sockets.h"])
def test_fingerprint_follows_the_sources(tmp_path: Path, path: str) -> None:
    for folder in ("programs", "include"):
        (tmp_path / folder).mkdir()
        for source in (ROOT / folder).iterdir():
            (tmp_path / folder / source.name).write_text(source.read_text())
    before = fingerprint((), tmp_path)
    assert before == fingerprint(())
    assert before != fingerprint(("-DCV_MPTCP",), tmp_path)
    changed = tmp_path / path
    changed.write_text(changed.read_text() + "/* changed */\n")
    assert fingerprint((), tmp_path) != before


def test_files_carry_their_licence() -> None:
    for path in (*(ROOT / "programs").glob("*.c"), *(ROOT / "include").iterdir(), *(ROOT / "headers").rglob("*.h")):
        assert path.read_text().startswith("/* SPDX-License-Identifier: GPL-2.0-only */"), path
