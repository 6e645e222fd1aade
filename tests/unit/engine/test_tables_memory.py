"""The tables under failing allocations and under readers on other threads, with sanitizers watching."""

import shutil
import subprocess
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[3] / "engine"
DRIVER = Path(__file__).with_name("tables_driver.c")


def build(directory: Path, sanitizer: str) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    driver = directory / "driver"
    command = [
        *(compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1"),
        *(f"-fsanitize={sanitizer}", "-fno-sanitize-recover", "-Wl,--wrap=malloc,--wrap=calloc"),
        *(f"-I{ENGINE}/include", f"-I{ENGINE}/src", "-o", str(driver), str(DRIVER)),
        *map(str, [*ENGINE.glob("src/tables*.c"), ENGINE / "src/policy.c", ENGINE / "src/endpoint.c"]),
        "-lpthread",
    ]
    subprocess.run(command, check=True, timeout=60)
    return driver


def run(driver: Path, mode: str) -> None:
    result = subprocess.run([driver, mode], capture_output=True, text=True, timeout=60, check=False)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("this kernel's address layout is beyond the thread sanitizer")
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr[-4000:]


@pytest.mark.slow
def test_every_failing_allocation_changes_nothing_and_leaks_nothing(tmp_path: Path) -> None:
    run(build(tmp_path, "address,undefined"), "memory")


@pytest.mark.slow
def test_snapshots_are_dropped_by_other_threads_without_a_race(tmp_path: Path) -> None:
    run(build(tmp_path, "thread"), "threads")
