import asyncio

from daemonset.annotated import Annotations
from daemonset.reports import Reports
from mesh.aio import Background
from tests.support.waiting import until
from tests.unit.daemonset.fakes import pod, settle


class Pods:
    """Their annotations: written when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_write = asyncio.Event()

    async def written(self) -> None:
        self.asked += 1
        await self.may_write.wait()


def test_a_report_is_answered_once_the_pods_say_it() -> None:
    async def test() -> None:
        pods = Pods()
        reports = Reports("n1", Annotations(pods.written).open)
        reports.put(pod("web"))
        async with Background() as tasks:
            tasks.start(reports.run(), "reports")
            told = reports.acknowledged()
            await until(lambda: pods.asked == 1)
            assert not told.done()
            pods.may_write.set()
            await asyncio.wait_for(told, 1)
            assert reports.connected
            assert reports.fault == ""

    asyncio.run(test())


def test_what_changes_while_they_are_written_is_answered_after_another_look() -> None:
    async def test() -> None:
        pods = Pods()
        reports = Reports("n1", Annotations(pods.written).open)
        reports.put(pod("web"))
        async with Background() as tasks:
            tasks.start(reports.run(), "reports")
            await until(lambda: pods.asked == 1)
            reports.remove(pod("web").uid)
            withdrawn = reports.acknowledged()
            await settle()
            pods.may_write.set()
            await asyncio.wait_for(withdrawn, 1)
            assert pods.asked == 2

    asyncio.run(test())
