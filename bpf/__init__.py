"""The kernel tier: programs that steer connections, the maps they share with user space, and who loads them.

`bpf.loader` is a short-lived process and the only place that imports bcc; `bpf.plane` is what long-lived processes use.
"""
