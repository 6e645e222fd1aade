"""python-hyper's h2 over ssl: an HBONE peer that shares no code with the engine."""

import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.engine.certificates import Credentials
from tests.engine.harness import DEADLINE_S


def tls_context(
    server: bool, credentials: Credentials | None, alpn: tuple[str, ...] = ("h2",), check: bool = True
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if check else ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if credentials:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "pem"
            path.write_bytes(credentials.chain + credentials.key)
            context.load_cert_chain(path)
        context.load_verify_locations(cadata=credentials.roots.decode())
    return context


class Peer:
    """One HTTP/2 connection, either side; blocking."""

    def __init__(self, made: Any, client: bool) -> None:
        self.socket = made
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )
        self.h2.initiate_connection()
        self.pending: list[Any] = []
        self.data: dict[int, bytearray] = {}
        self.credit = True
        self.flush()

    @classmethod
    def dial(cls, address: tuple[str, int], context: ssl.SSLContext, source: str | None = None) -> "Peer":
        plain = socket.create_connection(address, DEADLINE_S, (source, 0) if source else None)
        return cls(context.wrap_socket(plain), True)

    @classmethod
    def accept(cls, listener: socket.socket, context: ssl.SSLContext) -> "Peer":
        plain, _ = listener.accept()
        plain.settimeout(DEADLINE_S)
        return cls(context.wrap_socket(plain, server_side=True), False)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def pump(self) -> bool:
        """One read. False at the end of the connection."""
        data = self.socket.recv(1 << 17)
        if not data:
            return False
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
                if self.credit and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.pending.append(event)
        self.flush()
        return True

    def wait(self, *kinds: Any, stream: int | None = None) -> Any:
        """The next event of one of these kinds, on this stream if one is named; earlier others stay."""
        while True:
            for event in self.pending:
                if isinstance(event, kinds) and (stream is None or event.stream_id == stream):
                    self.pending.remove(event)
                    return event
            if not self.pump():
                raise EOFError(f"closed before {kinds}; had {self.pending}")

    def connect(self, authority: str, *extra: tuple[str, str], end: bool = False) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        headers = [(":method", "CONNECT"), (":authority", authority), *extra]
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    def request(self, headers: list[tuple[str, str]], end: bool = False) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    def status(self, stream: int) -> int:
        event = self.wait(h2.events.ResponseReceived, stream=stream)
        return int(dict(event.headers)[":status"])

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Sends within the windows, reading while they are shut."""
        at = 0
        while at < len(data):
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if not room:
                self.pump()
                continue
            self.h2.send_data(stream, data[at : at + room])
            at += min(room, len(data) - at)
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def read(self, stream: int, size: int) -> bytes:
        while len(self.data.get(stream, b"")) < size:
            if not self.pump():
                raise EOFError(f"{len(self.data.get(stream, b''))} of {size} bytes")
        held = self.data[stream]
        data = bytes(held[:size])
        del held[:size]
        return data

    def close(self) -> None:
        self.socket.close()
