"""cert-manager's part, as far as a CertificateRequest goes: its kind of object, and a signer that answers as told."""

import asyncio
import base64
import contextlib
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cryptography import x509

from controller.ca import keys
from controller.ca.cert_manager import REQUESTS
from controller.ca.issuer import Issuer
from mesh.kube.api import Api, Selection
from mesh.kube.errors import ApiFault, Conflict
from mesh.kube.follow import Follow
from mesh.kube.resources import DEFINITIONS

_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_DEFINITION = {
    "apiVersion": DEFINITIONS.api_version,
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "certificaterequests.cert-manager.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
    },
    "spec": {
        "group": "cert-manager.io",
        "scope": "Namespaced",
        "names": {
            "kind": "CertificateRequest",
            "listKind": "CertificateRequestList",
            "plural": "certificaterequests",
            "singular": "certificaterequest",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _OPEN, "status": _OPEN}}},
            }
        ],
    },
}


async def define(api: Api) -> None:
    """Make the kind; returns when it is served."""
    with contextlib.suppress(Conflict):
        await api.create(DEFINITIONS, _DEFINITION)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ApiFault):
                await api.page(Selection(REQUESTS, "default"))
                return
            await asyncio.sleep(0.05)


Answer = Callable[["Signer", Mapping[str, Any]], dict[str, Any] | None]


def sign(signer: "Signer", request: Mapping[str, Any]) -> dict[str, Any]:
    """The status of a request that was signed."""
    csr = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return signed_status(signer.issuer, csr, list(names), _duration(request))


def signed_status(
    issuer: Issuer,
    csr: x509.CertificateSigningRequest,
    names: list[x509.GeneralName],
    lifetime: datetime.timedelta = datetime.timedelta(hours=1),
) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    key = keys.accept_public_key(csr.public_key())
    leaf = keys.make_leaf(key, names, issuer.certificate, issuer.key, now, now + lifetime)
    chain = b"".join(map(keys.certificate_pem, (leaf, *issuer.intermediates)))
    return {
        "conditions": [condition("Approved"), condition("Ready", reason="Issued")],
        "certificate": base64.b64encode(chain).decode(),
        "ca": base64.b64encode(issuer.roots_pem).decode(),
    }


def condition(kind: str, status: str = "True", reason: str = "ForTheTest", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def _duration(request: Mapping[str, Any]) -> datetime.timedelta:
    return datetime.timedelta(seconds=int(request["spec"]["duration"].removesuffix("s")))


class Signer:
    """Follows the requests of a namespace and answers each as `answer` says; None leaves it waiting."""

    def __init__(self, api: Api, namespace: str, issuer: Issuer) -> None:
        self._api = api
        self._namespace = namespace
        self.issuer = issuer
        self.answer: Answer = sign
        self.seen: list[Mapping[str, Any]] = []
        self._queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

    async def run(self) -> None:
        """Answer until cancelled."""
        follow = Follow(self._api, Selection(REQUESTS, self._namespace), lambda item: item, self)
        async with asyncio.TaskGroup() as group:
            group.create_task(follow.run())
            while True:
                request = await self._queue.get()
                status = self.answer(self, request)
                if status is not None:
                    name = request["metadata"]["name"]
                    with contextlib.suppress(ApiFault):  # gone meanwhile
                        await self._api.merge_patch(REQUESTS, name, {"status": status}, self._namespace, "status")

    def listed(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.changed([(True, item) for item in items])

    def changed(self, items: Sequence[tuple[bool, Mapping[str, Any]]]) -> None:
        for is_there, request in items:
            if is_there and not request.get("status"):
                self.seen.append(request)
                self._queue.put_nowait(request)
