import asyncio
import socket
import ssl

import pytest

from lab.span import link, secret
from lab.span.link import Link, LinkLost, accept, connect, together

OURS, THEIRS = b"a" * 32, b"b" * 32


async def meet(server_context, client_context, use=None):
    """Join both ends over loopback; returns what became of each: a result, or its LinkLost."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]

        async def serve():
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            own = await accept(sock, server_context)
            try:
                return await own.receive(2)
            finally:
                own.close()

        async def dial():
            own = await connect("127.0.0.1", port, client_context, secret.HOME)
            try:
                await (use(own) if use else own.send("hello", {"n": 1}))
                return await own.receive(2)
            finally:
                own.close()

        return await asyncio.gather(serve(), dial(), return_exceptions=True)


def test_holders_of_one_secret_meet():
    served, _ = asyncio.run(meet(secret.home_context(OURS), secret.joined_context(OURS)))
    assert served == ("hello", {"n": 1})


@pytest.mark.parametrize(("home", "joined"), [(OURS, THEIRS), (THEIRS, OURS)])
def test_holders_of_two_secrets_do_not(home, joined):
    served, dialled = asyncio.run(meet(secret.home_context(home), secret.joined_context(joined)))
    assert isinstance(served, LinkLost)
    assert isinstance(dialled, LinkLost)
    assert "same token" in str(dialled)


def no_certificate(_):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def of_a_home(material):
    """A home's certificate, shown by a client that believes everything."""
    context = secret._furnish(no_certificate(material), material, secret.HOME, secret.ExtendedKeyUsageOID.SERVER_AUTH)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("client", [no_certificate, of_a_home])
def test_home_wants_the_certificate_of_a_joined_machine(client):
    served, _ = asyncio.run(meet(secret.home_context(OURS), client(OURS)))
    assert isinstance(served, LinkLost)
    assert "no handshake" in str(served)


@pytest.mark.parametrize(
    "line",
    [b"garbage\n", b"[]\n", b'{"kind": 1, "body": {}}\n', b'{"kind": "x", "body": []}\n', b'{"kind": "x"', b"\xff\n"],
)
def test_garbage_loses_the_link(line):
    async def use(own):
        own._writer.write(line)
        await own._writer.drain()
        own.close()

    served, _ = asyncio.run(meet(secret.home_context(OURS), secret.joined_context(OURS), use))
    assert isinstance(served, LinkLost)


def test_line_without_end_is_bounded(monkeypatch):
    monkeypatch.setattr(link, "MAX_LINE_BYTES", 10_000)

    async def use(own):
        own._writer.write(b"x" * 100_000)
        await own._writer.drain()

    served, _ = asyncio.run(meet(secret.home_context(OURS), secret.joined_context(OURS), use))
    assert isinstance(served, LinkLost)


def test_stranger_who_says_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(link, "HANDSHAKE_DEADLINE_S", 0.05)

    async def wait_for_nothing():
        near, far = socket.socketpair()
        near.setblocking(False)
        with far, pytest.raises(LinkLost, match="no handshake"):
            await accept(near, secret.home_context(OURS))

    asyncio.run(wait_for_nothing())


def test_silence_loses_the_link():
    async def hear():
        await Link(asyncio.StreamReader(), None).receive(0.01)

    with pytest.raises(LinkLost, match="nothing was heard"):
        asyncio.run(hear())


def test_first_failure_ends_a_conversation_and_a_lost_link_counts_last():
    async def lose():
        raise LinkLost("gone")

    async def end():
        raise KeyError("over")

    async def last():
        await asyncio.Event().wait()

    with pytest.raises(LinkLost, match="gone"):
        asyncio.run(together(last(), lose()))
    with pytest.raises(KeyError, match="over"):
        asyncio.run(together(lose(), end()))
