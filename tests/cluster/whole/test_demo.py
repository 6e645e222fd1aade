"""What `culvert demo` claims of a lab holds on real pods: the same claims, of the same programs, through the same code.

HTTP and Redis, a server that speaks first, both families by pod address, VIP and name; TLS 1.3 on the wire and no
byte in clear; policies and their names in the access log; STRICT; enrolment without restarts; flow metrics; a ztunnel
that is killed, which refuses at once, comes back, and of which un-enrolled pods notice nothing.
"""

from pathlib import Path

import pytest

from cli.demo.command import GROUPS
from cli.demo.report import Claims, Report
from tests.cluster.whole.demo_stage import ClusterStage
from tests.cluster.whole.stage import Whole

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize(("title", "claims"), GROUPS, ids=[title for title, _ in GROUPS])
def test_the_claims_of_the_demo_hold(mesh: Whole, title: str, claims: Claims, tmp_path: Path) -> None:
    report, said = Report(), list[str]()
    report.run(title, claims, ClusterStage(mesh, tmp_path), said.append)
    print("\n".join(said))
    failed = [claim for claim in report.groups[title] if not claim.passed]
    assert report.passed, "\n".join(f"{claim.text}: {claim.evidence}" for claim in failed)
