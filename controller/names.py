"""The URI names that make a certificate one of a node's components.

The second is never signed for anybody who asks over the network, so a workload's certificate, which is of the same
root, is not a node's.
"""

NODE_NAMESPACE = "culvert-system"
NODE_ACCOUNT = "culvert-node"
NODE_PREFIX = "culvert://node/"


def node_names(trust_domain: str, node: str) -> tuple[str, str]:
    """Who a node's components are, and which node."""
    return f"spiffe://{trust_domain}/ns/{NODE_NAMESPACE}/sa/{NODE_ACCOUNT}", f"{NODE_PREFIX}{node}"
