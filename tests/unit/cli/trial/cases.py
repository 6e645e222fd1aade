"""Policies to try, and a connection that a node remembers."""

PEER = "spiffe://cluster.local/ns/shop/sa/client"
HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"
DENY_ALL = HEAD + "spec: {action: DENY, rules: [{}]}\n"
ALLOW_CLIENT = HEAD + "spec: {rules: [{from: [{source: {serviceAccounts: [shop/client]}}]}]}\n"


def flow(**changes):
    found = {"identity": PEER, "source": "10.1.0.3", "uid": "u", "namespace": "shop", "name": "web"}
    return {**found, "address": "10.1.0.2", "port": 8080, "allowed": True, "policy": None, "connections": 3, **changes}
