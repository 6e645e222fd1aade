"""What signs certificates and how callers prove who they are, as the settings say."""

import datetime
from collections.abc import Callable
from functools import cached_property

from controller.ca import bundle
from controller.ca.authority import Lifetimes
from controller.ca.base import CertificateAuthority
from controller.ca.cert_manager import CertManagerAuthority, IssuerRef
from controller.ca.cluster import ClusterAuthority
from controller.ca.issuer import Issuer, load, load_or_create_root
from controller.ca.keeper import TICK_S, Terms
from controller.ca.local import LocalAuthority
from controller.ca.trust import Overlap
from controller.config import Config
from controller.index.index import Index
from controller.serve.callers import Authenticator, NodeCertificates
from controller.serve.hub import Hub
from controller.serve.reviews import ApiReviewer
from controller.serve.tokens import Accounts, ServiceAccountTokens, TokenReviews
from controller.status.metrics import Metrics
from mesh.kube.api import Api


def utc_now() -> datetime.datetime:
    """The clock of certificates."""
    return datetime.datetime.now(datetime.UTC)


class CredentialParts:
    """Makes the parts; `api` is the controller's way to an API server if it has one already. Raises Misconfigured."""

    def __init__(self, config: Config, hub: Hub, metrics: Metrics, api: Api | None) -> None:
        self._config = config
        self._hub = hub
        self._metrics = metrics
        self._given = api

    @cached_property
    def _api(self) -> Api:
        return self._given or Api.connect(self._config.source.kubeconfig)

    def authority(self, is_leader: Callable[[], bool]) -> CertificateAuthority:
        """What signs; raises IssuerUnavailable if that is a file that is not good."""
        config = self._config
        if config.authority.ca == "local":
            local = LocalAuthority(_open_issuer(config), _lifetimes(config), utc_now)
            local.announce(self._hub, self._metrics, config.mesh.trust_domain)
            return local
        if config.authority.ca == "cert-manager":
            return self._cert_manager(is_leader)
        terms = _terms(config)
        return ClusterAuthority(self._api, terms, _lifetimes(config), self._hub, self._metrics, utc_now, is_leader)

    def _cert_manager(self, is_leader: Callable[[], bool]) -> CertificateAuthority:
        config = self._config
        terms = bundle.Terms(config.authority.ca_namespace, config.mesh.trust_domain, _overlap(config).retirement)
        issuer = IssuerRef(config.authority.issuer_name, config.authority.issuer_kind, config.authority.issuer_group)
        return CertManagerAuthority(
            self._api, terms, issuer, _lifetimes(config), self._hub, self._metrics, utc_now, is_leader
        )

    def authenticator(self, index: Index) -> Authenticator:
        """What tells who calls."""
        callers, trust_domain = self._config.callers, self._config.mesh.trust_domain
        if callers.auth == "certificates":
            return NodeCertificates(trust_domain)
        reviews = TokenReviews(ApiReviewer(self._api), callers.token_audiences)
        accounts = Accounts(trust_domain, callers.node_accounts, callers.reader_accounts)
        return ServiceAccountTokens(reviews, accounts, index.node_of)


def _lifetimes(config: Config) -> Lifetimes:
    authority = config.authority
    return Lifetimes(
        default=datetime.timedelta(seconds=authority.leaf_ttl_s),
        longest=datetime.timedelta(seconds=authority.longest_leaf_ttl_s),
    )


def _overlap(config: Config) -> Overlap:
    authority = config.authority
    return Overlap(
        distribution=datetime.timedelta(seconds=authority.root_distribution_s),
        retirement=datetime.timedelta(seconds=authority.root_retirement_s or authority.longest_leaf_ttl_s),
    )


def _terms(config: Config) -> Terms:
    authority = config.authority
    tick_s = min(TICK_S, max(authority.root_distribution_s / 4, 0.1))
    return Terms(authority.ca_namespace, config.mesh.trust_domain, _overlap(config), tick_s)


def _open_issuer(config: Config) -> Issuer:
    """The operator's issuer if there is one, else the local root."""
    if config.authority.ca_dir is not None:
        return load(config.authority.ca_dir, utc_now())
    return load_or_create_root(config.state, config.mesh.trust_domain, utc_now())
