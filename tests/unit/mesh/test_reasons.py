import re
from pathlib import Path

from mesh.reasons import Reason

BORDER = Path(__file__).parents[3] / "engine" / "include" / "border.h"


def test_python_and_c_name_the_same_reasons_in_the_same_order() -> None:
    enum = re.search(r"enum cv_reason \{(.*?)\n\};", BORDER.read_text(), re.DOTALL)
    assert enum is not None
    in_c = re.findall(r"^\s*CV_REASON_(\w+)", enum.group(1), re.MULTILINE)
    assert in_c == [reason.name for reason in Reason]
    assert [int(reason) for reason in Reason] == list(range(len(in_c)))


def test_a_reason_reads_as_a_word() -> None:
    assert str(Reason.POLICY_DENIED) == "policy_denied"
