"""What tests on a real Kubernetes share. Without its binaries they are skipped in one line, in CI that is a failure."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.cluster.alone import ApiAlone
from tests.cluster.kube import binaries


def refuse(reason: str) -> None:
    """The machine lacks something: a skip for a person, a failure where the tests are required."""
    if os.environ.get("CULVERT_REQUIRE_CLUSTER"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def new_server() -> ApiAlone:
    """A kube-apiserver and its etcd, not started; refuses where the machine cannot have one."""
    if os.geteuid() != 0:
        refuse("an API server for tests needs root, for cgroups")
    if shutil.which("etcd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
        refuse("etcd is missing: apt-get install etcd-server")
    try:
        return ApiAlone()
    except binaries.Missing as missing:
        refuse(str(missing))
        raise


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
