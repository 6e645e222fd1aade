from pathlib import Path

from lab.process import Launch
from lab.supervision import Supervised


def test_program_that_dies_again_and_again_is_shown_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "ztunnel.log"
    program = Supervised("node-1/ztunnel", Launch(), log)
    assert program.trouble() == ""
    program.restarts, program.last_end = 11, "exit status 1"
    assert program.trouble() == "has ended 11 times (exit status 1)"
    log.write_text("x\n" * 5000 + "ztunnel: the engine is not built\n\n")
    assert program.trouble().endswith("(exit status 1; its last words: ztunnel: the engine is not built)")
