"""status.json: what becomes of each policy, what is malformed, written only when it differs."""

import json
from pathlib import Path

from controller.index.index import Index
from controller.index.objects import Change, Kind, Mode, PeerAuthentication
from controller.sources.base import Fault
from controller.status.report import StatusReport
from tests.unit.controller import recorded
from tests.unit.controller.nodes import policy

ROOT = "culvert-system"


def test_policies_and_faults_are_told(tmp_path: Path) -> None:
    index = Index(ROOT)
    index.apply(recorded.changes([policy("ok", {}), policy("audit", {"action": "AUDIT"})]))
    selecting = PeerAuthentication(ROOT, "p", {"app": "x"}, Mode.STRICT)
    lenient = PeerAuthentication("shop", "q", mode=Mode.DISABLE)
    index.apply([Change(Kind.PEER_AUTHENTICATION, one.key, one) for one in (selecting, lenient)])
    report = StatusReport(tmp_path / "status.json")
    report.set_faults([Fault("a.yaml:7", "Pod shop/x", "spec.nodeName", "must be a string")])
    report.write(index)
    told = json.loads((tmp_path / "status.json").read_text())
    assert [(one["name"], one["accepted"], one["reason"]) for one in told["policies"]] == [
        ("audit", False, "UnsupportedAction"),
        ("ok", True, "Accepted"),
        ("p", False, "SelectorInRootNamespace"),
        ("q", True, "PartiallyEnforced"),
    ]
    assert told["faults"] == [
        {
            "place": "a.yaml:7",
            "object": "Pod shop/x",
            "field": "spec.nodeName",
            "message": "must be a string",
        }
    ]
    assert report.not_accepted == 2


def test_the_file_is_written_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    index = Index(ROOT)
    report = StatusReport(path)
    report.write(index)
    first = path.stat().st_ino
    report.write(index)
    assert path.stat().st_ino == first
    index.apply(recorded.changes([policy("p", {})]))
    report.write(index)
    assert path.stat().st_ino != first
