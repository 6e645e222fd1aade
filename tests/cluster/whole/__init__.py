"""Culvert on a whole Kubernetes: one cluster, one `culvert install`, its life under traffic, its removal, and Helm.

    n1.whole  servers                             n2.whole  clients
    +-------------------------------------+       +------------------------------------------+
    | shop/web (nginx) shop/redis         |       | shop/client   shop/other                 |
    | shop/files       shop/app           |-------| late/client                              |
    | late/server      legacy/server      |       | legacy/outsider                          |
    +-------------------------------------+       +------------------------------------------+

Namespace shop is in the mesh, legacy and late are not. These are the pods of `culvert demo`, in images; what the demo
claims in a lab is claimed of them too. The modules run in the order that conftest.py names.
"""
