"""Which lab a command means. Apart from the client, because `lab exec` needs only this."""

from lab import paths


class LabError(Exception):
    """Something that a user can act on; the text says how."""


def choose(given: str | None) -> str:
    """The lab that is meant: the given one, else the only one; raises LabError."""
    existing = list(paths.labs())
    if given is not None:
        if given not in existing:
            raise LabError(f"there is no lab {given!r}; {_those(existing)}")
        return given
    if len(existing) == 1:
        return existing[0]
    if existing:
        raise LabError(f"which lab? {_those(existing)}: say --lab NAME or set CULVERT_LAB")
    raise LabError("no lab runs on this machine: `culvert lab up DIR` starts one")


def _those(labs: list[str]) -> str:
    return f"these are there: {', '.join(labs)}" if labs else "none is there: `culvert lab up DIR` starts one"
