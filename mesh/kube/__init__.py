"""The one place that knows Kubernetes' client: requests by meaning, lists in pages, watches, all awaitable.

The official client finds the API server and proves who we are (kubeconfig with its plug-ins, or the pod's own service
account); its generated models are not used: a document stays the mapping that its JSON is. `api` makes requests,
`watch` reads one stream of events, `follow` keeps a collection followed whatever happens, `errors` says what failed.
"""
