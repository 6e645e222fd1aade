import asyncio

import pytest

from cli.presence import goes_by_istio_labels, honours_istio_labels
from mesh.kube.api import Page
from mesh.kube.errors import Forbidden


class Sets:
    """An API with DaemonSets of ours, or one that does not show them."""

    def __init__(self, *arguments, fault=None):
        self._items = [node_set(words) for words in arguments]
        self._fault = fault

    async def page(self, selection):
        assert "culvert-node" in selection.label_selector
        if self._fault:
            raise self._fault
        return Page(self._items, "1", "")


def node_set(words):
    return {"spec": {"template": {"spec": {"containers": [{"args": words}]}}}}


@pytest.mark.parametrize(
    ("api", "found"),
    [
        (Sets(), None),
        (Sets(["--istio-labels=false"]), False),
        (Sets(["--node=x", "--istio-labels=true"]), True),
        (Sets(fault=Forbidden("no", 403)), False),
    ],
)
def test_what_an_installation_goes_by_is_read_off_its_agents(api, found):
    assert asyncio.run(honours_istio_labels(api)) is found


@pytest.mark.parametrize("found", [True, False])
def test_an_agent_says_itself_what_it_goes_by(found):
    assert goes_by_istio_labels(node_set(["--node=x", f"--istio-labels={str(found).lower()}"])) is found
