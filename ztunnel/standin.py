"""What stands in for a policy that nobody here understands: a refusal of everything, for those it was meant for.

A policy that is left out fails open, so the answer to the control plane (a NACK) is not enough. A version that was
understood stays in force; this module is for a policy that never had one.

For whom it was meant is read from the fields that come before its rules. They are believed only when they carry the
name that the resource was announced by, because scope GLOBAL is what a message says by saying nothing: an empty or
foreign one would otherwise refuse every connection to every pod. Without them the namespace in the resource's name is
what is refused: no author of a policy has more power than over the own namespace, except in the root namespace, whose
name a ztunnel is not told. That is the one case left open, and it takes bytes that are not even a message.
"""

from google.protobuf.message import DecodeError

from mesh.wire import authorization_pb2 as security
from ztunnel.model import Policy, PolicyScope

# Rules that match every connection: one rule without a condition.
_EVERYTHING = ((),)


def stand_in(name: str, value: bytes, reason: str) -> Policy | None:
    """A policy that refuses everything in place of the encoded one that was announced as `name`.

    None when that is no policy's name ("namespace/name"): nothing can refer to it.
    """
    namespace, slash, local_name = name.partition("/")
    if not slash or not local_name:
        return None
    scope, dry_run = _meant_for(name, value)
    if scope is PolicyScope.NAMESPACE and not namespace:
        scope = PolicyScope.WORKLOAD_SELECTOR  # a namespace's policy without one would be everybody's
    return Policy(local_name, namespace, scope, True, dry_run, _EVERYTHING, reason)


def _meant_for(name: str, value: bytes) -> tuple[PolicyScope, bool]:
    """The scope, and whether it was never to be enforced."""
    try:
        head = security.AuthorizationHead.FromString(value)
        if head.namespace + b"/" + head.name == name.encode():
            return PolicyScope(head.scope), head.dry_run
    except (DecodeError, ValueError):
        pass  # bytes that are no message, or a scope that we do not know
    return PolicyScope.NAMESPACE, False
