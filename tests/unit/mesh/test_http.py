import asyncio
import json

import pytest

from mesh.http import MAX_BODY_BYTES, MAX_CONNECTIONS, HttpServer, Request, Response


async def hello(request: Request) -> Response:
    return Response.json({"query": dict(request.query), "body": request.body.decode()})


async def picky(_: Request) -> Response:
    raise ValueError("level 'loud' is not known")


ROUTES = {("GET", "/hello"): hello, ("POST", "/hello"): hello, ("GET", "/picky"): picky}


def exchange(data: bytes) -> tuple[int, bytes]:
    async def run() -> tuple[int, bytes]:
        async with HttpServer("127.0.0.1", 0, ROUTES) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            answer = await reader.read()
            writer.close()
            head, _, body = answer.partition(b"\r\n\r\n")
            return int(head.split()[1]), body

    return asyncio.run(run())


def test_a_handler_sees_query_and_body() -> None:
    status, body = exchange(b"POST /hello?a=1&b=x%20y HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
    assert (status, json.loads(body)) == (200, {"query": {"a": "1", "b": "x y"}, "body": "hi"})


@pytest.mark.parametrize(
    ("request_line", "status", "says"),
    [
        (b"GET /nothing HTTP/1.1", 404, b"GET /hello"),
        (b"DELETE /hello HTTP/1.1", 405, b"does not take DELETE"),
        (b"GET /picky HTTP/1.1", 400, b"'loud' is not known"),
        (b"GET //[ HTTP/1.1", 400, b"not an address"),
    ],
)
def test_a_refusal_says_what_would_do(request_line: bytes, status: int, says: bytes) -> None:
    got, body = exchange(request_line + b"\r\nhost: a\r\n\r\n")
    assert got == status
    assert says in body


def test_whoever_holds_most_connections_gives_way() -> None:
    async def run() -> None:
        async with HttpServer("127.0.0.1", 0, ROUTES) as server:
            first = await asyncio.open_connection("127.0.0.1", server.port)
            idle = [
                await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
                for _ in range(3 * MAX_CONNECTIONS)
            ]
            async with asyncio.timeout(5):
                assert await idle[0][0].read() == b"", "the oldest of those"
                for reader, writer in (first, await asyncio.open_connection("127.0.0.1", server.port)):
                    writer.write(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
                    assert (await reader.read()).startswith(b"HTTP/1.1 200")
                    writer.close()
            for _, writer in idle:
                writer.close()

    asyncio.run(run())


def test_garbage_gets_400() -> None:
    status, _ = exchange(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
    assert status == 400


def test_a_huge_head_is_refused() -> None:
    status, _ = exchange(b"GET /hello HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 70_000 + b"\r\n\r\n")
    assert status == 431


def test_a_huge_body_is_refused() -> None:
    size = MAX_BODY_BYTES + 1
    head = f"POST /hello HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n".encode()
    status, _ = exchange(head + b"x" * size)
    assert status == 413


def test_everywhere_is_both_families() -> None:
    async def run() -> list[int]:
        statuses = []
        async with HttpServer("::", 0, {("GET", "/hello"): hello}) as server:
            for host in ("127.0.0.1", "::1"):
                reader, writer = await asyncio.open_connection(host, server.port)
                writer.write(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
                statuses.append(int((await reader.readline()).split()[1]))
                writer.close()
        return statuses

    assert asyncio.run(run()) == [200, 200]
