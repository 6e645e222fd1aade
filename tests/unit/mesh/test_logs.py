import json
import logging
from collections.abc import Iterator

import pytest

from mesh import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("a.scope").setLevel(logging.NOTSET)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = capsys.readouterr()
    assert found.out == ""
    return found.err.splitlines()


def test_text_is_one_line_with_time_level_scope_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.start("info", as_json=False)
    logging.getLogger("a.scope").info("%d pods", 3)
    logging.getLogger("a.scope").debug("unseen")
    (line,) = lines(capsys)
    time, *rest = line.split("\t")
    assert rest == ["info", "a.scope", "3 pods"]
    assert time.endswith("Z")
    assert "T" in time


def test_json_is_one_object_per_line_also_with_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    logs.start("warning", as_json=True)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("a.scope").exception("it failed: %s", "here\nand there")
    logging.getLogger("a.scope").info("unseen")
    (line,) = lines(capsys)
    entry = json.loads(line)
    assert (entry["level"], entry["scope"], entry["message"]) == ("error", "a.scope", "it failed: here\nand there")
    assert "ValueError" in entry["exception"]


def test_scope_has_a_level_of_its_own_until_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    logs.start("error", as_json=False)
    logs.set_level("debug", "a.scope")
    logging.getLogger("a.scope").debug("seen")
    logging.getLogger("another").warning("unseen")
    assert [line.split("\t")[3] for line in lines(capsys)] == ["seen"]
    assert logs.levels() == {**logs.levels(), "": "error", "a.scope": "debug"}
    with pytest.raises(ValueError, match="loud"):
        logs.set_level("loud")
