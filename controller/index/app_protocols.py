"""Which protocol a service port is announced with: its `appProtocol`, else the first word of its name."""

from mesh.wire.workload_pb2 import AppProtocol

_BY_WORD = {
    "http": AppProtocol.HTTP11,
    "http2": AppProtocol.HTTP2,
    "grpc": AppProtocol.GRPC,
    "https": AppProtocol.TLS,
    "tls": AppProtocol.TLS,
    "tcp": AppProtocol.TCP,
    # Known, and nothing that the announcement has a value for.
    "mongo": AppProtocol.UNKNOWN,
    "redis": AppProtocol.UNKNOWN,
    "mysql": AppProtocol.UNKNOWN,
}

# Standard names of the Kubernetes API (KEP-3726); they are never port names.
_BY_STANDARD_NAME = {
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "kubernetes.io/ws": AppProtocol.HTTP11,
    "kubernetes.io/wss": AppProtocol.TLS,
}

# SMTP, DNS, MySQL and MongoDB: servers that speak first or are not HTTP, whatever their ports are called.
_TCP_PORTS = frozenset({25, 53, 3306, 27017})


def app_protocol(port: int, name: str, protocol: str, declared: str) -> AppProtocol:
    """The protocol of a port; UNKNOWN for anything but TCP and for words that mean nothing here."""
    if protocol != "TCP":
        return AppProtocol.UNKNOWN
    if declared in _BY_STANDARD_NAME:
        return _BY_STANDARD_NAME[declared]
    text = (declared or name).lower()
    if text.startswith("grpc-web"):
        return AppProtocol.UNKNOWN  # not HTTP/2, as gRPC is
    known = _BY_WORD.get(text.partition("-")[0])
    if known is not None:
        return known
    return AppProtocol.TCP if port in _TCP_PORTS else AppProtocol.UNKNOWN
