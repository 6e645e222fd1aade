"""When a pod may start: the gate on a source, an agent and workers whose state a test sets."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from daemonset.cluster.namespaces import Sandboxes
from daemonset.cluster.records import decode
from daemonset.cni import gate as gate_module
from daemonset.cni.gate import Gate
from daemonset.cni.protocol import Call, Code, Refused
from daemonset.lifecycle import State
from daemonset.pods import Refusal, RefusalKind
from mesh.kube.errors import NotFound, Unavailable
from tests.unit.daemonset.cluster.objects import UID, pod


class Stage:
    """Everything around a gate."""

    def __init__(self) -> None:
        self.labels = {"culvert.io/mesh": "enabled"}
        self.fault: Exception | None = None
        self.sandboxes = Sandboxes()
        self.agent: Any = self
        self.step = ""
        self.refusals: dict[str, Refusal] = {}
        self.workers: dict[str, Any] = {}
        self.touched = 0
        self.gate = Gate(self, self.sandboxes, self, istio_labels=False)
        self.netns = os.open("/proc/self/ns/net", os.O_RDONLY)

    async def look_up(self, namespace: str, name: str, uid: str) -> Any:
        if self.fault is not None:
            raise self.fault
        return decode(pod(phase="Pending", ip=""))

    def namespace_labels(self, name: str) -> dict[str, str]:
        return self.labels

    def touch(self) -> None:
        self.touched += 1

    def worker(self, uid: str) -> Any:
        return self.workers.get(uid)

    def call(self, command: str = "ADD", container: str = "c1", name: str = "web") -> Call:
        previous = {"ips": [{"address": "10.1.2.3/24"}]}
        return Call(command, container, "shop", name, UID, self.netns, previous, "1.0.0")

    def put_worker(self, state: State, captured: bool, netns: int | None = None, reason: str = "") -> None:
        fd = self.netns if netns is None else netns
        self.workers[UID] = SimpleNamespace(state=state, captured=captured, netns=fd, reason=reason)
        self.gate.changed()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(gate_module, "PATIENCE_S", 0.1)
    made = Stage()
    yield made
    made.sandboxes.close()
    os.close(made.netns)


def refusal_of(stage: Stage, call: Call | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        asyncio.run(stage.gate.answer(call or stage.call()))
    return caught.value


def test_a_pod_starts_when_it_is_captured_and_not_before(stage: Stage) -> None:
    async def run() -> None:
        waiting = asyncio.get_running_loop().create_task(stage.gate.answer(stage.call()))
        for state, captured in ((State.WAITING, False), (State.ADDING, False)):
            stage.put_worker(state, captured)
            await asyncio.sleep(0.01)
            assert not waiting.done()
        stage.put_worker(State.CAPTURED, True)
        await waiting

    asyncio.run(run())
    assert stage.touched == 1


def test_a_pod_that_does_not_ask_starts_at_once_and_its_namespace_is_kept_for_later(stage: Stage) -> None:
    stage.labels = {}
    stage.agent = None
    asyncio.run(stage.gate.answer(stage.call()))
    assert UID in stage.sandboxes


def test_who_waits_too_long_hears_what_for(stage: Stage) -> None:
    stage.put_worker(State.WAITING, False, reason="waiting for ztunnel")
    refused = refusal_of(stage)
    assert refused.code == Code.TRY_AGAIN_LATER
    assert "shop/web" in str(refused) and "waiting for ztunnel" in str(refused)


def test_an_agent_that_still_starts_says_so(stage: Stage) -> None:
    stage.agent, stage.step = None, "programs to be loaded"
    assert "programs to be loaded" in str(refusal_of(stage))


def test_the_worker_of_an_earlier_sandbox_does_not_count(stage: Stage) -> None:
    other = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    with contextlib.closing(os.fdopen(other, "rb")):
        stage.put_worker(State.CAPTURED, True, netns=other)
        assert "not captured yet" in str(refusal_of(stage))


@pytest.mark.parametrize("kind", [RefusalKind.LABEL, RefusalKind.HOST_NETWORK])
def test_a_label_that_is_not_understood_keeps_no_pod_from_starting(stage: Stage, kind: RefusalKind) -> None:
    stage.refusals = {UID: Refusal(kind, "odd")}
    asyncio.run(stage.gate.answer(stage.call()))


@pytest.mark.parametrize("kind", [RefusalKind.SHARED_NAMESPACE, RefusalKind.OTHER_SET, RefusalKind.NO_NAMESPACE])
def test_one_that_should_be_captured_and_cannot_be_does_not_start(stage: Stage, kind: RefusalKind) -> None:
    stage.refusals = {UID: Refusal(kind, "it shares something")}
    assert "it shares something" in str(refusal_of(stage))


@pytest.mark.parametrize("fault", [NotFound("no"), Unavailable("no answer")])
def test_a_pod_of_which_nothing_is_known_does_not_start(stage: Stage, fault: Exception) -> None:
    stage.fault = fault
    assert refusal_of(stage).code == Code.TRY_AGAIN_LATER
    assert UID not in stage.sandboxes


def test_a_runtime_that_names_no_pod_is_refused(stage: Stage) -> None:
    assert refusal_of(stage, stage.call(name="")).code == Code.INVALID_CONFIG


def test_labels_that_change_meanwhile_decide(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "PATIENCE_S", 5.0)

    async def run() -> None:
        waiting = asyncio.get_running_loop().create_task(stage.gate.answer(stage.call()))
        await asyncio.sleep(0.02)
        stage.labels = {}
        stage.gate.changed()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_the_end_of_a_sandbox_is_passed_on(stage: Stage) -> None:
    stage.labels = {}
    asyncio.run(stage.gate.answer(stage.call()))
    asyncio.run(stage.gate.answer(stage.call("DEL", "older")))
    assert UID in stage.sandboxes
    asyncio.run(stage.gate.answer(stage.call("DEL")))
    assert UID not in stage.sandboxes


def test_check_complains_of_a_pod_that_fell_out_only(stage: Stage) -> None:
    asyncio.run(stage.gate.answer(stage.call("CHECK")))
    stage.put_worker(State.CAPTURED, True)
    asyncio.run(stage.gate.answer(stage.call("CHECK")))
    stage.put_worker(State.FAILED, False, reason="a map is full")
    assert "a map is full" in str(refusal_of(stage, stage.call("CHECK")))
    stage.fault = NotFound("gone")
    asyncio.run(stage.gate.answer(stage.call("CHECK")))
