from lab.endpoints import Endpoint, ServicePort
from lab.nftables import render
from lab.plan import NodePlan


def port(endpoints4=(), endpoints6=(), node_port=None, protocol="tcp"):
    return ServicePort(
        namespace="shop",
        service="web",
        protocol=protocol,
        port=80,
        node_port=node_port,
        vips={"IPv4": "10.96.0.10", "IPv6": "fd00:96::a"},
        endpoints={"IPv4": tuple(endpoints4), "IPv6": tuple(endpoints6)},
    )


def test_table_is_replaced_in_one_transaction():
    assert render(NodePlan(1), []).startswith("table inet services\ndelete table inet services\ntable inet services {")


def test_vip_goes_to_a_random_endpoint():
    text = render(NodePlan(1), [port([Endpoint("10.244.1.2", 8080), Endpoint("10.244.2.2", 8080)])])
    assert "10.96.0.10 . tcp . 80 : goto port_0_IPv4" in text
    choice = "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.2 . 8080 };"
    assert choice in text


def test_single_ipv6_endpoint_stands_in_brackets():
    assert "dnat ip6 to [fd00:244::2]:8080;" in render(NodePlan(1), [port([], [Endpoint("fd00:244::2", 8080)])])


def test_service_without_endpoints_is_left_to_the_refusal():
    text = render(NodePlan(1), [port()])
    assert "goto" not in text
    assert "ip daddr 10.96.0.0/16 reject" in text
    assert "ip6 daddr fd00:96::/112 reject" in text


def test_node_port_leaves_with_the_nodes_address():
    text = render(NodePlan(3), [port([Endpoint("10.244.1.2", 8080)], node_port=30001)])
    assert "elements = { tcp . 30001 : goto port_0_IPv4 }" in text
    assert "meta nfproto ipv4 meta mark & 0x4000 != 0 snat ip to 172.30.1.3" in text


def test_pod_reaches_itself_through_a_service():
    text = render(NodePlan(3), [port([Endpoint("10.244.1.2", 8080)])])
    assert "set loops_IPv4 { type ipv4_addr . ipv4_addr; elements = { 10.244.1.2 . 10.244.1.2 }; }" in text
