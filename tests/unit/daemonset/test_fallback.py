import asyncio
from collections.abc import Awaitable, Callable

from daemonset.enrolment import KernelFault
from daemonset.fallback import RETRY_S, FallbackGuard
from mesh.aio import Background
from tests.unit.daemonset.fakes import FakeClock, settle

AFTER_S = 5.0


class Stage:
    """A kernel with two open pods, and ztunnels that come and go."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.open = 2
        self.fault = ""
        self.present = True
        self._waiting: list[tuple[bool, asyncio.Future[None]]] = []

    def close_fallbacks(self) -> int:
        if self.fault:
            raise KernelFault(self.fault)
        closed, self.open = self.open, 0
        return closed

    def until(self, *, present: bool) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((present, future))
        self._tell()
        return future

    async def be(self, present: bool) -> None:
        self.present = present
        self._tell()
        await settle()

    def _tell(self) -> None:
        for wanted, future in self._waiting:
            if wanted is self.present and not future.done():
                future.set_result(None)


def play(body: Callable[[Stage], Awaitable[None]], *, present: bool = True) -> None:
    async def run() -> None:
        stage = Stage()
        stage.present = present
        async with Background() as background:
            background.start(FallbackGuard(stage, stage, stage.clock, AFTER_S).run(), "guard")
            await settle()
            await body(stage)

    asyncio.run(run())


def test_pods_stay_open_for_as_long_as_a_restart_takes() -> None:
    async def body(stage: Stage) -> None:
        await stage.be(False)
        await stage.clock.advance(AFTER_S - 0.1)
        await stage.be(True)
        await stage.clock.advance(10 * AFTER_S)
        assert stage.open == 2

    play(body)


def test_pods_are_closed_when_ztunnel_stays_away() -> None:
    async def body(stage: Stage) -> None:
        await stage.be(False)
        await stage.clock.advance(AFTER_S)
        assert stage.open == 0

    play(body)


def test_time_begins_anew_each_time_ztunnel_leaves() -> None:
    async def body(stage: Stage) -> None:
        for _ in range(3):
            await stage.be(False)
            await stage.clock.advance(AFTER_S - 1)
            await stage.be(True)
        assert stage.open == 2
        await stage.be(False)
        await stage.clock.advance(AFTER_S)
        assert stage.open == 0
        stage.open = 2  # ztunnel came back and set them anew, then it leaves again
        await stage.be(True)
        await stage.be(False)
        await stage.clock.advance(AFTER_S)
        assert stage.open == 0

    play(body)


def test_agent_that_finds_no_ztunnel_at_its_start_closes_them_too() -> None:
    async def body(stage: Stage) -> None:
        await stage.clock.advance(AFTER_S)
        assert stage.open == 0

    play(body, present=False)


def test_map_that_cannot_be_written_is_tried_again_until_ztunnel_is_back() -> None:
    async def body(stage: Stage) -> None:
        stage.fault = "no memory"
        await stage.be(False)
        await stage.clock.advance(AFTER_S)
        await stage.clock.advance(RETRY_S)
        assert stage.open == 2
        stage.fault = ""
        await stage.clock.advance(RETRY_S)
        assert stage.open == 0

    play(body)
