"""A lab on several machines: one is its home and decides, the others join it and run the pods of one node each.

Home: takes all orders, keeps all objects, runs the controller, gives pods their addresses. A joined machine is what a
kubelet is to an API server: it mirrors the objects, runs the pods of its node and reports how they are. Both speak JSON
lines over mutual TLS, whose certificates come from one shared secret. The fabric is stretched over the machines by
VXLAN, so no interface of a machine is taken away from it. VXLAN itself is in clear and believes every sender, like any
node network: what pods of the mesh send is protected by the mesh, nothing else is.
"""
