"""Why a connection ended or was refused: one word for log field, metric label and explanation.

Restates `enum cv_reason` of engine/include/border.h, in its order; tests/unit/mesh holds the two equal.
"""

from enum import IntEnum


class Reason(IntEnum):
    """One cause. `str()` is the word that logs and metrics show."""

    OK = 0
    NO_NOTE = 1
    SELF_CALL = 2
    UNKNOWN_SOURCE = 3
    UNKNOWN_PORT = 4
    NO_HEALTHY_UPSTREAM = 5
    UNKNOWN_WAYPOINT = 6
    UNSUPPORTED_NETWORK = 7
    POLICY_DENIED = 8
    POLICY_CHANGED = 9
    CONNECT_REFUSED = 10
    CONNECT_TIMEOUT = 11
    CONNECT_UNREACHABLE = 12
    CONNECT_FAILED = 13
    TLS_FAILED = 14
    TLS_UNTRUSTED = 15
    HANDSHAKE_TIMEOUT = 16
    IDENTITY_UNAVAILABLE = 17
    PROTOCOL_ERROR = 18
    BAD_REQUEST = 19
    ADDRESS_MISMATCH = 20
    PEER_DENIED = 21
    PEER_UNAVAILABLE = 22
    PEER_REJECTED = 23
    REQUEST_TIMEOUT = 24
    RESET_DOWNSTREAM = 25
    RESET_UPSTREAM = 26
    TUNNEL_LOST = 27
    DRAINED = 28
    POD_GONE = 29
    LIMIT_CONNECTIONS = 30
    LIMIT_STREAMS = 31
    LIMIT_HANDSHAKES = 32
    LIMIT_DESCRIPTORS = 33
    LIMIT_SHARE = 34
    CERTIFICATE_EXPIRED = 35
    INTERNAL = 36

    def __str__(self) -> str:
        return _WORDS[self]


_WORDS = {reason: reason.name.lower() for reason in Reason}
