"""The unit tests mirror the source: who reads a module finds its tests, and no test outlives what it tests."""

import re
from pathlib import Path

UNIT = Path(__file__).parent
ROOT = UNIT.parents[1]
IMPORT_OF_A_TEST = re.compile(r"^\s*(?:from|import) .*\btest_.*", re.MULTILINE)


def sources(test: Path) -> list[Path]:
    """What a test file may be about: `test_decide_waypoints.py` is about `decide_waypoints` or about `decide`."""
    folder = ROOT / test.parent.relative_to(UNIT)
    words = test.stem.split("_")[1:]
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    return [
        path
        for name in names
        for path in (folder / f"{name}.py", folder / f"_{name}.py", folder / f"{name}.c", folder / "src" / f"{name}.c")
    ]


def test_every_test_file_lies_where_the_module_lies_that_it_is_about() -> None:
    tests = [path for path in UNIT.rglob("test_*.py") if path.parent != UNIT]
    assert len(tests) > 100
    orphans = [str(test.relative_to(ROOT)) for test in tests if not any(map(Path.exists, sources(test)))]
    assert orphans == []


def test_every_python_file_with_tests_is_collected() -> None:
    """pytest looks only into files whose name begins so."""
    files = [path for path in UNIT.parent.rglob("*.py") if not path.name.startswith("test_")]
    assert [str(path) for path in files if "\ndef test_" in path.read_text()] == []


def test_no_module_imports_a_test() -> None:
    """What tests share lies in tests/support or beside them: a test may be changed without a look at the others."""
    files = [path for tree in ("tests", "bench") for path in (ROOT / tree).rglob("*.py")]
    assert len(files) > 300
    found = [(str(path.relative_to(ROOT)), *IMPORT_OF_A_TEST.findall(path.read_text())) for path in files]
    assert [one for one in found if one[1:]] == []
