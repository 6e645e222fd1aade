import asyncio
import json
import os

import pytest

from lab.ask import Refused, SupervisorGone, ask
from lab.control import ControlServer


async def refuse(order):
    raise Refused(f"no {order['what']} here")


async def echo(order):
    return {"got": order["what"]}


async def break_down(order):
    raise RuntimeError("bug")


def why():
    return "the lab ends"


async def exchange(path, order):
    async with ControlServer(path, {"echo": echo, "refuse": refuse, "break": break_down}, why):
        return await asyncio.to_thread(ask, path, order, 5.0)


def test_answer_comes_back(tmp_path):
    assert asyncio.run(exchange(tmp_path / "s", {"do": "echo", "what": "ü" * 100_000})) == {"got": "ü" * 100_000}


def test_refusal_is_an_exception_with_its_reason(tmp_path):
    with pytest.raises(Refused, match="no pod here"):
        asyncio.run(exchange(tmp_path / "s", {"do": "refuse", "what": "pod"}))


def test_fault_of_a_handler_is_an_answer_too(tmp_path):
    with pytest.raises(Refused, match="RuntimeError: bug"):
        asyncio.run(exchange(tmp_path / "s", {"do": "break"}))


def test_unknown_order_is_refused(tmp_path):
    with pytest.raises(Refused, match="not an order"):
        asyncio.run(exchange(tmp_path / "s", {"do": "dance"}))


def test_socket_is_roots_only_and_goes_with_the_server(tmp_path):
    path = tmp_path / "s"

    async def look():
        async with ControlServer(path, {}, why):
            return path.stat().st_mode & 0o777

    assert asyncio.run(look()) == 0o600
    assert not path.exists()


def test_nobody_listening_is_told_apart_from_a_refusal(tmp_path):
    with pytest.raises(SupervisorGone):
        ask(tmp_path / "none", {"do": "ping"})


def test_garbage_does_not_end_the_server(tmp_path):
    path = tmp_path / "s"

    async def attack():
        async with ControlServer(path, {"echo": echo}, why):
            for junk in (b"\xff\x00\n", b"[]\n", b"{}\n", b""):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(junk)
                writer.write_eof()
                answer = await reader.read()
                assert not answer or "error" in json.loads(answer)
                writer.close()
            return await asyncio.to_thread(ask, path, {"do": "echo", "what": os.getpid()}, 5.0)

    assert asyncio.run(attack()) == {"got": os.getpid()}


def test_order_that_is_being_carried_out_is_taken_back_when_the_server_ends(tmp_path):
    path, begun, taken_back = tmp_path / "s", asyncio.Event(), []

    async def last_for_ever(order):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            taken_back.append(order["do"])

    async def scenario():
        async with ControlServer(path, {"wait": last_for_ever}, why):
            asking = asyncio.get_running_loop().create_task(asyncio.to_thread(ask, path, {"do": "wait"}, 5.0))
            await begun.wait()
        assert taken_back == ["wait"]
        await asking

    with pytest.raises(Refused, match="the lab ends"):
        asyncio.run(scenario())


def test_order_that_ends_the_server_gets_its_answer(tmp_path):
    path, ended = tmp_path / "s", asyncio.Event()

    async def end(order):
        ended.set()
        return {"said": "ended"}

    async def scenario():
        async with ControlServer(path, {"end": end}, why):
            asking = asyncio.get_running_loop().create_task(asyncio.to_thread(ask, path, {"do": "end"}, 5.0))
            await ended.wait()
        return await asking

    assert asyncio.run(scenario()) == {"said": "ended"}
