"""Malformed resources: each is refused by name, with a reason; odd but valid ones are read as the protocol says."""

import pytest

from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.mesh_builder import authorization, by_service, ip, resource, service, workload
from ztunnel.model import Families, How, Mode, Policy, Prefix, Scope, Service, StringMatch, Vip, Workload
from ztunnel.parse import InvalidResource, parse_address, parse_policy

Message = wire.Workload | wire.Service | security.Authorization


def read(message: Message) -> Workload | Service | Policy:
    changed = resource(message)
    parse = parse_policy if isinstance(message, security.Authorization) else parse_address
    return parse(changed.name, changed.value)


def read_service(message: wire.Service) -> Service:
    found = read(message)
    assert isinstance(found, Service)
    return found


def read_workload(message: wire.Workload) -> Workload:
    found = read(message)
    assert isinstance(found, Workload)
    return found


def with_port(message: wire.Service, port: int, target: int) -> wire.Service:
    message.ports.add(service_port=port, target_port=target)
    return message


def with_vip(raw: bytes, length: int | None = None) -> wire.Service:
    message = service("web")
    entry = message.addresses.add(address=raw)
    if length is not None:
        entry.length = length
    return message


def with_match(**fields: object) -> security.Authorization:
    match = security.Match(**fields)  # type: ignore[arg-type]
    return authorization("p", security.Rule(clauses=[security.Clause(matches=[match])]))


def with_unknown(where: str) -> security.Authorization:
    """A rule of a newer control plane: a field 99 in one of its levels."""
    message = with_match(destination_ports=[80])
    rule = message.rules[0]
    level = {"rule": rule, "clause": rule.clauses[0], "match": rule.clauses[0].matches[0]}[where]
    level.MergeFromString(b"\x98\x06\x01")
    return message


MALFORMED: list[tuple[Message, str]] = [
    (workload("w", uid=""), "no uid"),
    (workload("w", uid="a\0b"), "NUL"),
    (workload("w", namespace="", uid="u"), "SPIFFE"),
    (workload("w", namespace="a/b", uid="u"), "SPIFFE"),
    (workload("w", trust_domain="Not Allowed"), "trust domain"),
    (workload("w", service_account="a/b"), "SPIFFE"),
    (workload("w", network="a\0b"), "NUL"),
    (workload("w", tunnel_protocol=2), "tunnel protocol 2"),
    (workload("w", tunnel_protocol=9), "tunnel protocol 9"),
    (workload("w", waypoint=wire.GatewayAddress()), "no destination"),
    (workload("w", waypoint=by_service("ns/")), "hostname"),
    (workload("w", waypoint=by_service("ns/w", port=70000)), "70000"),
    (workload("w", services={"a/b": {0: 80}}), "service port 0"),
    (workload("w", services={"a/b": {80: 70000}}), "target port 70000"),
    (wire.Workload(uid="u", namespace="n", addresses=[b""]), "0 bytes"),
    (wire.Workload(uid="u", namespace="n", addresses=[b"12345"]), "5 bytes"),
    (wire.Service(namespace="n"), "hostname"),
    (wire.Service(hostname="h"), "namespace"),
    (with_port(service("web"), 0, 80), "service port 0"),
    (with_port(service("web"), 65536, 80), "65536"),
    (with_vip(b"123"), "3 bytes"),
    (with_vip(b"1234", 33), "prefix length 33"),
    (with_vip(bytes(16), 129), "prefix length 129"),
    (service("web", ip_families=7), "address families 7"),
    (service("web", load_balancing=wire.LoadBalancing(mode=9)), "mode 9"),  # type: ignore[arg-type]
    (service("web", load_balancing=wire.LoadBalancing(routing_preference=["UNSPECIFIED_SCOPE"])), "preference 0"),
    (authorization("", namespace="n"), "name"),
    (authorization("p", namespace=""), "namespace"),
    (authorization("p", scope=5), "scope 5"),
    (authorization("p", action=2), "action 2"),
    (with_match(principals=[security.StringMatch()]), "without a type"),
    (with_match(namespaces=[security.StringMatch(exact="x" * 65536)]), "longer than"),
    (with_match(source_ips=[security.Address(address=b"1234", length=33)]), "prefix length 33"),
    (with_match(not_destination_ips=[security.Address(length=1)]), "0 bytes"),
    (with_match(destination_ports=[65536]), "65536"),
    (with_match(destination_ports=[80, 65536]), r"rules\[0\]\.clauses\[0\]\.matches\[0\]\.destination_ports\[1\]: "),
    (with_match(principals=[security.StringMatch()]), r"matches\[0\]\.principals\[0\]: has a string match"),
    (with_match(extensions=[wire.Extension(name="x")]), r"matches\[0\]: has an extension as condition"),
    (with_unknown("rule"), r"rules\[0\]: has a condition that is not known here \(field 99\)"),
    (with_unknown("clause"), r"clauses\[0\]: has a condition that is not known"),
    (with_unknown("match"), r"matches\[0\]: has a condition that is not known"),
]


@pytest.mark.parametrize(("message", "reason"), MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_malformed_resource_is_refused_with_its_reason(message: Message, reason: str) -> None:
    with pytest.raises(InvalidResource, match=reason) as caught:
        read(message)
    assert caught.value.name == resource(message).name


@pytest.mark.parametrize("value", [b"\xff", b"\x0a\x05abc", b""])
def test_bytes_that_are_no_address_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidResource) as caught:
        parse_address("some/name", value)
    assert caught.value.name == "some/name"


@pytest.mark.parametrize("message", [workload("w", "10.0.0.1"), service("web"), authorization("p")])
def test_resource_under_another_name_is_refused(message: Message) -> None:
    changed = resource(message)
    parse = parse_policy if isinstance(message, security.Authorization) else parse_address
    with pytest.raises(InvalidResource, match="is called"):
        parse("another/name", changed.value)


def test_defaults_of_a_workload() -> None:
    found = read_workload(wire.Workload(uid="u", namespace="shop"))
    assert str(found.identity) == "spiffe://cluster.local/ns/shop/sa/default"
    assert (found.cluster_id, found.capacity, found.hbone, found.healthy) == ("Kubernetes", 1, False, True)
    assert (found.waypoint, found.addresses, found.workload_type) == (None, (), "deployment")


def test_capacity_zero_is_not_absent() -> None:
    assert read_workload(workload("w", capacity={"value": 0})).capacity == 0


def test_address_in_both_forms_is_one() -> None:
    raw = wire.Workload(uid="u", namespace="n", addresses=[bytes([10, 0, 0, 1]), ip("10.0.0.1")])
    assert read_workload(raw).addresses == (ip("10.0.0.1"),)


def test_waypoint_port_defaults_to_hbones() -> None:
    found = read_workload(workload("w", waypoint=by_service("ns/gate", port=0))).waypoint
    assert found is not None and (found.destination, found.port) == ("ns/gate", 15008)


def test_baggage_names_the_workload() -> None:
    message = workload("w", cluster_id="c1", canonical_name="web", canonical_revision="v1", workload_name="web-5d")
    message.workload_type = wire.WorkloadType.POD
    message.locality.region = "eu, west"
    assert read_workload(message).baggage == (
        "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.pod.name=web-5d,service.name=web,service.version=v1,"
        "cloud.region=eu%2C%20west"
    )


def test_baggage_cannot_end_the_header() -> None:
    assert "\r" not in read_workload(workload("w", workload_name="a\r\nx: y")).baggage


def test_vip_without_length_is_one_address_and_bits_behind_the_length_do_not_count() -> None:
    assert read_service(with_vip(bytes([10, 9, 8, 7]))).vips == (Vip("", ip("10.9.8.7"), 128),)
    assert read_service(with_vip(bytes([10, 9, 8, 7]), 8)).vips == (Vip("", ip("10.0.0.0"), 104),)
    assert read_service(with_vip(bytes(4), 0)).vips == (Vip("", ip("0.0.0.0"), 96),)


def test_service_settings() -> None:
    balancing = wire.LoadBalancing(routing_preference=["NETWORK", "ZONE"], mode="FAILOVER", health_policy="ALLOW_ALL")
    found = read_service(service("web", load_balancing=balancing, ip_families="DUAL", visibility="NAMESPACE"))
    assert found.preferences == (Scope.NETWORK, Scope.ZONE)
    assert (found.mode, found.families) == (Mode.FAILOVER, Families.DUAL)
    assert found.allow_unhealthy and found.namespace_only


def test_subject_names_that_are_no_identities_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    names = ["spiffe://td/ns/a/sa/b", "example.com", "spiffe://td/ns/a"]
    assert read_service(service("web", subject_alt_names=names)).subject_names == ("spiffe://td/ns/a/sa/b",)
    assert "example.com" in caplog.text


def test_principals_lose_their_scheme_and_nothing_else_does() -> None:
    both = [security.StringMatch(exact="spiffe://td/ns/a/sa/b"), security.StringMatch(suffix="/sa/b")]
    found = read(with_match(principals=both, namespaces=[security.StringMatch(exact="spiffe://a")]))
    assert isinstance(found, Policy)
    match = found.rules[0][0][0]
    assert match.principals == (StringMatch(How.EXACT, "td/ns/a/sa/b"), StringMatch(How.SUFFIX, "/sa/b"))
    assert match.namespaces == (StringMatch(How.EXACT, "spiffe://a"),)


def test_range_without_length_holds_everything_of_its_family() -> None:
    found = read(with_match(source_ips=[security.Address(address=bytes([10, 0, 0, 1]))]))
    assert isinstance(found, Policy)
    assert found.rules[0][0][0].source_ips == (Prefix(ip("10.0.0.1"), 96),)
