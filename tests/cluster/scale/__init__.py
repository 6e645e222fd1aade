"""A large cluster for the controller: objects on a real API server, changes at a rate, and ztunnels that only listen.

writer ──> kube-apiserver ──> controller ──> ztunnels (one process, a stream over TLS each)

`world` says what there is, `churn` changes it, `ztunnels` is the process that receives and remembers when, `run` joins
them. Every change carries a mark that nothing else has, which the ztunnels look for in what they are sent; both clocks
are the machine's monotonic one.
"""
