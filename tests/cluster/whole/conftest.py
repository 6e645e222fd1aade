"""One cluster for all modules of this folder, and the order in which they use it."""

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import refuse
from tests.cluster.kube import binaries
from tests.cluster.whole import kernel, objects
from tests.cluster.whole.stage import Whole
from tests.support.machine import alone

# From before the installation to after its removal, then once more with Helm. The demo's claims come while nothing has
# been killed yet.
ORDER = ("install", "demo", "policy", "enrolment", "upkeep", "reboot", "removal", "helm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put this folder's tests into order, where they stand among others."""
    places = [place for place, item in enumerate(items) if item.path.parent.name == "whole"]
    own = sorted((items[place] for place in places), key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))
    for place, item in zip(places, own, strict=True):
        items[place] = item


@pytest.fixture(scope="package")
def whole() -> Iterator[Whole]:
    """The cluster, without Culvert."""
    try:
        made = Whole()
    except binaries.Missing:
        refuse()
    with alone(), made:
        yield made


@pytest.fixture(scope="package")
def links_before(whole: Whole) -> set[int]:
    """BPF links of this machine that are not ours."""
    return kernel.links()


@pytest.fixture(scope="package")
def mesh(whole: Whole, links_before: set[int]) -> Whole:
    """The cluster with Culvert in it, and the pods of the demo."""
    whole.install()
    whole.cluster.apply(objects.demo(whole.place))
    for namespace in ("shop", "legacy", "late"):
        whole.cluster.kubectl("wait", "-n", namespace, "pod", "--all", "--for=condition=Ready", "--timeout=120s")
    return whole
