from lab.endpoints import Endpoint, service_names, service_ports


def pod(name, ip, ready=True, labels=None, **metadata):
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": labels or {"app": "web"}, **metadata},
        "spec": {
            "hostname": name,
            "subdomain": "db",
            "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "podIPs": [{"ip": ip}, {"ip": f"fd00::{ip.rpartition('.')[2]}"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def service(name="web", **spec):
    base = {"selector": {"app": "web"}, "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::a"],
            "ports": [{"port": 80, "targetPort": "http"}]}  # fmt: skip
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {**base, **spec}}


def v4(found):
    return found[0].endpoints["IPv4"]


def test_ready_pods_that_match_serve():
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False), pod("c", "10.0.0.3", labels={"app": "x"})]
    found = service_ports([service()], pods, [])
    assert v4(found) == (Endpoint("10.0.0.1", 8080),)
    assert found[0].endpoints["IPv6"] == (Endpoint("fd00::1", 8080),)


def test_pod_that_is_being_ended_serves_no_more():
    pods = [pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z")]
    assert v4(service_ports([service()], pods, [])) == ()


def test_unready_pods_serve_when_the_service_says_so():
    pods = [pod("a", "10.0.0.1", ready=False)]
    assert v4(service_ports([service(publishNotReadyAddresses=True)], pods, [])) == (Endpoint("10.0.0.1", 8080),)


def test_pod_of_another_namespace_does_not_serve():
    other = pod("a", "10.0.0.1")
    other["metadata"]["namespace"] = "bank"
    assert v4(service_ports([service()], [other], [])) == ()


def test_service_without_a_selector_selects_nothing():
    assert v4(service_ports([service(selector={})], [pod("a", "10.0.0.1")], [])) == ()


def test_endpoint_slices_take_the_place_of_pods():
    item = {
        "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 9090}],
        "endpoints": [{"addresses": ["10.0.0.9"]}, {"addresses": ["10.0.0.8"], "conditions": {"ready": False}}],
    }
    assert v4(service_ports([service()], [pod("a", "10.0.0.1")], [item])) == (Endpoint("10.0.0.9", 9090),)


def test_headless_service_is_names_only():
    headless = service("db", clusterIP="None", clusterIPs=["None"])
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    assert service_ports([headless], pods, []) == []
    names = {name.name: name.ips for name in service_names([headless], pods, [], "cluster.local")}
    assert names == {
        "db.shop.svc.cluster.local": ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"),
        "a.db.shop.svc.cluster.local": ("10.0.0.1", "fd00::1"),
        "b.db.shop.svc.cluster.local": ("10.0.0.2", "fd00::2"),
    }


def test_service_name_answers_its_vips():
    names = service_names([service()], [], [], "cluster.local")
    assert [(name.name, name.ips) for name in names] == [("web.shop.svc.cluster.local", ("10.96.0.10", "fd00:96::a"))]
