import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from daemonset import reports as module
from daemonset.controller_link import ControllerLink
from daemonset.reports import Reports
from mesh.aio import Background
from tests.support.pki import Authority
from tests.support.waiting import until
from tests.unit.daemonset.controller import NAME, ControllerStub
from tests.unit.daemonset.fakes import pod

pytestmark = pytest.mark.slow


def play(controller: ControllerStub, body: Callable[[Reports], Awaitable[None]], name: str = NAME) -> None:
    async def run() -> None:
        link = ControllerLink(controller.address, name, controller.directory, None, "Kubernetes")
        reports = Reports("n1", link.open)
        async with Background() as background:
            background.start(reports.run(), "reports")
            await body(reports)

    asyncio.run(run())


def test_reports_cross_a_real_stream_and_are_acknowledged(tmp_path: Path) -> None:
    with ControllerStub(tmp_path) as controller:

        async def body(reports: Reports) -> None:
            reports.put(pod("web"))
            async with asyncio.timeout(10):
                await reports.acknowledged()
            assert controller.captured() == {"web"}
            assert controller.callers == ["spiffe://cluster.local/ns/culvert-system/sa/culvert-node"]
            assert reports.connected

        play(controller, body)


def test_a_controller_that_comes_back_is_told_everything(tmp_path: Path) -> None:
    controller = ControllerStub(tmp_path)
    with controller:
        pass

    async def body(reports: Reports) -> None:
        reports.put(pod("web"))
        await until(lambda: "unavailable" in reports.fault)
        with controller:
            async with asyncio.timeout(20):
                await reports.acknowledged()
            assert controller.captured() == {"web"}
        await until(lambda: not reports.connected)

    play(controller, body)


def test_renewed_credentials_are_shown_on_a_new_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CREDENTIALS_CHECK_S", 0.05)
    with ControllerStub(tmp_path) as controller:

        async def body(reports: Reports) -> None:
            await until(lambda: reports.connected)
            controller.issue()
            await until(lambda: controller.streams == 2 and reports.connected)

        play(controller, body)


def test_a_stream_that_ends_well_is_opened_anew_without_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ControllerStub(tmp_path) as controller:
        controller.ends_at = 2

        async def body(reports: Reports) -> None:
            await until(lambda: reports.connected)
            reports.put(pod("web"))
            await until(lambda: controller.streams == 2 and reports.connected)
            assert controller.captured() == {"web"}

        play(controller, body)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("wrong", ["name", "root", "missing"])
def test_a_controller_that_cannot_be_trusted_hears_nothing(tmp_path: Path, wrong: str) -> None:
    with ControllerStub(tmp_path) as controller:
        if wrong == "root":
            (tmp_path / "roots.pem").write_text(Authority("another").pem)
        if wrong == "missing":
            (tmp_path / "key.pem").unlink()

        async def body(reports: Reports) -> None:
            reports.put(pod("web"))
            await until(lambda: reports.fault != "not connected yet")
            assert not reports.connected
            assert controller.reports == []
            if wrong == "missing":
                assert "key.pem" in reports.fault

        play(controller, body, "another.svc" if wrong == "name" else NAME)
