"""What the demo says: claims with their evidence, as text while it runs and as JSON at the end."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from cli.demo.stage import Stage, StageFault

Claims = Callable[[Stage], Iterator["Claim"]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the report."""

    text: str
    passed: bool
    evidence: str


@dataclass(slots=True)
class Report:
    """All lines so far, by group."""

    groups: dict[str, list[Claim]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there are claims, and all of them hold."""
        claims = [claim for group in self.groups.values() for claim in group]
        return bool(claims) and all(claim.passed for claim in claims)

    def run(self, title: str, claims: Claims, stage: Stage, show: Callable[[str], None]) -> None:
        """Check one group; what keeps it from being checked is a claim that failed."""
        show(f"\n{title}")
        group = self.groups.setdefault(title, [])
        try:
            for claim in claims(stage):
                group.append(claim)
                show(line(claim))
        except (StageFault, ValueError, KeyError, IndexError, OSError) as error:
            group.append(Claim("could be checked to its end", False, f"{type(error).__name__}: {error}"))
            show(line(group[-1]))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        groups = [{"title": title, "claims": [asdict(c) for c in claims]} for title, claims in self.groups.items()]
        return {"passed": self.passed, "groups": groups}

    def summary(self) -> str:
        """The last line."""
        claims = [claim for group in self.groups.values() for claim in group]
        return f"{sum(claim.passed for claim in claims)} of {len(claims)} claims hold"


def line(claim: Claim) -> str:
    """One claim for people."""
    return f"  {'pass' if claim.passed else 'FAIL'}  {claim.text}\n          {claim.evidence}"
