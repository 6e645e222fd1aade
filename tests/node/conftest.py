from collections.abc import Iterator

import pytest

from tests.support import machine as shared


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """Root, the features, and the machine's cgroup root to ourselves."""
    with shared.ready_for_programs():
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """Programs at the cgroup root see the whole machine: one set of tests at a time."""
    with shared.alone():
        yield
