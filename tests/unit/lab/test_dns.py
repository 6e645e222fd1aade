from pathlib import Path

from lab import dns
from lab.endpoints import ServiceName


def test_name_server_asks_nobody_else():
    command = dns.command(Path("/x/hosts"))
    assert "--no-resolv" in command
    assert "--local=/#/" in command
    assert "--addn-hosts=/x/hosts" in command


def test_every_address_of_a_name_has_a_line():
    text = dns.hosts([ServiceName("web.shop.svc.cluster.local", ("10.96.0.10", "fd00:96::a"))])
    assert text == "10.96.0.10 web.shop.svc.cluster.local\nfd00:96::a web.shop.svc.cluster.local\n"


def test_resolver_searches_the_pods_namespace_first():
    first = dns.resolv_conf("shop").splitlines()[0]
    assert first == "search shop.svc.cluster.local svc.cluster.local cluster.local"


def test_pod_knows_its_own_name():
    assert "10.0.0.1\tweb\n" in dns.pod_hosts("web", ["10.0.0.1"])
