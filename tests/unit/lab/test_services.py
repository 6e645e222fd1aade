import pytest

from lab.services import InvalidObject, ServiceAddresses, slice_faults


def service(name="web", **spec):
    spec.setdefault("ports", [{"port": 80}])
    return {"kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def test_service_gets_an_address_of_each_family():
    spec = ServiceAddresses().admit(service(), None)["spec"]
    assert spec["clusterIPs"] == ["10.96.0.10", "fd00:96::a"]
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
    assert spec["clusterIPs"] == ["10.96.1.2", "fd00:96::102"]


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
    ],
)
def test_wrong_service_is_refused_with_the_field(spec, what):
    with pytest.raises(InvalidObject, match=what):
        ServiceAddresses().admit(service(**spec), None)


def test_slice_with_text_for_an_address_is_refused():
    item = {"ports": [{"port": 80}], "endpoints": [{"addresses": ["1.2.3.4 } ; flush ruleset"]}]}
    assert list(slice_faults(item)) == ["endpoints[0].addresses is not a list of IP addresses"]
    assert not list(slice_faults({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}))
