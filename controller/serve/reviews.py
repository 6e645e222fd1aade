"""Token reviews by the API server of this cluster."""

from collections.abc import Mapping, Sequence
from typing import Any

from controller.serve.tokens import ReviewUnavailable
from mesh.kube.api import Api
from mesh.kube.errors import ApiFault
from mesh.kube.resources import TOKEN_REVIEWS

# A call of a node waits for this; its own deadline is longer.
TIMEOUT_S = 5.0


class ApiReviewer:
    """Implements Reviewer."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def review(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """The server's verdict; raises ReviewUnavailable, also when the server refuses to give one."""
        spec = {"token": token, "audiences": list(audiences)}
        document = {"apiVersion": TOKEN_REVIEWS.api_version, "kind": "TokenReview", "spec": spec}
        try:
            answer = await self._api.create(TOKEN_REVIEWS, document, timeout_s=TIMEOUT_S)
        except ApiFault as fault:
            raise ReviewUnavailable(str(fault)) from fault
        status = answer.get("status")
        if not isinstance(status, dict):
            raise ReviewUnavailable("the API server answered without a verdict")
        return status
