"""What an API server's refusal means. The message is the server's own sentence, with the request before it."""

import json
from collections.abc import Mapping
from typing import Any


class Misconfigured(Exception):
    """There is no usable way to an API server; the message says where it was looked for."""


class ApiFault(Exception):
    """A request did not do what it should; `status` is the HTTP status, 0 if there was no answer.

    `sentence` is what the server said, without what it was asked.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float | None = None, sentence: str = "") -> None:
        super().__init__(message)
        self.sentence = sentence or message
        self.status = status
        self.retry_after_s = retry_after_s


class NotFound(ApiFault):
    """No such object, or no such kind of objects."""


class Conflict(ApiFault):
    """The object is another than the one that was read, or exists already."""


class Gone(ApiFault):
    """The history that was asked for is no longer kept: list again."""


class Invalid(ApiFault):
    """The server understands the request and cannot do it as it stands."""


class Unauthorized(ApiFault):
    """The server does not know who we are."""


class Forbidden(ApiFault):
    """The server knows who we are, and we may not."""


class TooManyRequests(ApiFault):
    """Come back after `retry_after_s`."""


class Unavailable(ApiFault):
    """There was no answer, or one that says nothing about the request: try again later."""


class Silent(Unavailable):
    """An answer that comes in parts has had none for so long that its connection is not trusted any more."""


_MEANINGS: Mapping[int, type[ApiFault]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    415: Invalid,
    422: Invalid,
    429: TooManyRequests,
}

_LONGEST_SENTENCE = 500


def of_answer(what: str, status: int, headers: Mapping[str, str], body: bytes) -> ApiFault:
    """The fault of an HTTP answer that is no success."""
    document = _document(body)
    sentence = document.get("message") or body.decode("utf-8", "replace").strip() or "no reason given"
    after = _seconds(headers.get("Retry-After")) or _seconds(_detail(document).get("retryAfterSeconds"))
    kind = _MEANINGS.get(status, Unavailable)
    sentence = str(sentence)[:_LONGEST_SENTENCE]
    return kind(f"{what}: {status}: {sentence}", status, after, sentence)


def of_event(what: str, document: Mapping[str, Any]) -> ApiFault:
    """The fault of an ERROR event, which carries a Status."""
    code = document.get("code")
    status = code if isinstance(code, int) else 500
    kind = _MEANINGS.get(status, Unavailable)
    sentence = str(document.get("message") or "no reason given")[:_LONGEST_SENTENCE]
    return kind(f"{what}: {status}: {sentence}", status, _seconds(_detail(document).get("retryAfterSeconds")))


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _detail(document: Mapping[str, Any]) -> Mapping[str, Any]:
    details = document.get("details")
    return details if isinstance(details, dict) else {}


def _seconds(value: object) -> float | None:
    text = str(value)
    return float(text) if text.isascii() and text.isdigit() and 0 < int(text) < 3600 else None
