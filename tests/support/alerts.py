"""TLS alerts that a peer sends, by their names in RFC 8446 section 6.

Read from the records and not from the error: the text of an SSLError depends on which reasons of OpenSSL the
interpreter was built to know (Python 3.12 of Ubuntu 24.04 has no word for no_application_protocol).
"""

import ssl
from typing import Any


def note_alerts(context: ssl.SSLContext) -> list[str]:
    """A list that gets the name of each alert that connections of this context receive."""
    received: list[str] = []

    def note(_: ssl.SSLObject, direction: str, version: Any, content: Any, message: Any, data: bytes) -> None:
        if direction == "read" and content == ssl._TLSContentType.ALERT:  # type: ignore[attr-defined]
            received.append(message.name.lower())

    context._msg_callback = note  # type: ignore[attr-defined]
    return received
