"""A lab: nodes and pods made of network namespaces, with the mesh or without it.

`supervisor` is the one long-lived process of a lab: it owns the namespaces, the addresses, the pods' processes and the
mesh components. Everything else here is either pure (manifests, address plan, texts for nftables and dnsmasq) or a thin
border to the kernel. A lab never touches the network namespace, sysctls or firewall of the machine it runs on.
"""
