"""How the state of trust is kept in a Secret: in Istio's layout for people and tools, and what more it takes beside.

ca-cert.pem ca-key.pem cert-chain.pem     the issuer that signs, as in `cacerts`
root-cert.pem                             every root that is trusted now
next-cert.pem next-key.pem next-chain.pem the issuer that will sign, while its root is given out
state.json                                since when each root is trusted, who needs it, whose the issuers are
"""

import base64
import datetime
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509

from controller.ca import keys
from controller.ca.issuer import Issuer, IssuerUnavailable, parse
from controller.ca.trust import Trust, TrustedRoot

SECRET = "culvert-ca"
PLUGGED_SECRET = "cacerts"

# On the Secret; another word than the last one asks for a new root of our own.
ROTATE = "culvert.io/rotate-root"

# On the Secret: SHA-256 of roots that are dropped as soon as no issuer needs them, comma separated.
DISTRUST = "culvert.io/distrust-root"

_STATE = "state.json"


def encode(trust: Trust) -> dict[str, str]:
    """The `data` of the Secret."""
    files = {"root-cert.pem": _pem(trust.certificates), **_files(trust.issuer, "ca-cert.pem", "ca-key.pem", "cert")}
    if trust.next is not None:
        files |= _files(trust.next, "next-cert.pem", "next-key.pem", "next")
    state = {
        "own": trust.is_own,
        "nextOwn": trust.next_is_own,
        "rotation": trust.rotation,
        "issuerRoots": [keys.fingerprint(root) for root in trust.issuer.roots],
        "nextRoots": [keys.fingerprint(root) for root in (trust.next.roots if trust.next else ())],
        "roots": {keys.fingerprint(root.certificate): _times(root) for root in trust.roots},
    }
    files[_STATE] = json.dumps(state, indent=1, sort_keys=True).encode()
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def decode(secret: Mapping[str, Any]) -> Trust:
    """The state of a Secret; raises IssuerUnavailable, which names the key that is at fault.

    One without `state.json` (restored by hand, in the plain layout) is a state in which nothing changes just now.
    """
    where = f"Secret {SECRET}"
    files = data(secret, where)
    state = _state(files, where)
    trusted = {keys.fingerprint(root): root for root in _roots(files, where)}
    times: Mapping[str, Any] = state.get("roots") or {}
    roots = tuple(_trusted(root, times.get(name) or {}, where) for name, root in trusted.items())
    issuer = _issuer(files, "ca-cert.pem", "ca-key.pem", "cert", _chosen(state, "issuerRoots", trusted), where)
    following = None
    if "next-cert.pem" in files:
        following = _issuer(files, "next-cert.pem", "next-key.pem", "next", _chosen(state, "nextRoots", trusted), where)
    return Trust(
        issuer=issuer,
        roots=roots,
        is_own=bool(state.get("own", not issuer.intermediates)),
        next=following,
        next_is_own=bool(state.get("nextOwn", True)),
        rotation=str(state.get("rotation", "")),
    )


def decode_plugged(secret: Mapping[str, Any], now: datetime.datetime) -> Issuer:
    """An operator's issuer; raises IssuerUnavailable, which names the key that is at fault."""
    where = f"Secret {PLUGGED_SECRET}"
    return parse(data(secret, where), where, now)


def data(secret: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """The contents of a Secret; raises IssuerUnavailable."""
    found = {}
    for name, text in (secret.get("data") or {}).items():
        try:
            found[str(name)] = base64.b64decode(text, validate=True)
        except (ValueError, TypeError) as error:
            raise IssuerUnavailable(f"{where}: {name}: not base64") from error
    return found


def _files(issuer: Issuer, certificate: str, key: str, chain: str) -> dict[str, bytes]:
    return {
        certificate: keys.certificate_pem(issuer.certificate),
        key: keys.key_pem(issuer.key),
        f"{chain}-chain.pem": _pem(issuer.path),
    }


def _issuer(
    files: Mapping[str, bytes], certificate: str, key: str, chain: str, roots: list[x509.Certificate], where: str
) -> Issuer:
    """One of the issuers; an expired one is read all the same, because it has to be replaced."""
    names = {"ca-cert.pem": certificate, "ca-key.pem": key, "cert-chain.pem": f"{chain}-chain.pem"}
    present = {plain: files[name] for plain, name in names.items() if name in files}
    present["root-cert.pem"] = _pem(tuple(roots))
    try:
        return parse(present, where, datetime.datetime.min.replace(tzinfo=datetime.UTC))
    except IssuerUnavailable as error:
        if certificate == "ca-cert.pem":
            raise
        raise IssuerUnavailable(f"{where}: of {', '.join(names.values())}: {error}") from error


def _chosen(state: Mapping[str, Any], field: str, trusted: Mapping[str, x509.Certificate]) -> list[x509.Certificate]:
    names = state.get(field) or list(trusted)
    return [trusted[name] for name in names if name in trusted]


def _roots(files: Mapping[str, bytes], where: str) -> list[x509.Certificate]:
    try:
        return keys.load_certificates(files.get("root-cert.pem") or files.get("ca-cert.pem", b""))
    except keys.InvalidKey as error:
        raise IssuerUnavailable(f"{where}: root-cert.pem: {error}") from error


def _state(files: Mapping[str, bytes], where: str) -> Mapping[str, Any]:
    try:
        state = json.loads(files.get(_STATE, b"{}"))
    except ValueError as error:
        raise IssuerUnavailable(f"{where}: {_STATE}: not JSON: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("roots") or {}, dict):
        raise IssuerUnavailable(f"{where}: {_STATE}: not a state")
    return state


def _times(root: TrustedRoot) -> dict[str, str]:
    times = {"since": root.since.isoformat()}
    return times if root.unneeded_since is None else {**times, "unneededSince": root.unneeded_since.isoformat()}


def _trusted(root: x509.Certificate, times: Mapping[str, Any], where: str) -> TrustedRoot:
    try:
        since = datetime.datetime.fromisoformat(times["since"]) if "since" in times else root.not_valid_before_utc
        unneeded = datetime.datetime.fromisoformat(times["unneededSince"]) if "unneededSince" in times else None
    except (ValueError, TypeError) as error:
        raise IssuerUnavailable(f"{where}: {_STATE}: a time cannot be read: {error}") from error
    return TrustedRoot(root, since, unneeded)


def _pem(certificates: tuple[x509.Certificate, ...]) -> bytes:
    return b"".join(map(keys.certificate_pem, certificates))
