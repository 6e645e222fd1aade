"""One stream: when it sends what."""

import asyncio

from controller.serve.ads import Stream
from controller.serve.callers import Caller
from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.status.metrics import Metrics
from controller.translate.compile import Resource
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, ROOTS_TYPE, encode_resource


class Node:
    """A node that has asked for everything, and its stream."""

    def __init__(self) -> None:
        self.hub = Hub([ResourceSet(one) for one in (ADDRESS_TYPE, AUTHORIZATION_TYPE, ROOTS_TYPE)])
        self.stream = Stream(Caller("node-a"), self.hub, Metrics())
        for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            request = DeltaDiscoveryRequest(type_url=type_url)
            request.node.id = "ztunnel"
            self.stream.receive(request)

    def put(self, name: str, version: str = "1", type_url: str = ADDRESS_TYPE) -> None:
        encoded = encode_resource(type_url, name, version, b"")
        self.hub.sets[type_url].put(Resource(type_url, name, version, encoded))

    def is_awake(self) -> bool:
        """Whether the stream looks for something to send; it is not again unless it is woken again."""

        async def look() -> bool:
            try:
                await asyncio.wait_for(self.stream.wait(), 0.001)
            except TimeoutError:
                return False
            return True

        return asyncio.run(look())

    def take(self) -> list[DeltaDiscoveryResponse]:
        """All that can be sent after a waking."""
        self.stream.wake()
        assert self.is_awake()
        return self.take_more()

    def take_more(self) -> list[DeltaDiscoveryResponse]:
        """All that can be sent without another one."""
        found = []
        while (response := self.stream.next_response()) is not None:
            found.append(DeltaDiscoveryResponse.FromString(response))
        return found

    def answer(self, response: DeltaDiscoveryResponse) -> None:
        self.stream.receive(DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce))


def test_an_answer_brings_nothing_that_the_hub_has_not_called_for() -> None:
    node = Node()
    first, second = node.take()
    node.put("a")
    node.answer(first)
    node.answer(second)
    assert not node.is_awake()
    assert [one.name for response in node.take() for one in response.resources] == ["a"]


def test_what_comes_while_responses_are_written_waits_for_the_next_waking() -> None:
    node = Node()
    node.take()
    node.put("a")
    node.put("p", type_url=AUTHORIZATION_TYPE)
    node.stream.wake()
    first = DeltaDiscoveryResponse.FromString(node.stream.next_response() or b"")
    assert [one.name for one in first.resources] == ["p"]
    node.put("b")
    (second,) = node.take_more()
    assert [one.name for one in second.resources] == ["a", "b"]
    node.put("c")
    assert node.take_more() == [], "or a steady change would be a response for each object"
    (third,) = node.take()
    assert [one.name for one in third.resources] == ["c"]


def test_a_policy_that_comes_while_responses_are_written_still_goes_before_what_refers_to_it() -> None:
    node = Node()
    node.take()
    node.put("a")
    node.put("p", type_url=AUTHORIZATION_TYPE)
    node.stream.wake()
    node.stream.next_response()
    node.put("a", "that refers to q")
    node.put("q", type_url=AUTHORIZATION_TYPE)
    assert [[one.name for one in response.resources] for response in node.take_more()] == [["q"], ["a"]]


def test_an_answer_lets_go_what_waited_for_it() -> None:
    node = Node()
    responses = node.take()
    for version in range(10):
        node.put("a", str(version))
        responses += node.take()
    open_ones = [one for one in responses if one.type_url == ADDRESS_TYPE]
    assert len(open_ones) == 4, "no more than that many are sent unanswered"
    node.answer(open_ones[0])
    assert node.is_awake()
    (last,) = node.take_more()
    assert [(one.name, one.version) for one in last.resources] == [("a", "9")]
    assert not node.is_awake()


def test_removed_policies_go_once_the_addresses_have_gone() -> None:
    node = Node()
    node.put("p", type_url=AUTHORIZATION_TYPE)
    responses = node.take()
    for version in range(8):
        node.put("a", str(version))
        responses += node.take()
    node.hub.sets[AUTHORIZATION_TYPE].remove("p")
    assert node.take() == []
    node.answer(next(one for one in responses if one.type_url == ADDRESS_TYPE))
    assert node.is_awake()
    last = node.take_more()
    assert [one.type_url for one in last] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]
    assert last[1].removed_resources == ["p"]
