"""Claims: policies decide who may, on new connections and on open ones; and whether plaintext may."""

from collections.abc import Iterator

from cli.demo.report import Claim
from cli.demo.stage import Stage, until

ALLOW_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: shop}
spec:
  selector: {matchLabels: {app: app}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 3 of the demo."""
    before = stage.dial("shop/other", "who", "app", "9000")
    yield Claim("before the policy, another service account passes", "server" in before, str(before)[:120])
    start = stage.log_end("node-1")
    with stage.held("shop/other", "app", 9000) as forbidden, stage.held(stage.client, "app", 9000) as allowed:
        both = (forbidden.say("one"), allowed.say("one"))
        stage.apply(ALLOW_CLIENT)
        closed, after = until(5, lambda: forbidden.say("two").startswith("closed"))
        yield Claim(
            "a policy that is applied closes the open connection that it forbids",
            both == ("one", "one") and closed,
            f"closed after {after:.2f} s",
        )
        yield Claim("and leaves the open connection that it allows", allowed.say("three") == "three", "echo goes on")
    passed = stage.dial(stage.client, "who", "app", "9000")
    yield Claim("the service account that the policy allows passes", "server" in passed, str(passed)[:120])
    refused = stage.dial("shop/other", "who", "app", "9000")
    yield Claim("another service account is refused", "error" in refused, str(refused)[:120])
    named, _ = until(3, lambda: [line for line in stage.log("node-1", start).splitlines() if "only-client" in line])
    yield Claim(
        "the access log names the policy", bool(named), named[-1].split("reason=")[-1] if named else "not found"
    )
    stage.delete("AuthorizationPolicy", "shop/only-client")
    again, after = until(5, lambda: "server" in stage.dial("shop/other", "who", "app", "9000"))
    yield Claim("without the policy it passes again", again, f"after {after:.2f} s")


def plaintext(stage: Stage) -> Iterator[Claim]:
    """Group 4 of the demo."""
    ip = stage.pod("shop/web")["ips"][0]
    node_ip = next(n["ips"][0] for n in stage.status()["nodes"] if n["name"] == "node-1")
    port = next(s["ports"][0]["node_port"] for s in stage.status()["services"] if s["name"] == "web")

    def curl(target: str, url: str) -> str:
        return stage.run(target, "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url).words

    outsider = ("legacy/outsider", f"http://{ip}:8080/")
    probe = ("node/node-1", f"http://{ip}:8080/")
    node_port = ("legacy/outsider", f"http://{node_ip}:{port}/")
    for what, way in (
        ("a pod outside the mesh", outsider),
        ("the node's own probe", probe),
        ("NodePort traffic", node_port),
    ):
        seen = curl(*way)
        yield Claim(f"PERMISSIVE: {what} reaches the enrolled pod", seen.startswith("200"), f"{way[1]}: {seen}")
    stage.apply(STRICT)
    refused, after = until(5, lambda: not curl(*outsider).startswith("200"))
    yield Claim(
        "STRICT: a pod outside the mesh is refused", refused, f"{curl(*outsider)}, {after:.2f} s after the change"
    )
    seen = curl(*probe)
    yield Claim(
        "STRICT: the node's own probe passes",
        seen.startswith("200") and stage.pod("shop/web")["ready"],
        f"{probe[1]}: {seen}",
    )
    seen = curl(*node_port)
    yield Claim(
        "STRICT: masqueraded NodePort traffic from the same node address is refused",
        not seen.startswith("200"),
        f"{node_port[1]}: {seen}",
    )
    seen = curl("shop/client", "http://web/")
    yield Claim("STRICT: a pod of the mesh passes", seen.startswith("200"), f"http://web/: {seen}")
    stage.delete("PeerAuthentication", "shop/strict")
    again, after = until(5, lambda: curl(*outsider).startswith("200"))
    yield Claim("without STRICT the outsider passes again", again, f"after {after:.2f} s")
