"""Both ends of a delta xDS stream as traces: what goes in, what comes out, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from mesh.xds import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    ROOTS_TYPE,
    TRANSITIONS,
    Acked,
    LocalProtocolError,
    Nacked,
    Phase,
    Publisher,
    RemoteProtocolError,
    Step,
    Subscribed,
    Subscriber,
    Unserved,
    Unsubscribed,
    encode_resource,
    encode_response,
)

NODE = Node(id="ztunnel~10.0.0.1~z.culvert-system~culvert-system.svc.cluster.local")


def response(nonce: str, changed: dict[str, str], removed: tuple[str, ...] = ()) -> DeltaDiscoveryResponse:
    """Name -> version; each value is the name itself."""
    encoded = [encode_resource(ADDRESS_TYPE, name, version, name.encode()) for name, version in changed.items()]
    return DeltaDiscoveryResponse.FromString(encode_response(ADDRESS_TYPE, nonce, encoded, removed))


def opened() -> Subscriber:
    subscriber = Subscriber(NODE, [ADDRESS_TYPE])
    subscriber.open()
    return subscriber


def asked(*names: str, window: int = 4) -> Publisher:
    publisher = Publisher([ADDRESS_TYPE, AUTHORIZATION_TYPE], window=window)
    publisher.receive(DeltaDiscoveryRequest(node=NODE, type_url=ADDRESS_TYPE, resource_names_subscribe=names))
    return publisher


# --- the node's end


def test_first_requests_name_the_node_and_ask_for_everything() -> None:
    requests = Subscriber(NODE, [ADDRESS_TYPE, AUTHORIZATION_TYPE]).open()
    assert [request.type_url for request in requests] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]
    for request in requests:
        assert request.node == NODE
        assert not request.resource_names_subscribe
        assert not request.initial_resource_versions


def test_applied_update_is_acked_and_its_versions_go_into_the_next_stream() -> None:
    subscriber = opened()
    update = subscriber.receive(response("1", {"a": "v1", "b": "v1"}))
    assert [one.name for one in update.changed] == ["a", "b"]
    assert update.changed[0].value == b"a"
    ack = subscriber.answer(update)
    assert (ack.response_nonce, ack.HasField("error_detail")) == ("1", False)
    subscriber.answer(subscriber.receive(response("2", {"a": "v2"}, ("b",))))
    (again,) = subscriber.open()
    assert dict(again.initial_resource_versions) == {"a": "v2"}


def test_refused_resource_is_named_in_the_nack_and_asked_for_again() -> None:
    subscriber = opened()
    update = subscriber.receive(response("1", {"a": "v1", "b": "v1"}))
    nack = subscriber.answer(update, {"b": "no address"})
    assert nack.error_detail.message == "b: no address"
    assert dict(subscriber.open()[0].initial_resource_versions) == {"a": "v1", "b": ""}


def test_a_refused_resource_is_named_on_the_next_stream_so_that_its_removal_is_told() -> None:
    subscriber = opened()
    subscriber.answer(subscriber.receive(response("1", {"good": "1", "kept": "1"})))
    update = subscriber.receive(response("2", {"kept": "2", "new": "1"}))
    subscriber.answer(update, {"kept": "bad", "new": "bad"})
    (request,) = subscriber.open()
    assert dict(request.initial_resource_versions) == {"good": "1", "kept": "1", "new": ""}


def test_resource_of_another_type_is_refused_without_the_caller() -> None:
    subscriber = opened()
    alien = response("1", {"a": "v1"})
    alien.resources[0].resource.type_url = AUTHORIZATION_TYPE
    update = subscriber.receive(alien)
    assert update.changed == ()
    assert "a: type" in subscriber.answer(update).error_detail.message


def test_synced_once_every_type_was_answered_and_stays_so_over_reconnects() -> None:
    subscriber = Subscriber(NODE, [ADDRESS_TYPE, AUTHORIZATION_TYPE])
    subscriber.open()
    subscriber.answer(subscriber.receive(response("1", {})))
    assert not subscriber.is_synced
    other = DeltaDiscoveryResponse(type_url=AUTHORIZATION_TYPE, nonce="2")
    subscriber.answer(subscriber.receive(other))
    assert subscriber.is_synced
    subscriber.open()
    assert subscriber.is_synced


@pytest.mark.parametrize("wrong", [DeltaDiscoveryResponse(type_url="x", nonce="1"), response("", {"a": "v1"})])
def test_unasked_type_or_missing_nonce_is_the_peers_fault(wrong: DeltaDiscoveryResponse) -> None:
    with pytest.raises(RemoteProtocolError):
        opened().receive(wrong)


def test_nonce_used_twice_is_the_peers_fault_and_answered_twice_is_ours() -> None:
    subscriber = opened()
    update = subscriber.receive(response("1", {}))
    with pytest.raises(RemoteProtocolError):
        subscriber.receive(response("1", {}))
    subscriber.answer(update)
    with pytest.raises(LocalProtocolError):
        subscriber.answer(update)


def test_answer_to_an_update_of_an_earlier_stream_is_our_fault() -> None:
    subscriber = opened()
    update = subscriber.receive(response("1", {}))
    subscriber.open()
    with pytest.raises(LocalProtocolError):
        subscriber.answer(update)


# --- the control plane's end


def test_first_request_subscribes_and_tells_what_is_held() -> None:
    publisher = Publisher([ADDRESS_TYPE])
    request = DeltaDiscoveryRequest(node=NODE, type_url=ADDRESS_TYPE, initial_resource_versions={"a": "v1"})
    assert publisher.receive(request) == [Subscribed(ADDRESS_TYPE, (), True, {"a": "v1"})]
    assert publisher.subscription(ADDRESS_TYPE).is_wildcard
    assert publisher.node == NODE


def test_who_drops_everything_at_once_wants_nothing_yet() -> None:
    """How a node begins that asks on demand: an empty list would mean everything."""
    publisher = Publisher([ADDRESS_TYPE])
    request = DeltaDiscoveryRequest(
        node=NODE, type_url=ADDRESS_TYPE, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"]
    )
    publisher.receive(request)
    assert not publisher.subscription(ADDRESS_TYPE).is_wildcard
    assert publisher.subscription(ADDRESS_TYPE).names == set()


def test_ack_and_nack_settle_a_response() -> None:
    publisher = asked()
    first, second = publisher.begin_response(ADDRESS_TYPE), publisher.begin_response(ADDRESS_TYPE)
    ack = DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce=first)
    nack = DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce=second)
    nack.error_detail.message = "a: bad"
    assert publisher.receive(ack) == [Acked(ADDRESS_TYPE, first)]
    assert not publisher.is_settled(ADDRESS_TYPE)
    assert publisher.receive(nack) == [Nacked(ADDRESS_TYPE, second, "a: bad")]
    assert publisher.is_settled(ADDRESS_TYPE)


def test_a_node_that_does_not_answer_gets_no_more_than_the_window() -> None:
    publisher = asked(window=2)
    publisher.begin_response(ADDRESS_TYPE)
    second = publisher.begin_response(ADDRESS_TYPE)
    assert not publisher.may_send(ADDRESS_TYPE)
    with pytest.raises(LocalProtocolError):
        publisher.begin_response(ADDRESS_TYPE)
    publisher.receive(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce=second))
    assert publisher.may_send(ADDRESS_TYPE)


def test_nothing_is_sent_of_a_type_that_was_not_asked_for() -> None:
    publisher = asked()
    assert not publisher.may_send(AUTHORIZATION_TYPE)
    assert not publisher.is_asked(AUTHORIZATION_TYPE)


def test_names_widen_and_narrow_a_subscription() -> None:
    publisher = asked("a", "b")
    more = DeltaDiscoveryRequest(
        type_url=ADDRESS_TYPE, resource_names_subscribe=["b", "c"], resource_names_unsubscribe=["a", "x"]
    )
    assert publisher.receive(more) == [
        Subscribed(ADDRESS_TYPE, ("c",), False, {}),
        Unsubscribed(ADDRESS_TYPE, ("a",)),
    ]
    assert publisher.subscription(ADDRESS_TYPE).names == {"b", "c"}


def test_an_ack_may_carry_names() -> None:
    publisher = asked("a")
    nonce = publisher.begin_response(ADDRESS_TYPE)
    both = DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce=nonce, resource_names_subscribe=["b"])
    assert publisher.receive(both) == [Acked(ADDRESS_TYPE, nonce), Subscribed(ADDRESS_TYPE, ("b",), False, {})]


def test_nonce_of_an_earlier_stream_in_a_first_request_means_nothing() -> None:
    publisher = Publisher([ADDRESS_TYPE])
    events = publisher.receive(DeltaDiscoveryRequest(node=NODE, type_url=ADDRESS_TYPE, response_nonce="77"))
    assert events == [Subscribed(ADDRESS_TYPE, (), True, {})]


def test_a_type_that_is_not_served_disturbs_no_other() -> None:
    publisher = Publisher([ADDRESS_TYPE])
    with pytest.raises(RemoteProtocolError, match="node"):
        publisher.receive(DeltaDiscoveryRequest(type_url="type.googleapis.com/x"))
    (event,) = publisher.receive(DeltaDiscoveryRequest(node=NODE, type_url="type.googleapis.com/x"))
    assert event == Unserved("type.googleapis.com/x")
    publisher.receive(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE))
    assert publisher.may_send(ADDRESS_TYPE)


def test_an_extra_type_is_asked_for_and_not_waited_for() -> None:
    subscriber = Subscriber(NODE, [ADDRESS_TYPE], extra=[ROOTS_TYPE])
    assert [request.type_url for request in subscriber.open()] == [ADDRESS_TYPE, ROOTS_TYPE]
    subscriber.answer(subscriber.receive(DeltaDiscoveryResponse(type_url=ADDRESS_TYPE, nonce="1")))
    assert subscriber.is_synced
    assert not subscriber.is_answered(ROOTS_TYPE)
    assert [request.type_url for request in subscriber.open(with_extra=False)] == [ADDRESS_TYPE]
    with pytest.raises(RemoteProtocolError, match="not subscribed"):
        subscriber.receive(DeltaDiscoveryResponse(type_url=ROOTS_TYPE, nonce="1"))


@pytest.mark.parametrize(
    "wrong",
    [
        DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce="99"),
        DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, resource_names_subscribe=["a", "b", "c", "d"]),
    ],
)
def test_impossible_requests_are_the_peers_fault(wrong: DeltaDiscoveryRequest) -> None:
    publisher = Publisher([ADDRESS_TYPE], max_names=3)
    publisher.receive(DeltaDiscoveryRequest(node=NODE, type_url=ADDRESS_TYPE))
    with pytest.raises(RemoteProtocolError):
        publisher.receive(wrong)


def test_a_stream_that_does_not_say_who_it_is_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="node"):
        Publisher([ADDRESS_TYPE]).receive(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE))


# --- both, and the bytes between them


def test_every_phase_is_reached_and_left() -> None:
    assert {phase for phase, _ in TRANSITIONS} == set(Phase)
    assert set(TRANSITIONS.values()) == set(Phase) - {Phase.UNASKED}
    assert {step for _, step in TRANSITIONS} == set(Step)


@given(st.lists(st.tuples(st.text(max_size=300), st.text(max_size=16), st.binary(max_size=400)), max_size=8))
def test_joined_resources_are_a_response(resources: list[tuple[str, str, bytes]]) -> None:
    encoded = [encode_resource(ADDRESS_TYPE, name, version, value, ["alias"]) for name, version, value in resources]
    read = DeltaDiscoveryResponse.FromString(encode_response(ADDRESS_TYPE, "7", encoded, ["gone"]))
    assert (read.type_url, read.nonce, list(read.removed_resources)) == (ADDRESS_TYPE, "7", ["gone"])
    assert [(one.name, one.version, one.resource.value) for one in read.resources] == resources


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "v1", "v2", "v3"])), max_size=30))
def test_a_subscriber_holds_what_was_last_sent(steps: list[tuple[str, str]]) -> None:
    """An empty version removes; whatever the order, both ends agree on what the node holds."""
    subscriber = Subscriber(NODE, [ADDRESS_TYPE])
    publisher = Publisher([ADDRESS_TYPE], window=1)
    for request in subscriber.open():
        publisher.receive(request)
    held: dict[str, str] = {}
    for name, version in steps:
        nonce = publisher.begin_response(ADDRESS_TYPE)
        if version:
            held[name] = version
            message = response(nonce, {name: version})
        else:
            held.pop(name, None)
            message = response(nonce, {}, (name,))
        publisher.receive(subscriber.answer(subscriber.receive(message)))
    assert subscriber.versions(ADDRESS_TYPE) == held
