"""The store: what an update changes, numbers that stay, names that are kept, and malformed resources on their own."""

from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format

from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, Changed, Update
from tests.unit.ztunnel.mesh_builder import HERE, authorization, by_address, by_service, ip, resource, service, workload
from ztunnel.change import Change
from ztunnel.endpoints import Endpoint
from ztunnel.model import Policy, Workload
from ztunnel.parse import InvalidResource
from ztunnel.state import Store

RECORDED = Path(__file__).parents[2] / "golden/recorded"
WEB = "shop/web.shop"
POD = "Kubernetes//Pod/shop/"

Message = wire.Workload | wire.Service | security.Authorization


def put(store: Store, *messages: Message) -> Change:
    type_url = AUTHORIZATION_TYPE if isinstance(messages[0], security.Authorization) else ADDRESS_TYPE
    return store.apply(Update(type_url, "n", tuple(resource(message) for message in messages), ()))


def remove(store: Store, *names: str, type_url: str = ADDRESS_TYPE) -> Change:
    return store.apply(Update(type_url, "n", (), names))


def numbers(store: Store, *names: str) -> frozenset[int]:
    found = [
        store.workload_number(POD + name) or store.service_number(name) or store.policy_number(name) for name in names
    ]
    assert all(found)
    return frozenset(found)


def test_the_same_again_changes_nothing() -> None:
    store = Store(HERE)
    messages = (workload("web-1", "10.0.1.1", services={WEB: {80: 8080}}), service("web", "10.96.0.1"))
    assert put(store, *messages)
    assert not put(store, *messages)
    assert put(store, authorization("p"))
    assert not put(store, authorization("p"))


def test_endpoints_follow_their_workloads() -> None:
    store = Store(HERE)
    put(store, workload("web-1", "10.0.1.1", services={WEB: {80: 8080}}))
    change = put(store, service("web", "10.96.0.1"))
    assert (change.workloads, change.services) == (frozenset(), numbers(store, WEB))
    (member,) = numbers(store, "web-1")
    assert store.endpoints(*numbers(store, WEB)) == {
        80: (Endpoint(member, 80, 8080, 1),),
        0: (Endpoint(member, 0, 0, 1),),
    }
    change = put(store, workload("web-1", "10.0.1.1", services={WEB: {80: 9090}}))
    assert (change.workloads, change.services) == (numbers(store, "web-1"), numbers(store, WEB))
    change = remove(store, POD + "web-1")
    assert (change.removed, change.services) == (frozenset([member]), numbers(store, WEB))
    assert store.endpoints_of_port(store.service_number(WEB), 80) == ()


def test_service_is_not_put_again_when_its_endpoints_stay_what_they_are() -> None:
    store = Store(HERE)
    put(store, service("web", "10.96.0.1"), workload("web-1", "10.0.1.1", services={WEB: {80: 8080}}))
    change = put(store, workload("web-1", "10.0.1.1", services={WEB: {80: 8080}}, canonical_name="other"))
    assert (change.workloads, change.services) == (numbers(store, "web-1"), frozenset())


def test_malformed_resource_is_named_and_the_others_go_on() -> None:
    store = Store(HERE)
    put(store, workload("web-1", "10.0.1.1"))
    bad = wire.Workload(uid=POD + "web-1", namespace="shop", addresses=[b"abc"])
    update = Update(ADDRESS_TYPE, "n", (resource(bad), Changed("x", "1", b"\xff"), resource(service("web"))), ())
    change = store.apply(update)
    assert set(change.refused) == {POD + "web-1", "x"}
    assert "616263" in change.refused[POD + "web-1"]
    assert numbers(store, WEB)
    kept = store.workload(store.workload_number(POD + "web-1"))
    assert kept is not None and kept.addresses == (ip("10.0.1.1"),)


def test_unknown_type_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="no place"):
        Store(HERE).apply(Update("type.googleapis.com/other", "n", (), ()))


def test_removing_what_is_not_there_changes_nothing() -> None:
    assert not remove(Store(HERE), "a", "shop/b", "")
    assert not remove(Store(HERE), "a", type_url=AUTHORIZATION_TYPE)


# --- numbers ----------------------------------------------------------------------------------------------------


def test_a_workload_gets_back_the_number_that_its_address_had() -> None:
    before = Store(HERE)
    put(before, workload("a", "10.0.0.1", "fd00::1"), workload("b", "10.0.0.2"), service("web", "10.96.0.1"))
    after = Store(HERE, before.address_numbers)
    put(after, service("web", "10.96.0.1"), workload("new", "10.0.0.3"), workload("b", "10.0.0.2"))
    put(after, workload("a", "fd00::1"))
    assert numbers(after, "a", "b") == numbers(before, "a", "b")
    assert not numbers(after, WEB, "new") & numbers(before, "a", "b")


def test_numbers_of_workloads_not_yet_announced_are_not_given_to_others() -> None:
    restored = {ip("10.0.0.1"): 7, ip("10.0.0.2"): 3}
    store = Store(HERE, restored)
    put(store, *(service(f"s{i}") for i in range(10)))
    put(store, workload("a", "10.0.0.1"))
    assert numbers(store, "a") == {7}


def test_an_address_that_moves_does_not_move_the_number() -> None:
    store = Store(HERE, {ip("10.0.0.1"): 7})
    put(store, workload("a", "10.0.0.1"))
    put(store, workload("b", "10.0.0.1"))
    assert numbers(store, "a") == {7} != numbers(store, "b")
    remove(store, POD + "a")
    put(store, workload("c", "10.0.0.1"))
    assert 7 not in numbers(store, "b", "c")


def test_host_network_and_foreign_workloads_do_not_take_an_addresss_number() -> None:
    store = Store(HERE, {ip("10.0.0.1"): 7})
    put(store, workload("host", "10.0.0.1", network_mode=1), workload("far", "10.0.0.1", network="far"))
    assert 7 not in numbers(store, "host", "far")
    assert store.address_numbers == {}


def test_changes_tell_who_has_an_address_now() -> None:
    store = Store(HERE)
    assert put(store, workload("a", "10.0.0.1")).addresses == {ip("10.0.0.1"): store.workload_number(POD + "a")}
    assert put(store, workload("a", "10.0.0.1", canonical_name="x")).addresses == {}
    moved = put(store, workload("a", "10.0.0.2")).addresses
    assert moved == {ip("10.0.0.1"): 0, ip("10.0.0.2"): store.workload_number(POD + "a")}
    assert remove(store, POD + "a").addresses == {ip("10.0.0.2"): 0}
    assert store.address_numbers == {}


def test_a_services_own_address_is_its_number_until_a_workload_has_it() -> None:
    store = Store(HERE)
    change = put(store, service("web", "10.96.0.1", "10.97.0.0/16", "far=10.96.0.2"))
    assert change.addresses == {ip("10.96.0.1"): store.service_number(WEB)}
    taken = put(store, workload("a", "10.96.0.1")).addresses
    assert taken == {ip("10.96.0.1"): store.workload_number(POD + "a")}
    assert remove(store, POD + "a").addresses == {ip("10.96.0.1"): store.service_number(WEB)}
    after = Store(HERE, store.address_numbers)
    put(after, service("other", "10.96.0.9"), service("web", "10.96.0.1"))
    assert after.service_number(WEB) == store.service_number(WEB)
    assert remove(store, WEB).addresses == {ip("10.96.0.1"): 0}


def test_removed_object_stays_readable_by_number_up_to_a_bound() -> None:
    store = Store(HERE, retained=2)
    gone: list[int] = []
    for name in ("a", "b", "c"):
        put(store, workload(name, "10.0.0.1"))
        gone.append(*numbers(store, name))
        remove(store, POD + name)
    assert store.workload(gone[2]) is None
    assert [isinstance(store.named(number), Workload) for number in gone] == [False, True, True]
    store.forget(gone[2])
    assert store.named(gone[2]) is None


def test_forgetting_a_live_object_does_nothing() -> None:
    store = Store(HERE)
    put(store, workload("a", "10.0.0.1"), workload("b", "10.0.0.2"))
    store.forget(*numbers(store, "a"))
    assert store.named(*numbers(store, "a")) is not None


# --- policies ---------------------------------------------------------------------------------------------------


def local(name: str = "pod", **more: object) -> wire.Workload:
    return workload(name, "10.0.0.1", node="node-a", **more)  # type: ignore[arg-type]


def test_policies_touch_the_pods_that_they_select_and_only_on_this_node() -> None:
    store = Store(HERE)
    put(
        store,
        local(authorization_policies=["shop/sel"]),
        local("zoo-pod", namespace="zoo"),
        workload("far", "10.9.9.9"),
    )
    zoo = store.workload_number("Kubernetes//Pod/zoo/zoo-pod")
    selector = security.Scope.WORKLOAD_SELECTOR
    assert put(store, authorization("ns")).workloads == numbers(store, "pod")
    assert put(store, authorization("sel", scope=selector)).workloads == numbers(store, "pod")
    assert put(store, authorization("other", scope=selector)).workloads == frozenset()
    everywhere = authorization("all", namespace="root", scope=security.Scope.GLOBAL)
    assert put(store, everywhere).workloads == numbers(store, "pod") | {zoo}
    assert remove(store, "root/all", type_url=AUTHORIZATION_TYPE).workloads == numbers(store, "pod") | {zoo}


def test_policy_that_changes_its_scope_touches_those_it_leaves() -> None:
    store = Store(HERE)
    put(store, local())
    put(store, authorization("p"))
    assert put(store, authorization("p", scope=security.Scope.WORKLOAD_SELECTOR)).workloads == numbers(store, "pod")
    pod = store.workload(store.workload_number(POD + "pod"))
    assert pod is not None and store.policies_of(pod) == ()


def test_policies_come_in_the_order_of_their_names_once_each() -> None:
    store = Store(HERE)
    put(store, local(authorization_policies=["shop/b", "shop/b", "shop/c"]))
    put(store, authorization("c", scope=security.Scope.WORKLOAD_SELECTOR), authorization("b"), authorization("a"))
    pod = store.workload(store.workload_number(POD + "pod"))
    assert pod is not None
    assert store.policies_of(pod) == tuple(store.policy_number(f"shop/{name}") for name in "abc")


def test_only_a_pod_that_nothing_restricts_lets_pass_unguarded() -> None:
    store = Store(HERE)
    assert not store.lets_pass_unguarded(POD + "pod")
    put(store, local())
    assert store.lets_pass_unguarded(POD + "pod")
    put(store, authorization("trial", dry_run=True))
    assert store.lets_pass_unguarded(POD + "pod")
    put(store, authorization("deny", action=security.Action.DENY))
    assert not store.lets_pass_unguarded(POD + "pod")
    remove(store, "shop/deny", type_url=AUTHORIZATION_TYPE)
    assert store.lets_pass_unguarded(POD + "pod")


def test_a_policy_that_has_not_arrived_guards_already() -> None:
    store = Store(HERE)
    put(store, local(authorization_policies=["root/strict"]))
    assert not store.lets_pass_unguarded(POD + "pod")


# --- policies that nobody understands -----------------------------------------------------------------------------


def broken(name: str, scope: str = "NAMESPACE", **more: object) -> security.Authorization:
    match = security.Match(destination_ports=[70000])
    return authorization(name, security.Rule(clauses=[security.Clause(matches=[match])]), scope=scope, **more)


def test_a_new_policy_that_is_not_understood_refuses_everything_for_those_it_selects() -> None:
    store = Store(HERE)
    put(store, local(), local("picked", authorization_policies=["shop/sel"]), local("zoo-pod", namespace="zoo"))
    change = put(store, broken("sel", "WORKLOAD_SELECTOR"))
    assert "destination_ports[0]: destination port 70000" in change.refused["shop/sel"]
    assert change.policies == numbers(store, "shop/sel")
    assert change.workloads == numbers(store, "picked")
    assert [policies_of(store, name) for name in ("pod", "picked")] == [(), ("shop/sel",)]
    put(store, broken("ns"))
    assert [policies_of(store, name) for name in ("pod", "picked")] == [("shop/ns",), ("shop/ns", "shop/sel")]
    assert policies_of(store, "zoo-pod", "zoo") == ()
    put(store, broken("all", "GLOBAL", namespace="root"))
    assert policies_of(store, "zoo-pod", "zoo") == ("root/all",)
    assert set(store.policy_faults) == {"shop/sel", "shop/ns", "root/all"}
    assert not store.lets_pass_unguarded("Kubernetes//Pod/zoo/zoo-pod")


def policies_of(store: Store, pod: str, namespace: str = "shop") -> tuple[str, ...]:
    found = store.workload(store.workload_number(f"Kubernetes//Pod/{namespace}/{pod}"))
    assert found is not None
    policies = [store.policy(number) for number in store.policies_of(found)]
    return tuple(policy.name for policy in policies if policy is not None)


def test_the_last_version_that_was_understood_stays_in_force() -> None:
    store = Store(HERE)
    put(store, local())
    put(store, authorization("p", action=security.Action.ALLOW))
    before = store.policy(store.policy_number("shop/p"))
    change = put(store, broken("p"))
    assert set(change.refused) == {"shop/p"}
    assert not change
    assert store.policy(store.policy_number("shop/p")) is before
    assert set(store.policy_faults) == {"shop/p"}


def test_a_version_that_is_understood_takes_the_place_of_the_stand_in() -> None:
    store = Store(HERE)
    put(store, local())
    put(store, broken("p"))
    number = store.policy_number("shop/p")
    change = put(store, authorization("p"))
    assert change.policies == {number}
    found = store.policy(number)
    assert found is not None and not found.fault and not found.rules
    assert store.policy_faults == {}


def test_a_stand_in_goes_with_its_policy() -> None:
    store = Store(HERE)
    put(store, local())
    put(store, broken("p"))
    assert remove(store, "shop/p", type_url=AUTHORIZATION_TYPE).removed
    assert policies_of(store, "pod") == ()
    assert store.policy_faults == {}


def test_a_stand_in_says_why_of_the_newest_version() -> None:
    store = Store(HERE)
    put(store, broken("p"))
    put(store, authorization("p", scope=9))
    found = store.policy(store.policy_number("shop/p"))
    assert found is not None and found.fault == "scope 9 is not supported" == store.policy_faults["shop/p"]


def test_bytes_that_are_no_policy_refuse_everything_in_the_namespace_that_their_name_says() -> None:
    store = Store(HERE)
    put(store, local(), local("zoo-pod", namespace="zoo"))
    store.apply(Update(AUTHORIZATION_TYPE, "n", (Changed("shop/p", "1", b"\xff"),), ()))
    store.apply(Update(AUTHORIZATION_TYPE, "n", (), (), {"shop/q": "type 'x' in a response of 'y'"}))
    assert policies_of(store, "pod") == ("shop/p", "shop/q")
    assert policies_of(store, "zoo-pod", "zoo") == ()


def test_a_policy_that_the_engine_does_not_take_is_treated_in_the_same_way() -> None:
    def check(policy: Policy) -> None:
        raise InvalidResource(policy.name, "too much")

    store = Store(HERE, check=check)
    assert put(store, authorization("p")).refused == {"shop/p": "too much"}
    found = store.policy(store.policy_number("shop/p"))
    assert found is not None and found.fault == "too much"


def test_policies_select_a_pod_also_when_the_rest_of_its_newest_version_is_not_understood() -> None:
    store = Store(HERE)
    put(store, local())
    put(store, authorization("sel", scope=security.Scope.WORKLOAD_SELECTOR))
    change = put(store, local(authorization_policies=["shop/sel"], network="a\0b"))
    assert set(change.refused) == {POD + "pod"}
    assert change.workloads == numbers(store, "pod")
    assert policies_of(store, "pod") == ("shop/sel",)
    store.apply(Update(ADDRESS_TYPE, "n", (Changed(POD + "pod", "1", b"\xff"),), ()))
    assert policies_of(store, "pod") == ("shop/sel",)


def test_an_address_that_is_not_understood_is_nobodys_policy() -> None:
    store = Store(HERE)
    store.apply(Update(ADDRESS_TYPE, "n", (Changed("shop/p", "1", b"\xff"),), (), {"a/b": "alien"}))
    assert store.policy_faults == {}
    assert not store.policy_number("shop/p")


# --- references -------------------------------------------------------------------------------------------------


def test_who_refers_to_a_waypoint_is_put_again_when_it_comes_and_goes() -> None:
    store = Store(HERE)
    put(
        store,
        service("by-name", waypoint=by_service("shop/gate.shop")),
        workload("by-address", "10.0.0.1", waypoint=by_address("10.0.9.1")),
        service("by-vip", waypoint=by_address("10.96.0.9")),
    )
    change = put(store, service("gate", "10.96.0.9"))
    assert change.services == numbers(store, "shop/gate.shop", "shop/by-name.shop", "shop/by-vip.shop")
    assert put(store, workload("gate-1", "10.0.9.1")).workloads == numbers(store, "gate-1", "by-address")
    assert remove(store, POD + "gate-1").workloads == numbers(store, "by-address")
    assert remove(store, "shop/gate.shop").services == numbers(store, "shop/by-name.shop", "shop/by-vip.shop")


def test_this_nodes_locality_is_learned_from_its_pods() -> None:
    store = Store(HERE)
    near = wire.LoadBalancing(routing_preference=["ZONE"], mode="STRICT")
    pod = workload("web-1", "10.0.1.1", services={WEB: {80: 8080}}, locality={"zone": "z1"})
    put(store, service("web", "10.96.0.1", load_balancing=near), pod)
    assert store.endpoints_of_port(store.service_number(WEB), 80) == ()
    change = put(store, local(locality={"zone": "z1"}))
    assert change.services == numbers(store, WEB)
    assert len(store.endpoints_of_port(store.service_number(WEB), 80) or ()) == 1


# --- recorded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(path.stem for path in RECORDED.glob("*.yaml")))
def test_everything_that_was_recorded_is_taken(case: str) -> None:
    store = Store(HERE)
    loaded = yaml.safe_load((RECORDED / f"{case}.yaml").read_text())
    for key, content in loaded["changed"].items():
        kind, name = key.split(" ", 1)
        message = wire.Address() if kind == "Address" else security.Authorization()
        json_format.ParseDict(content, message)
        type_url = ADDRESS_TYPE if kind == "Address" else AUTHORIZATION_TYPE
        change = store.apply(Update(type_url, "n", (Changed(name, "1", message.SerializeToString()),), ()))
        assert change.refused == {}
        assert change
