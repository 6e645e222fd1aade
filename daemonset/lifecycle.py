"""The life of an enrolled pod as a table: what is done next, and what follows.

Pure. `state` is where the pod is, `goal` where it should get to; the table names the one step to take and the state
after each outcome. A goal may change at any time: the step at hand is then cut if it only waits, and the table is
asked again. Steps are idempotent, so it never matters how far one got.

    waiting --listen--> adding --capture--> captured
    captured --uncapture, when labels change--> draining --converge--> drained --release--> removed

The kernel may hold a pod captured in any state before `draining`: a ztunnel that went away sends the pod back to
`waiting`, not out of the mesh, and its connections are refused meanwhile.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto


class State(StrEnum):
    """Where a pod is."""

    WAITING = "waiting"  # for ztunnel to listen in it
    ADDING = "adding"  # ztunnel listens, the kernel does not capture yet
    CAPTURED = "captured"
    DRAINING = "draining"  # not captured any more, peers may still speak HBONE to it
    DRAINED = "drained"
    REFUSED = "refused"  # the pod cannot be enrolled as it is; tried again now and then
    FAILED = "failed"  # a step failed; tried again with backoff
    REMOVED = "removed"  # nothing of it is left


class Goal(Enum):
    """Where a pod should get to."""

    ENROL = auto()
    UNENROL = auto()  # its labels no longer ask for the mesh; it runs on
    GONE = auto()  # it does not run any more


class Step(Enum):
    """What a worker does; the comments say what the outcome DONE means."""

    LISTEN = auto()  # ztunnel has acknowledged the pod; waits for as long as there is none
    CAPTURE = auto()  # addresses, inbound link and cookie are in the kernel, the controller will be told
    REST = auto()  # something about the pod or its ztunnel has changed
    UNCAPTURE = auto()  # new connections pass, the controller will be told
    CONVERGE = auto()  # the controller has withdrawn it and peers have had time to follow
    RELEASE = auto()  # ztunnel and kernel have let go of it


class Outcome(Enum):
    """How a step ended."""

    DONE = auto()
    REFUSED = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """One step and the state that DONE leads to; REFUSED and FAILED lead to the states of those names."""

    step: Step
    done: State


_LISTEN = Row(Step.LISTEN, State.ADDING)
_UNCAPTURE = Row(Step.UNCAPTURE, State.DRAINING)
_RELEASE = Row(Step.RELEASE, State.REMOVED)

TABLE: dict[tuple[State, Goal], Row] = {
    (State.WAITING, Goal.ENROL): _LISTEN,
    (State.ADDING, Goal.ENROL): Row(Step.CAPTURE, State.CAPTURED),
    (State.CAPTURED, Goal.ENROL): Row(Step.REST, State.WAITING),
    (State.DRAINING, Goal.ENROL): _LISTEN,
    (State.DRAINED, Goal.ENROL): _LISTEN,
    (State.REFUSED, Goal.ENROL): _LISTEN,
    (State.FAILED, Goal.ENROL): _LISTEN,
    (State.WAITING, Goal.UNENROL): _UNCAPTURE,
    (State.ADDING, Goal.UNENROL): _UNCAPTURE,
    (State.CAPTURED, Goal.UNENROL): _UNCAPTURE,
    (State.REFUSED, Goal.UNENROL): _UNCAPTURE,
    (State.FAILED, Goal.UNENROL): _UNCAPTURE,
    (State.DRAINING, Goal.UNENROL): Row(Step.CONVERGE, State.DRAINED),
    (State.DRAINED, Goal.UNENROL): _RELEASE,
    (State.WAITING, Goal.GONE): _RELEASE,
    (State.ADDING, Goal.GONE): _RELEASE,
    (State.CAPTURED, Goal.GONE): _RELEASE,
    (State.DRAINING, Goal.GONE): _RELEASE,
    (State.DRAINED, Goal.GONE): _RELEASE,
    (State.REFUSED, Goal.GONE): _RELEASE,
    (State.FAILED, Goal.GONE): _RELEASE,
}


def after(row: Row, outcome: Outcome) -> State:
    """The state that an outcome of a row's step leads to."""
    match outcome:
        case Outcome.DONE:
            return row.done
        case Outcome.REFUSED:
            return State.REFUSED
        case Outcome.FAILED:
            return State.FAILED
