"""Certificates from cert-manager through a real API server; the test plays cert-manager's part."""

import asyncio
import base64
import contextlib
import datetime
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from controller.ca import cert_manager, keys
from controller.ca.authority import InvalidRequest, Issued, Lifetimes, NotIssued
from controller.ca.bundle import Terms
from controller.ca.cert_manager import REQUESTS, CertManagerAuthority, IssuerRef
from controller.ca.issuer import Issuer
from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.status.metrics import Metrics
from mesh.aio import Background
from mesh.identity import Identity
from mesh.kube.api import Selection
from mesh.kube.errors import NotFound
from mesh.kube.resources import CONFIG_MAPS
from mesh.xds import ROOTS_TYPE
from tests.cluster.alone import ApiAlone
from tests.cluster.callers import Caller, config
from tests.cluster.mesh_objects import Objects
from tests.cluster.signer import Answer, Signer, condition, define, sign, signed_status
from tests.support.pki import csr, p256
from tests.unit.controller.ca.hierarchy import intermediate, root
from tests.unit.controller.nodes import running

pytestmark = pytest.mark.slow

WEB = Identity("cluster.local", "shop", "web")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NAME = x509.UniformResourceIdentifier(str(WEB))


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def fresh() -> Issuer:
    return intermediate(root(now()), now=now())


class Stage:
    """An authority, the signer behind it, and what nodes would be told."""

    def __init__(self, objects: Objects, issuer: Issuer) -> None:
        self.objects = objects
        self.signer = Signer(objects.api, objects.namespace, issuer)
        self.hub = Hub([ResourceSet(ROOTS_TYPE)])
        self.authority = self.replica(self.hub)

    def replica(self, hub: Hub) -> CertManagerAuthority:
        terms = Terms(self.objects.namespace, "cluster.local", datetime.timedelta(days=90))
        ref = IssuerRef("mesh", "ClusterIssuer", "cert-manager.io")
        return CertManagerAuthority(self.objects.api, terms, ref, Lifetimes(), hub, Metrics(), now, lambda: True)

    async def issue(self, key: ec.EllipticCurvePrivateKey | None = None) -> Issued:
        return await self.authority.issue(csr(key or p256(), NAME), WEB, 3600)

    async def refused(self, answer: Answer) -> str:
        self.signer.answer = answer
        with pytest.raises(NotIssued) as caught:
            await self.issue()
        self.signer.answer = sign
        return str(caught.value)

    async def left(self) -> int:
        return len((await self.objects.api.page(Selection(REQUESTS, self.objects.namespace))).items)

    async def condition(self) -> str:
        with contextlib.suppress(NotFound):
            found = await self.objects.api.get(CONFIG_MAPS, "culvert-ca-root", self.objects.namespace)
            return str(found["metadata"]["annotations"].get("culvert.io/ca-condition", ""))
        return ""

    async def says(self, beginning: str) -> None:
        """The condition begins so before long."""
        async with asyncio.timeout(10):
            while not (await self.condition()).startswith(beginning):
                await asyncio.sleep(0.05)

    async def roots(self) -> str:
        found = await self.objects.api.get(CONFIG_MAPS, "culvert-ca-root", self.objects.namespace)
        return str(found["data"]["root-cert.pem"])


@contextlib.asynccontextmanager
async def stage(server: ApiAlone) -> AsyncIterator[Stage]:
    api = server.api()
    await define(api)
    one = Stage(await Objects.make(api), fresh())
    await one.authority.open()
    async with Background() as tasks:
        tasks.start(one.signer.run(), "signer")
        tasks.start(one.authority.run(), "authority")
        yield one


def test_a_leaf_comes_with_its_chain_and_its_root_is_given_out(api_server: ApiAlone) -> None:
    async def test() -> None:
        async with stage(api_server) as one:
            key = p256()
            issued = await one.issue(key)
            assert issued.certificate.public_key() == key.public_key()
            assert issued.chain == one.signer.issuer.intermediates
            assert issued.roots == one.signer.issuer.roots
            assert await one.roots() == one.signer.issuer.roots_pem.decode()
            (request,) = one.signer.seen
            spec = request["spec"]
            assert spec["issuerRef"] == {"name": "mesh", "kind": "ClusterIssuer", "group": "cert-manager.io"}
            assert (spec["isCA"], spec["duration"]) == (False, "3600s")
            assert set(spec["usages"]) >= {"client auth", "server auth"}
            assert request["metadata"]["annotations"]["culvert.io/identity"] == str(WEB)
            assert await one.left() == 0

    asyncio.run(test())


def test_a_serving_certificate(api_server: ApiAlone) -> None:
    async def test() -> None:
        async with stage(api_server) as one:
            names = [x509.DNSName("culvert-controller.culvert-system.svc")]
            issued = await one.authority.issue_serving(keys.new_key(), names, datetime.timedelta(hours=24))
            shown = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert list(shown) == names

    asyncio.run(test())


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"conditions": [condition("Denied", message="not by policy")]}, "denied the request: not by policy"),
        ({"conditions": [condition("InvalidRequest", message="no")]}, "invalid: no"),
        ({"conditions": [condition("Ready", "False", "Failed", "quota")]}, "the issuer mesh failed: quota"),
        ({"conditions": [condition("Ready")], "certificate": "%%"}, "status.certificate .* cannot be read"),
    ],
)
def test_a_refusal_carries_its_reason(api_server: ApiAlone, status: dict[str, Any], says: str) -> None:
    async def test() -> None:
        async with stage(api_server) as one:
            assert re.search(says, await one.refused(lambda signer, request: status))
            assert await one.left() == 0
            await one.issue()

    asyncio.run(test())


def test_an_answer_that_is_not_what_was_asked_for_is_refused(api_server: ApiAlone) -> None:
    def other_key(signer: Signer, request: Mapping[str, Any]) -> dict[str, Any]:
        return signed_status(signer.issuer, x509.load_pem_x509_csr(csr(p256(), NAME).encode()), [NAME])

    def other_name(signer: Signer, request: Mapping[str, Any]) -> dict[str, Any]:
        names = [NAME, x509.UniformResourceIdentifier("culvert://node/a")]
        return signed_status(signer.issuer, requested(request), names)

    def other_root(signer: Signer, request: Mapping[str, Any]) -> dict[str, Any]:
        return {**sign(signer, request), "ca": sign(Signer(signer._api, "", fresh()), request)["ca"]}

    def no_root(signer: Signer, request: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in sign(signer, request).items() if name != "ca"}

    def too_long(signer: Signer, request: Mapping[str, Any]) -> dict[str, Any]:
        return signed_status(signer.issuer, requested(request), [NAME], datetime.timedelta(days=400))

    async def test() -> None:
        async with stage(api_server) as one:
            assert "another key" in await one.refused(other_key)
            assert "other names" in await one.refused(other_name)
            assert "gives no root" in await one.refused(other_root)
            assert "gives no root" in await one.refused(no_root)
            assert "outlives its issuer" in await one.refused(too_long)

    asyncio.run(test())


def requested(request: Mapping[str, Any]) -> x509.CertificateSigningRequest:
    return x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))


@pytest.mark.parametrize(
    "request_pem",
    [
        csr(p256()),
        csr(p256(), NAME, subject="admin"),
        csr(p256(), NAME, x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/other")),
    ],
)
def test_a_csr_that_asks_for_something_else_is_not_passed_on(api_server: ApiAlone, request_pem: str) -> None:
    async def test() -> None:
        async with stage(api_server) as one:
            with pytest.raises(InvalidRequest):
                await one.authority.issue(request_pem, WEB, 3600)
            assert not one.signer.seen

    asyncio.run(test())


def test_nobody_who_signs_is_said_after_a_while(api_server: ApiAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cert_manager, "DEADLINE_S", 0.5)

    async def test() -> None:
        async with stage(api_server) as one:
            assert "not answered for 0.5 s" in await one.refused(lambda signer, request: None)
            assert await one.left() == 0

    asyncio.run(test())


def test_a_new_root_is_given_out_before_anything_that_it_signed_and_the_old_one_stays(api_server: ApiAlone) -> None:
    async def test() -> None:
        async with stage(api_server) as one:
            before = await one.issue()
            one.signer.issuer = fresh()
            asking = asyncio.get_running_loop().create_task(one.issue())
            expected = before.roots[0], one.signer.issuer.roots[0]
            async with asyncio.timeout(10):
                while one.hub.sets[ROOTS_TYPE].revision < 2:
                    await asyncio.sleep(0.01)
            assert not asking.done()
            after = await asking
            assert set(after.roots) == set(expected)
            other = one.replica(Hub([ResourceSet(ROOTS_TYPE)]))
            await other.open()
            assert set(other.roots) == set(expected)

    asyncio.run(test())


def test_administrators_read_what_is_wrong_or_about_to_end(
    api_server: ApiAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cert_manager, "_LOOK_S", 0.05)

    async def test() -> None:
        async with stage(api_server) as one:
            await one.issue()
            await one.says("Ready")
            await one.refused(lambda signer, request: {"conditions": [condition("Denied", message="not today")]})
            await one.says("Faulty: cert-manager denied the request: not today")
            # A certificate that was made two minutes ago and ends in twenty seconds.
            above = one.signer.issuer
            one.signer.issuer = intermediate(root(now()), now=now(), life=datetime.timedelta(seconds=20))
            await one.authority.issue(csr(p256(), NAME), WEB, 5)
            await one.says("Expiring: the issuer of certificates ends ")
            one.signer.issuer = above
            await one.issue()
            await one.says("Ready")

    asyncio.run(test())


def test_a_controller_serves_with_certificates_of_cert_manager(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        api = api_server.api()
        await define(api)
        objects = await Objects.make(api)
        signer = Signer(api, objects.namespace, fresh())
        settings = config(tmp_path, api_server, objects.namespace)
        authority = replace(settings.authority, ca="cert-manager", issuer_name="mesh")
        await objects.account("web")
        async with Background() as tasks:
            tasks.start(signer.run(), "signer")
            async with running(replace(settings, authority=authority)) as controller:
                caller = Caller(controller, signer.issuer.roots_pem, await objects.token("web"))
                assert await caller.ask(f"spiffe://cluster.local/ns/{objects.namespace}/sa/web") is INVALID
                named = csr(
                    p256(), x509.UniformResourceIdentifier(f"spiffe://cluster.local/ns/{objects.namespace}/sa/web")
                )
                assert await caller.ask(request=named) is grpc.StatusCode.OK

    asyncio.run(test())
