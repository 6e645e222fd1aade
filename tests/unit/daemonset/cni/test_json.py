"""The plugin's JSON beside Python's, on documents and on what becomes of them when bytes change."""

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.daemonset.cni.build import SOURCES, compile_c

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
DOCUMENTS = st.fixed_dictionaries({"k": VALUES, "a": st.lists(VALUES, max_size=4)}) | VALUES


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("json") / "driver"
    return compile_c(target, Path(__file__).with_name("json_driver.c"), SOURCES / "json.c")


def judge(driver: Path, *documents: bytes) -> list[list[str]]:
    stdin = b"".join(struct.pack("=I", len(document)) + document for document in documents)
    done = subprocess.run([driver], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    # A byte that is no UTF-8 comes back as it went in.
    said = done.stdout.decode(errors="surrogateescape")
    return [part.splitlines() for part in said.split(".\n")[:-1]]


def texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) and "\0" not in value and len(value.encode()) < 4096 else []


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.booleans())
def test_it_reads_what_python_writes(driver: Path, document: Any, is_ascii: bool) -> None:
    (lines,) = judge(driver, json.dumps(document, ensure_ascii=is_ascii).encode())
    assert lines[0] == "valid"
    wanted = []
    if isinstance(document, dict):
        wanted += [("k", text) for text in texts(document.get("k"))]
        listed = document.get("a")
        wanted += [("a", text) for item in (listed if isinstance(listed, list) else []) for text in texts(item)]
    assert [(line[0], json.loads(line[2:])) for line in lines[1:]] == wanted


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@example([({"a": [], "k": "x"}, 16, b"\x80")])  # within the text that the driver prints
@given(st.lists(st.tuples(DOCUMENTS, st.integers(0, 200), st.binary(max_size=3)), min_size=1, max_size=8))
def test_what_is_broken_is_invalid_as_in_python_or_at_least_harmless(
    driver: Path, cases: list[tuple[Any, int, bytes]]
) -> None:
    broken = []
    for document, place, junk in cases:
        raw = json.dumps(document).encode()
        at = place % (len(raw) + 1)
        broken.append(raw[:at] + junk + raw[at + len(junk) :])
    for raw, lines in zip(broken, judge(driver, *broken), strict=True):
        try:
            json.loads(raw.decode(), parse_constant=lambda name: 1 / 0)
        except (ValueError, ZeroDivisionError):
            if all(byte < 128 for byte in raw):
                assert lines == ["invalid"], raw


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raw", "is_valid"),
    [
        (b"", False),
        (b" {} ", True),
        (b"{}x", False),
        (b"[" * 64 + b"]" * 64, True),
        (b"[" * 70 + b"]" * 70, False),
        (b"[" * 200_000, False),
        (b'"\\ud800"', True),  # valid by the grammar, and no text
        (b'"\x01"', False),
        (b"01", False),
        (b"-", False),
        (b"1.", False),
        (b"1e+", False),
        (b"[1,]", False),
        (b'{"a":}', False),
        (b"{,}", False),
        (b"nul", False),
    ],
)
def test_odd_documents(driver: Path, raw: bytes, is_valid: bool) -> None:
    assert judge(driver, raw)[0][0] == ("valid" if is_valid else "invalid")
