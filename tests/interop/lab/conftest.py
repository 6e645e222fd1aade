"""One lab for all tests here, and Envoy on either side of it."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.lab.stage import APP, Lab, listening
from tests.support import envoy
from tests.support.machine import alone
from tests.support.sockets import HBONE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(300))  # the machine's lock may be another run's for a while


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("a lab makes namespaces and attaches programs: needs root")
    made = Lab(f"cvg-{os.getpid()}", tmp_path_factory.mktemp("lab"))
    with alone():
        made.up()
        try:
            yield made
        finally:
            made.culvert("down")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="package")
def envoy_client(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], socket.socket]]:
    """Dial what Envoy in the pod `caller` carries to the application of `server`."""
    config = envoy.client_config(
        envoy.Address("127.0.0.1", 9000),
        envoy.Address(lab.ip("server"), HBONE),
        envoy.Address(lab.ip("server"), APP),
        lab.credential("caller"),
    )
    with envoy.running(config, tmp_path_factory.mktemp("client"), "client", lab.netns("caller")):
        listening(lab, "caller", 9000)
        yield lambda: lab.dial("caller", "127.0.0.1", 9000)


@pytest.fixture
def envoy_server(lab: Lab, tmp_path: Path) -> Iterator[envoy.Envoy]:
    """Envoy with 15008 in the pod `envoy`; the application behind it listens on loopback."""
    own = lab.ip("envoy")
    config = envoy.server_config(envoy.Address(own, HBONE), envoy.Address("127.0.0.1", APP), lab.credential("envoy"))
    with envoy.running(config, tmp_path, "server", lab.netns("envoy")) as running:
        listening(lab, "envoy", HBONE)
        yield running
