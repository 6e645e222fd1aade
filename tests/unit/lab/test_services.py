import pytest

from lab.services import InvalidObject, ServiceAddresses, slice_faults


def service(name="web", **spec):
    spec.setdefault("ports", [{"port": 80}])
    return {"kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


@pytest.mark.parametrize(
    ("asked", "given", "policy"),
    [
        ({}, ["10.96.0.10"], "SingleStack"),
        ({"ipFamilies": ["IPv6"]}, ["fd00:96::a"], "SingleStack"),
        ({"clusterIP": "fd00:96::b"}, ["fd00:96::b"], "SingleStack"),
        ({"ipFamilies": ["IPv6", "IPv4"]}, ["fd00:96::a", "10.96.0.10"], "RequireDualStack"),
        ({"ipFamilyPolicy": "PreferDualStack"}, ["10.96.0.10", "fd00:96::a"], "PreferDualStack"),
        (
            {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]},
            ["fd00:96::a", "10.96.0.10"],
            "PreferDualStack",
        ),
    ],
)
def test_service_has_one_family_unless_it_asks_for_both(asked, given, policy):
    """As an API server has it: a name with both sends clients to IPv6 first, where many servers do not listen."""
    spec = ServiceAddresses().admit(service(**asked), None)["spec"]
    assert (spec["clusterIPs"], spec["ipFamilyPolicy"]) == (given, policy)


def test_policy_of_an_existing_service_may_change_and_its_address_stays():
    addresses = ServiceAddresses()
    first = addresses.admit(service(), None)
    both = addresses.admit(service(ipFamilyPolicy="PreferDualStack"), first)
    assert both["spec"]["clusterIPs"] == ["10.96.0.10", "fd00:96::a"]
    assert addresses.admit(service(), both)["spec"]["clusterIPs"] == ["10.96.0.10", "fd00:96::a"]
    assert addresses.admit(service(ipFamilyPolicy="SingleStack"), both)["spec"]["clusterIPs"] == ["10.96.0.10"]


def test_defaults_are_filled_in():
    spec = ServiceAddresses().admit(service(), None)["spec"]
    assert spec["clusterIP"] == "10.96.0.10"
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]


def test_single_stack_keeps_one_family():
    spec = ServiceAddresses().admit(service(ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"]), None)["spec"]
    assert spec["clusterIPs"] == ["fd00:96::a"]


def test_headless_service_has_no_address():
    spec = ServiceAddresses().admit(service(clusterIP="None"), None)["spec"]
    assert spec["clusterIPs"] == ["None"]


def test_update_keeps_addresses_and_node_ports():
    addresses = ServiceAddresses()
    first = addresses.admit(service(type="NodePort"), None)
    second = addresses.admit(service(type="NodePort", selector={"app": "web"}), first)
    assert second["spec"]["clusterIPs"] == first["spec"]["clusterIPs"]
    assert second["spec"]["ports"][0]["nodePort"] == first["spec"]["ports"][0]["nodePort"] == 30000


def test_refused_update_leaves_the_old_service_its_address():
    addresses = ServiceAddresses()
    one, two = addresses.admit(service("one"), None), addresses.admit(service("two"), None)
    with pytest.raises(InvalidObject, match="another service's"):
        addresses.admit(service("two", clusterIP=one["spec"]["clusterIP"]), two)
    with pytest.raises(InvalidObject):
        addresses.admit(service("three", clusterIP=two["spec"]["clusterIP"]), None)


def test_asked_address_is_given_when_it_is_free():
    spec = ServiceAddresses().admit(service(clusterIP="10.96.1.2"), None)["spec"]
    assert spec["clusterIPs"] == ["10.96.1.2"]


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"clusterIP": "192.0.2.1"}, "service ranges"),
        ({"clusterIP": "x; drop"}, "service ranges"),
        ({"ports": [{"port": 0}]}, "port"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "protocol"),
        ({"ports": [{"port": 80}, {"port": 80}]}, "one protocol and port"),
        ({"ports": [{"port": 80, "targetPort": []}]}, "targetPort"),
        ({"ports": []}, "empty"),
        ({"type": "Magic"}, "type"),
        ({"selector": {"app": True}}, "selector"),
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}, "30000"),
        ({"ipFamilies": ["IPv5"]}, "ipFamilies"),
        ({"ipFamilyPolicy": "Both"}, "ipFamilyPolicy"),
    ],
)
def test_wrong_service_is_refused_with_the_field(spec, what):
    with pytest.raises(InvalidObject, match=what):
        ServiceAddresses().admit(service(**spec), None)


def test_slice_with_text_for_an_address_is_refused():
    item = {"ports": [{"port": 80}], "endpoints": [{"addresses": ["1.2.3.4 } ; flush ruleset"]}]}
    assert list(slice_faults(item)) == ["endpoints[0].addresses is not a list of IP addresses"]
    assert not list(slice_faults({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}))
