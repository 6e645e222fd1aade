"""The certificate that a node shows to the controller, issued offline by whoever holds the state directory."""

import datetime
from pathlib import Path

from controller.ca import keys
from controller.ca.authority import Authority, Lifetimes
from controller.ca.issuer import load, load_or_create_root
from controller.config import CredentialConfig
from controller.files import write_atomically
from controller.names import node_names


def issue_from_state(config: CredentialConfig) -> None:
    """Issue with the issuer of a state directory; raises IssuerUnavailable, IssuerExpired, OSError."""
    now = datetime.datetime.now(datetime.UTC)
    ttl = datetime.timedelta(seconds=config.ttl_s)
    issuer = load(config.ca_dir, now) if config.ca_dir else load_or_create_root(config.state, config.trust_domain, now)
    authority = Authority(issuer, Lifetimes(longest=ttl), lambda: now)
    issue_credential(authority, config.trust_domain, config.node, config.out, ttl)


def issue_credential(authority: Authority, trust_domain: str, node: str, out: Path, ttl: datetime.timedelta) -> None:
    """Write `cert.pem`, `key.pem` (0600) and `roots.pem` of a node into a directory."""
    key = keys.new_key()
    issued = authority.sign(key.public_key(), keys.uris(node_names(trust_domain, node)), ttl)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    *chain, roots = issued.pem_chain
    write_atomically(out / "key.pem", keys.key_pem(key), 0o600)
    write_atomically(out / "cert.pem", "".join(chain).encode(), 0o644)
    write_atomically(out / "roots.pem", roots.encode(), 0o644)
