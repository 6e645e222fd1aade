"""SPIFFE identities of workloads, and the trust domains that vouch for them.

Only the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` is an identity here (the SPIFFE ID of
the SPIFFE-ID specification, with Istio's path); anything else is not one, whoever signed it.
"""

import re
from dataclasses import dataclass

DEFAULT_TRUST_DOMAIN = "cluster.local"

# Longest that fits the engine's event record, NUL included.
MAX_IDENTITY_BYTES = 511

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,253}")


class InvalidIdentity(ValueError):
    """The text is not a workload's SPIFFE id."""


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who a workload is: a service account of a namespace, in a trust domain."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise InvalidIdentity(f"trust domain {self.trust_domain!r} has characters that SPIFFE does not allow")
        for part in (self.namespace, self.service_account):
            if not _SEGMENT.fullmatch(part):
                raise InvalidIdentity(f"{part!r} cannot be a part of a SPIFFE id")
        if len(str(self)) > MAX_IDENTITY_BYTES:
            raise InvalidIdentity(f"identity is longer than {MAX_IDENTITY_BYTES} bytes")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Read a SPIFFE id; raises InvalidIdentity unless it has exactly the workload form."""
        if len(text) > MAX_IDENTITY_BYTES:  # it goes into the sentences below, and from there into logs
            raise InvalidIdentity(f"identity is longer than {MAX_IDENTITY_BYTES} bytes")
        parts = text.split("/")
        if len(parts) != 7 or parts[0] != "spiffe:" or parts[1] or parts[3] != "ns" or parts[5] != "sa":
            raise InvalidIdentity(f"{text!r} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")
        return cls(trust_domain=parts[2], namespace=parts[4], service_account=parts[6])
