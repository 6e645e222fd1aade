"""The border as cffi sees it, and what the build hands to the compiler."""

import cffi

from engine import _build


def test_the_border_parses_without_its_preprocessor_lines() -> None:
    text = _build.declarations()
    assert not [line for line in text.splitlines() if line.startswith("#")]
    parsed = cffi.FFI()
    parsed.cdef(text)
    assert parsed.typeof("struct cv_settings *")


def test_every_source_and_header_is_known_to_the_build() -> None:
    names = {path.name for path in _build.sources()}
    assert {"engine.c", "relay.c", "tables.c"} <= names
    assert _build.BORDER in _build.headers()
