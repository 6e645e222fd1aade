"""python-hyper's h2 over ssl: an HBONE peer that shares no code with the engine. Blocking, both roles."""

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.connection import ConnectionState
from h2.settings import SettingCodes, Settings

from tests.support.pki import Credential
from tests.support.sockets import DEADLINE_S, HBONE, accept, connect, reset

Seen = TypeVar("Seen")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECT = (":method", "CONNECT")
LEAVES = ("TLS", "GOAWAY", "FIN", "RST")


def frame(kind: int, flags: int = 0, stream: int = 0, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


def tls_context(
    server: bool,
    credential: Credential | None,
    alpn: tuple[str, ...] = ("h2",),
    versions: tuple[ssl.TLSVersion, ssl.TLSVersion] = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
) -> ssl.SSLContext:
    """A server asks for a certificate; a client checks the server's if it has roots, but not whom it names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version, context.maximum_version = versions
    if alpn:
        context.set_alpn_protocols(list(alpn))
    context.verify_mode = ssl.CERT_REQUIRED if server or credential else ssl.CERT_NONE
    if credential:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "pem"
            path.write_text(credential.chain + credential.key)
            context.load_cert_chain(path)
        context.load_verify_locations(cadata=credential.roots)
    return context


class Hyper:
    """One HTTP/2 connection and what came on it."""

    def __init__(self, sock: ssl.SSLSocket, client: bool, settings: dict[SettingCodes, int] | None = None) -> None:
        self.socket = sock
        self.socket.settimeout(DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )
        if settings:
            values = dict(self.h2.local_settings) | settings
            self.h2.local_settings = Settings(client=client, initial_values=values)
            self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
        self.h2.initiate_connection()
        self.seen: list[Any] = []
        self.data: dict[int, bytearray] = {}
        self.frame_sizes: list[int] = []
        self.gives_credit = True
        self._unframed = bytearray()
        self._preface = 0 if client else len(PREFACE)  # still to come
        self._open = ConnectionState.CLIENT_OPEN if client else ConnectionState.SERVER_OPEN
        self.flush()

    @classmethod
    def dial(cls, ip: str, context: ssl.SSLContext, source: str | None = None, **options: Any) -> Self:
        return cls(context.wrap_socket(connect((ip, HBONE), source)), True, **options)

    @classmethod
    def accept(cls, listener: socket.socket, context: ssl.SSLContext, **options: Any) -> Self:
        plain = accept(listener)
        try:
            return cls(context.wrap_socket(plain, server_side=True), False, **options)
        except BaseException:
            plain.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # --- sending -----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.socket.sendall(data)

    def raw(self, data: bytes) -> None:
        """Send bytes that h2 knows nothing of."""
        self.flush()
        self.socket.sendall(data)

    def last_words(self, data: bytes) -> None:
        """Send bytes and TLS's close_notify in one segment, so that the other end reads both at once."""
        self.flush()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.socket.sendall(data)
        with contextlib.suppress(OSError):  # what the other end still says is not waited for
            self.socket.unwrap()

    def leave(self, how: str) -> None:
        """End the connection in one of the ways of LEAVES, without waiting for the other end."""
        if how == "GOAWAY":
            self.h2.close_connection()
            self.flush()
        if how in ("GOAWAY", "TLS"):
            self.socket.setblocking(False)
            with contextlib.suppress(ssl.SSLError):
                self.socket.unwrap()
        elif how == "RST":
            reset(self.socket)
        else:
            self.close()

    def request(self, *headers: tuple[str, str], end: bool = False) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, list(headers), end_stream=end)
        self.flush()
        return stream

    def connect(self, authority: str, *extra: tuple[str, str]) -> int:
        return self.request(CONNECT, (":authority", authority), *extra)

    def answer(self, stream: int, status: int, end: bool = False) -> None:
        self.h2.send_headers(stream, [(":status", str(status))], end_stream=end)
        self.flush()

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Send within the other end's windows and frame size, reading while they are shut."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(view))
            if room == 0:
                self.pump()
                continue
            self.h2.send_data(stream, bytes(view[:room]))
            view = view[room:]
            self.flush()
        if end:
            self.end(stream)

    def end(self, stream: int) -> None:
        self.h2.end_stream(stream)
        self.flush()

    def reset(self, stream: int, code: int = 8) -> None:
        self.h2.reset_stream(stream, code)
        self.flush()

    def ping(self, payload: bytes = b"12345678") -> None:
        """PING and wait for its answer."""
        self.h2.ping(payload)
        self.flush()
        assert self.wait(h2.events.PingAckReceived).ping_data == payload

    def grant(self, bytes_: int, stream: int | None = None) -> None:
        """Window credit for a stream, or for the connection."""
        self.h2.increment_flow_control_window(bytes_, stream)
        self.flush()

    # --- receiving ---------------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """One read; False at the end of the connection."""
        data = self.socket.recv(1 << 18)
        if not data:
            return False
        self._unframed += data
        for frame in self._frames():
            for event in self.h2.receive_data(frame):
                self._take(event)
        self.flush()
        return True

    def _frames(self) -> Iterator[bytes]:
        """What has come, frame by frame: h2 takes nothing after a GOAWAY, though open streams go on."""
        while len(self._unframed) >= max(self._preface, 9):
            size = self._preface or 9 + int.from_bytes(self._unframed[:3], "big")
            if len(self._unframed) < size:
                return
            self._preface = 0
            frame = bytes(self._unframed[:size])
            del self._unframed[:size]
            yield frame

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.h2.state_machine.state = self._open
        if not isinstance(event, h2.events.DataReceived):
            self.seen.append(event)
            return
        self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
        self.frame_sizes.append(len(event.data))
        if self.gives_credit and event.flow_controlled_length:
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def wait(self, kind: type[Seen], stream: int | None = None) -> Seen:
        """The next event of a kind, on a stream if one is named; others stay for later. EOFError at the end."""
        while True:
            for event in self.seen:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    self.seen.remove(event)
                    return event
            if not self.pump():
                raise EOFError(f"the connection ended before {kind.__name__}; had {self.seen}")

    def status(self, stream: int) -> int:
        headers: Any = self.wait(h2.events.ResponseReceived, stream).headers
        return int(dict(headers)[":status"])

    def accept_request(self) -> tuple[int, list[tuple[str, str]]]:
        """The next request: its stream and its headers in order."""
        event: Any = self.wait(h2.events.RequestReceived)
        return event.stream_id, [(str(name), str(value)) for name, value in event.headers]

    def ended(self, stream: int) -> None:
        self.wait(h2.events.StreamEnded, stream)

    def reset_code(self, stream: int) -> int:
        code: Any = self.wait(h2.events.StreamReset, stream).error_code
        return int(code)

    def read(self, stream: int, size: int) -> bytes:
        while len(self.data.get(stream, b"")) < size:
            if not self.pump():
                raise EOFError(f"{len(self.data.get(stream, b''))} of {size} bytes")
        held = self.data[stream]
        taken = bytes(held[:size])
        del held[:size]
        return taken

    def until_over(self) -> Any:
        """Read until the connection ends; the GOAWAY that came, or None."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError):
            while self._pump_whatever():
                pass
        goaways = [event for event in self.seen if isinstance(event, h2.events.ConnectionTerminated)]
        return goaways[-1] if goaways else None

    def _pump_whatever(self) -> bool:
        """One read, also of frames for streams that were opened behind h2's back."""
        try:
            return self.pump()
        except h2.exceptions.ProtocolError:
            self.h2.state_machine.state = self._open
            return True
