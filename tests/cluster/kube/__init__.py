"""A real Kubernetes of two nodes on one machine: API server, kubelets, containerd, pods from images.

    python tests/cluster/kube build             the pinned binaries, once, into the user's cache
    python tests/cluster/kube up [IMAGE.tar …]  ready in half a minute
    python tests/cluster/kube kubectl get pods -A
    python tests/cluster/kube down              leaves nothing

Nodes are network namespaces with a kubelet and a containerd each; both share this machine's kernel, its cgroup2
root and its file system, as two nodes of a real cluster never do. Nothing is pulled: images are files.
"""
