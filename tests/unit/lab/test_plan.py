from ipaddress import ip_network
from itertools import combinations

import pytest

from lab import plan
from lab.plan import NodePlan, Numbers, PlanExhausted


def test_nodes_share_no_address():
    nodes = [NodePlan(i) for i in range(1, plan.MAX_NODES + 1)]
    assert len({node.ipv4 for node in nodes} | {plan.CONTROLLER4}) == plan.MAX_NODES + 1
    assert len({node.ipv6 for node in nodes} | {plan.CONTROLLER6}) == plan.MAX_NODES + 1
    for one, other in combinations(nodes[:20], 2):
        assert not one.pods4.overlaps(other.pods4)
        assert not one.pods6.overlaps(other.pods6)


def test_all_addresses_of_a_node_are_inside_the_ranges_of_the_lab():
    last = NodePlan(plan.MAX_NODES)
    assert last.ipv4 in plan.FABRIC4
    assert last.ipv6 in plan.FABRIC6
    assert last.pods4.subnet_of(plan.PODS4)
    assert last.pods6.subnet_of(plan.PODS6)


def test_ranges_do_not_overlap():
    for family in ((plan.FABRIC4, plan.PODS4, plan.SERVICES4, ip_network("169.254.0.0/16")),
                   (plan.FABRIC6, plan.PODS6, plan.SERVICES6)):  # fmt: skip
        assert not any(one.overlaps(other) for one, other in combinations(family, 2))


def test_both_addresses_of_a_pod_carry_one_number():
    ipv4, ipv6 = NodePlan(3).pod(7)
    assert (str(ipv4), str(ipv6)) == ("10.244.3.7", "fd00:244:0:3::7")


def test_released_number_comes_back_last():
    numbers = Numbers(range(2, 5), "pod address")
    assert [numbers.allocate(), numbers.allocate()] == [2, 3]
    numbers.release(2)
    assert [numbers.allocate(), numbers.allocate()] == [4, 2]


def test_exhausted_numbers_say_what_is_missing():
    numbers = Numbers(range(1), "NodePort")
    numbers.allocate()
    with pytest.raises(PlanExhausted, match="NodePort"):
        numbers.allocate()


def test_number_is_taken_once():
    numbers = Numbers(range(10, 12), "x")
    assert numbers.take(11)
    assert not numbers.take(11)
    assert not numbers.take(12)
    assert numbers.allocate() == 10
