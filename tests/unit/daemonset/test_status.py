import asyncio
import json
import re
from pathlib import Path

import pytest

from daemonset.agent import Agent, Here
from daemonset.enrolment import KernelFault
from daemonset.pods import Pod, RefusalKind, Snapshot
from daemonset.status import Sources, Status
from mesh.aio import Background
from mesh.http import Request
from tests.unit.daemonset.fakes import PACE, FakeNamespaces, FakeWorld, pod, settle


class Counters:
    no_guard = ""

    def counters(self) -> dict[str, int]:
        return {"connect_captured": 7, "guard_passed": 3, "guard_dropped_stranger": 2}


class BrokenCounters:
    no_guard = ""

    def counters(self) -> dict[str, int]:
        raise KernelFault("map counters is gone")


def request(path: str) -> Request:
    return Request("GET", path, {}, {}, b"")


async def status_of(fake: FakeWorld, background: Background, *pods: Pod) -> Status:
    namespaces = FakeNamespaces({"/run/netns/web": 10, "/run/netns/cart": 11})
    agent = Agent(Here("n1", 1), fake.world, PACE, namespaces, background)
    agent.start(Snapshot({found.uid: found for found in pods}, {"shop": {"culvert.io/mesh": "enabled"}}), {})
    await settle()
    return Status(Sources("n1", "l-n1", step="", agent=agent, kernel=Counters()))  # type: ignore[arg-type]


def test_pods_are_listed_with_state_and_reason() -> None:
    async def run() -> None:
        async with Background() as background:
            status = await status_of(FakeWorld(), background, pod("web"), pod("cart", addresses=()))
            cart, web = status.pods()
            assert (web["state"], web["captured"], web["netns_cookie"], web["pre_enrolment"]) == (
                "captured",
                True,
                10,
                3,
            )
            assert (cart["state"], cart["refused"]) == ("refused", "no_address")
            assert "no address" in cart["reason"]
            document = status.document()
            assert document["ready"] is True
            assert "dropped by the guard" in document["not_captured"]
            assert document["guard"] == {"on": True, "problem": "", "dropped": {"stranger": 2}}
            json.dumps(document)
            status.sources.kernel.no_guard = "it is off"  # type: ignore[union-attr]
            document = status.document()
            assert "not dropped at the source" in document["not_captured"]
            assert (document["guard"]["on"], document["guard"]["problem"]) == (False, "it is off")

    asyncio.run(run())


def test_a_pod_without_guard_is_not_counted_as_guarded_and_says_why() -> None:
    async def run() -> None:
        async with Background() as background:
            fake = FakeWorld()
            status = await status_of(fake, background, pod("web"))
            assert "culvert_agent_pods_guarded 1" in status.metrics().splitlines()
            fake.unguarded, fake.stands = "no end", False
            status.sources.agent.check_guards()  # type: ignore[union-attr]
            assert "culvert_agent_pods_guarded 0" in status.metrics().splitlines()
            assert [row["unguarded"] for row in status.pods()] == ["no end"]

    asyncio.run(run())


def test_a_captured_pod_of_which_a_process_wants_a_port_of_the_mesh_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with Background() as background:
            fake = FakeWorld()
            status = await status_of(fake, background, pod("web"))
            agent = status.sources.agent
            assert agent is not None
            (worker,) = agent.workers
            fake.ports = {worker.cookie: (15006, 15008), 99: (15001,)}
            for _ in range(3):
                agent.check_ports()
            (row,) = status.pods()
            assert row["state"] == "captured"
            assert "was refused TCP port 15006, 15008 (bind: Address already in use)" in row["conflict"]
            assert "culvert.io/mesh=disabled" in row["conflict"]
            ((told, refusal),) = agent.conflicts()
            assert (told.name, refusal.kind, refusal.text) == ("web", RefusalKind.PORT_RESERVED, row["conflict"])
            assert agent.refused() == []
            before = fake.changes
            fake.kernel_fault = "map pods is gone"
            agent.check_ports()
            assert [row["conflict"] for row in status.pods()] == [refusal.text]
            fake.kernel_fault, fake.ports = "", {}
            agent.check_ports()
            assert fake.changes == before + 1
            assert [row["conflict"] for row in status.pods()] == [""]
            assert agent.conflicts() == []

    asyncio.run(run())
    assert [record.levelname for record in caplog.records if "15006" in record.message] == ["WARNING"]


def test_metrics_are_well_formed_and_count_states() -> None:
    async def run() -> None:
        async with Background() as background:
            status = await status_of(FakeWorld(), background, pod("web"), pod("cart", addresses=()))
            text = status.metrics()
            assert 'culvert_agent_pods{state="captured"} 1' in text
            assert 'culvert_agent_pods_refused{reason="no_address"} 1' in text
            assert 'culvert_agent_guard_dropped_total{reason="stranger"} 2' in text
            assert 'culvert_agent_program_exits_total{exit="connect_captured"} 7' in text
            sample = re.compile(r'^culvert_agent_[a-z_]+(\{[a-z]+="[a-z_]+"\})? \d+$')
            assert all(line.startswith("# ") or sample.match(line) for line in text.splitlines())
            status.sources.kernel = BrokenCounters()  # type: ignore[assignment]
            answer = await status.routes()["GET", "/metrics"](request("/metrics"))
            assert (answer.status, answer.body) == (503, b"map counters is gone\n")

    asyncio.run(run())


def test_readiness_says_what_is_awaited() -> None:
    async def run() -> None:
        status = Status(Sources("n1", "l-n1", step="programs to be loaded"))
        ready = status.routes()["GET", "/healthz/ready"]
        answer = await ready(request("/healthz/ready"))
        assert (answer.status, answer.body) == (503, b"not ready: programs to be loaded\n")
        status.sources.step = ""
        assert (await ready(request("/healthz/ready"))).status == 200

    asyncio.run(run())


def test_the_file_is_replaced_when_something_changes(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "agent-status.json"
        status = Status(Sources("n1", "l-n1"))
        async with Background() as background:
            background.start(status.keep_file(path), "status")
            await settle()
            before = path.stat().st_ino
            assert json.loads(path.read_text())["waiting_for"] == "starting"
            status.changed()
            await settle()
            assert path.stat().st_ino == before
            status.sources.step = ""
            status.changed()
            await settle()
            assert json.loads(path.read_text())["ready"] is True

    asyncio.run(run())
    assert [found.name for found in tmp_path.iterdir()] == ["agent-status.json"]
