"""What tests on a real Kubernetes share. Where it cannot run they are skipped, in one line; in CI that is a failure."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.cluster import istiod, needs
from tests.cluster.alone import ApiAlone
from tests.cluster.kube import binaries


def refuse() -> NoReturn:
    """The machine lacks something that the test needs: a skip for a person, a failure where the tests are required."""
    if os.environ.get("CULVERT_REQUIRE_CLUSTER"):
        pytest.fail(needs.lacking(), pytrace=False)
    pytest.skip(needs.lacking())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """A reason is one line of the summary, however many tests have it: pytest folds what is skipped at one place."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(Path(__file__).parent), 1, report.longrepr[2])
    return report


def new_server() -> ApiAlone:
    """A kube-apiserver and its etcd, not started; refuses where the machine cannot have one."""
    if os.geteuid() != 0 or shutil.which("etcd", path=binaries.SEARCHED) is None:
        refuse()
    try:
        return ApiAlone()
    except binaries.Missing:
        refuse()


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiAlone]:
    """One for the session: tests use namespaces of their own."""
    with new_server() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[ApiAlone]:
    """One that a test may ill-treat, or fill."""
    with new_server() as server:
        yield server


@pytest.fixture(scope="module")
def istio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[istiod.Stage]:
    """One with Istio's control plane beside it."""
    waiting = new_server()  # where there can be none either, that is the reason
    if not istiod.BINARY:
        pytest.skip("CULVERT_TEST_ISTIOD does not name a binary of Istio's pilot-discovery")
    folder = tmp_path_factory.mktemp("istiod")
    with waiting as server:
        stage = istiod.Stage(server, istiod.Istiod(server, folder), folder)
        try:
            asyncio.run(stage.start())
            yield stage
        finally:
            stage.istiod.kill()
