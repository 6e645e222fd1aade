"""Events on pods that cannot be enrolled, or whose processes want a port of the mesh: for whoever looks and wonders.

One event per pod and reason: it is not repeated while the reason stays, and what was said before a restart of the
controller may be said once more. Written by the controller that the pod's agent talks to, whoever leads. Events are for
people: one that cannot be written is dropped and counted in the log, and nothing waits for it.
"""

import asyncio
import datetime
import hashlib
import logging
import socket
from collections import OrderedDict
from dataclasses import dataclass

from mesh.kube.api import Api, Document
from mesh.kube.errors import ApiFault, Conflict
from mesh.kube.resources import EVENTS

log = logging.getLogger(__name__)

_MAX_WAITING = 1000
_MAX_REMEMBERED = 20_000
_NOTE_LENGTH = 1000  # the API takes 1024 bytes
# Reason and action of an Event, by the agent's word.
_NOT_ENROLLED = ("NotEnrolled", "Enrol")
_OTHERS = {"port_reserved": ("PortReserved", "Bind")}


@dataclass(frozen=True, slots=True)
class Refused:
    """A pod of which its agent complains; `reason` is a word, `message` a sentence."""

    namespace: str
    name: str
    uid: str
    reason: str
    message: str


class Events:
    """Writes them, one after the other."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._waiting: asyncio.Queue[Refused] = asyncio.Queue(_MAX_WAITING)
        self._said: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def tell(self, refused: Refused) -> None:
        """Say it once."""
        key = (refused.uid, refused.reason, refused.message)
        if key in self._said:
            self._said.move_to_end(key)
            return
        try:
            self._waiting.put_nowait(refused)
        except asyncio.QueueFull:
            return  # the agent repeats what it has to say with its next report
        self._said[key] = None
        if len(self._said) > _MAX_REMEMBERED:
            self._said.popitem(last=False)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            refused = await self._waiting.get()
            try:
                await self._api.create(EVENTS, event(refused, datetime.datetime.now(datetime.UTC)), refused.namespace)
            except Conflict:
                pass  # said before a restart
            except ApiFault as fault:
                log.warning("event about pod %s/%s is lost: %s", refused.namespace, refused.name, fault)


def event(refused: Refused, now: datetime.datetime) -> Document:
    """The Event's document. Its name is made of what it says, so that two controllers say it once."""
    said = f"{refused.uid} {refused.reason} {refused.message}"
    digest = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
    reason, action = _OTHERS.get(refused.reason, _NOT_ENROLLED)
    note = f"{refused.reason}: {refused.message}" if refused.message else refused.reason
    return {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {"name": f"{refused.name[:230]}.{digest}", "namespace": refused.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning",
        "reason": reason,
        "action": action,
        "note": note.encode()[:_NOTE_LENGTH].decode(errors="ignore"),
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": refused.namespace,
            "name": refused.name,
            "uid": refused.uid,
        },
        "reportingController": "culvert.io/controller",
        "reportingInstance": socket.gethostname()[:128],
    }
