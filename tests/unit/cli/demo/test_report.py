from cli.demo.report import Claim, Report
from cli.demo.stage import Stage, StageFault

STAGE = Stage("none")


def good(_):
    yield Claim("water is wet", True, "seen")


def bad(_):
    yield Claim("water is dry", False, "not seen")


def broken(_):
    yield Claim("first", True, "seen")
    raise StageFault("the lab is gone")


def run(*groups):
    shown = []
    report = Report()
    for group in groups:
        report.run(group.__name__, group, STAGE, shown.append)
    return report, "\n".join(shown)


def test_report_passes_when_every_claim_does():
    report, text = run(good)
    assert report.passed
    assert "pass  water is wet" in text
    assert report.summary() == "1 of 1 claims hold"


def test_one_claim_that_fails_fails_the_report():
    report, text = run(good, bad)
    assert not report.passed
    assert "FAIL  water is dry" in text


def test_group_that_cannot_be_checked_to_its_end_fails_with_the_reason():
    report, text = run(broken, good)
    assert not report.passed
    assert "StageFault: the lab is gone" in text
    assert len(report.groups["good"]) == 1


def test_nothing_checked_is_nothing_proven():
    assert not Report().passed


def test_json_holds_every_claim_with_its_evidence():
    report, _ = run(good)
    claim = {"text": "water is wet", "passed": True, "evidence": "seen"}
    assert report.as_json() == {"passed": True, "groups": [{"title": "good", "claims": [claim]}]}
