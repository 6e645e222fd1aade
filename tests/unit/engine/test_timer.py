"""Deadlines in any order against what they should be, with sanitizers watching."""

import shutil
import subprocess
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[3] / "engine"
DRIVER = Path(__file__).with_name("timer_driver.c")


@pytest.mark.slow
def test_every_deadline_fires_once_in_order_and_none_that_was_cancelled(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    driver = tmp_path / "driver"
    command = [
        *(compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fsanitize=address,undefined"),
        *("-fno-sanitize-recover", f"-I{ENGINE}/src", "-o", str(driver), str(DRIVER), str(ENGINE / "src/timer.c")),
    ]
    subprocess.run(command, check=True, timeout=60)
    result = subprocess.run([driver], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr[-4000:]
