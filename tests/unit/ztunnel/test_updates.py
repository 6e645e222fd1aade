from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, Update
from tests.unit.ztunnel import mesh_builder as build
from ztunnel.state import Store
from ztunnel.updates import Updates

COOKIE = 7
WEB = "Kubernetes//Pod/shop/web"


class Kernel:
    """The maps, of which only the fallback bits are looked at."""

    def __init__(self) -> None:
        self.open: dict[int, bool] = {}
        self.numbers: list[dict[bytes, int]] = []

    def set_fallback(self, netns_cookie: int, is_open: bool) -> None:
        self.open[netns_cookie] = is_open

    def write_numbers(self, addresses: Mapping[bytes, int]) -> None:
        self.numbers.append(dict(addresses))

    def keep_numbers(self, numbers: object) -> None:
        pass


class Pods:
    def __iter__(self) -> Iterator[Any]:
        return iter([SimpleNamespace(workload_uid=WEB, netns_cookie=COOKIE)])


def update(type_url: str, *messages: Any) -> Update:
    return Update(type_url, "1", tuple(build.resource(message) for message in messages), ())


def stage() -> tuple[Updates, Kernel]:
    kernel: Any = Kernel()
    engine: Any = SimpleNamespace(publish=lambda tables: None)
    compiler: Any = SimpleNamespace(apply=lambda change: None)
    pods: Any = Pods()
    return Updates(Store(build.HERE), compiler, engine, kernel, pods, lambda: None), kernel


def test_bits_are_written_with_the_second_type_also_when_that_is_empty() -> None:
    """A mesh without policies: nothing changes after the workloads, and yet only now is it known that none guards."""
    updates, kernel = stage()
    updates.apply(update(ADDRESS_TYPE, build.workload("web", "10.0.0.1")))
    assert kernel.open == {}
    updates.apply(update(AUTHORIZATION_TYPE))
    assert kernel.open == {COOKIE: True}


def test_bits_follow_each_change_of_policies() -> None:
    updates, kernel = stage()
    updates.apply(update(AUTHORIZATION_TYPE))
    updates.apply(update(ADDRESS_TYPE, build.workload("web", "10.0.0.1")))
    assert kernel.open == {COOKIE: True}
    updates.apply(update(AUTHORIZATION_TYPE, build.authorization("guard")))
    assert kernel.open == {COOKIE: False}


def test_while_another_ztunnel_serves_it_alone_says_who_has_which_number() -> None:
    updates, kernel = stage()
    updates.apply(update(AUTHORIZATION_TYPE))
    updates.apply(update(ADDRESS_TYPE, build.workload("web", "10.0.0.1")))
    assert updates.may_name
    updates.retire(True)
    before = len(kernel.numbers)
    updates.apply(update(ADDRESS_TYPE, build.workload("late", "10.0.0.2")))
    assert (len(kernel.numbers), updates.may_name) == (before, False)
    updates.retire(False)
    assert updates.may_name
    assert len(kernel.numbers[-1]) == 2, "what it would have written meanwhile, and what the other one changed"
