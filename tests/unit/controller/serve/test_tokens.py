"""Whose token makes its holder what: the API server's word, the token's node, and nothing of what the caller says."""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from controller.serve import tokens
from controller.serve.callers import Caller, Right, Unauthenticated, Undecided
from controller.serve.tokens import Accounts, ReviewUnavailable, ServiceAccountTokens, TokenReviews
from mesh.identity import Identity

NODE_ACCOUNT = Identity("cluster.local", "culvert-system", "culvert-node")
WEB = Identity("cluster.local", "shop", "web")
NOW = 1_800_000_000.0


def token(name: str = "a", expires_in: float = 3600) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256"}, {"exp": NOW + expires_in, "name": name})]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in [*parts, b"signature"])


def status(identity: Identity = NODE_ACCOUNT, node: str = "node-a", **changes: Any) -> dict[str, Any]:
    prefix = "authentication.kubernetes.io/"
    extra = {f"{prefix}pod-name": ["culvert-node-x"], f"{prefix}pod-uid": ["uid-x"]}
    if node:
        extra[f"{prefix}node-name"] = [node]
    user = {"username": f"system:serviceaccount:{identity.namespace}:{identity.service_account}", "extra": extra}
    return {"authenticated": True, "audiences": ["culvert-ca"], "user": user, **changes}


class Server:
    """The API server's part: an answer per review, or a fault."""

    def __init__(self, answer: Mapping[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.held: asyncio.Event | None = None

    async def review(self, text: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        self.asked.append((text, tuple(audiences)))
        if self.held is not None:
            await self.held.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Call:
    def __init__(self, *shown: str) -> None:
        self._shown = shown

    def auth_context(self) -> Mapping[str, tuple[bytes, ...]]:
        return {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("clusterid", "Kubernetes"), *(("authorization", one) for one in self._shown)]

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Stage:
    def __init__(self, answer: Mapping[str, Any] | Exception, pods: Mapping[str, str] | None = None) -> None:
        self.server = Server(answer)
        self.clock = Clock()
        self.reviews = TokenReviews(self.server, ["culvert-ca"], self.clock, lambda: NOW + self.clock.now)
        accounts = Accounts("cluster.local", ["culvert-system/culvert-node"], ["shop/gateway"])
        known = pods or {}
        self.tokens = ServiceAccountTokens(
            self.reviews, accounts, lambda ns, pod, uid: known.get(f"{ns}/{pod}/{uid}", "")
        )

    async def call(self, *shown: str) -> Caller:
        return await self.tokens.authenticate(Call(*(shown or (f"Bearer {token()}",))))

    def caller(self, *shown: str) -> Caller:
        return asyncio.run(self.call(*shown))

    def refused(self, *shown: str) -> str:
        with pytest.raises(Unauthenticated) as caught:
            self.caller(*shown)
        return caught.value.reason


def test_a_node_component_acts_for_the_node_of_its_token() -> None:
    stage = Stage(status())
    assert stage.caller() == Caller("node-a", NODE_ACCOUNT, is_node=True, may_read=True)
    assert stage.server.asked == [(token(), ("culvert-ca",))]


def test_a_workload_speaks_for_itself_only() -> None:
    caller = Stage(status(WEB)).caller()
    assert (caller.identity, caller.is_node, caller.name) == (WEB, False, str(WEB))
    assert [caller.has(right) for right in (Right.KNOWN, Right.CONFIGURATION, Right.NODE)] == [True, False, False]


def test_a_reader_gets_configuration_and_no_node() -> None:
    caller = Stage(status(Identity("cluster.local", "shop", "gateway"))).caller()
    assert [caller.has(right) for right in (Right.KNOWN, Right.CONFIGURATION, Right.NODE)] == [True, True, False]


@pytest.mark.parametrize(
    ("in_token", "in_index", "node"),
    [("node-a", "node-a", "node-a"), ("node-a", "", "node-a"), ("", "node-b", "node-b")],
)
def test_the_node_is_the_tokens_or_its_pods(in_token: str, in_index: str, node: str) -> None:
    pods = {"culvert-system/culvert-node-x/uid-x": in_index}
    assert Stage(status(node=in_token), pods).caller().node == node


def test_token_and_index_must_agree_about_the_node() -> None:
    pods = {"culvert-system/culvert-node-x/uid-x": "node-b"}
    assert Stage(status(node="node-a"), pods).refused() == "node_disagrees"


def test_a_node_component_without_a_node_is_nobody() -> None:
    other_uid = {"culvert-system/culvert-node-x/uid-of-its-predecessor": "node-a"}
    assert Stage(status(node=""), other_uid).refused() == "node_unknown"
    unbound = status(node="")
    unbound["user"]["extra"] = {}
    assert Stage(unbound).refused() == "node_unknown"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"authenticated": False, "error": "token has expired"}, "token"),
        ({"authenticated": None}, "token"),
        ({"audiences": ["api"]}, "audience"),
        ({"audiences": None}, "audience"),
        ({"user": None}, "not_an_account"),
        ({"user": {"username": "admin"}}, "not_an_account"),
        ({"user": {"username": "system:serviceaccount:shop"}}, "not_an_account"),
        ({"user": {"username": "system:serviceaccount:a/b:web"}}, "not_an_account"),
    ],
)
def test_what_the_api_server_does_not_vouch_for_is_nobody(changes: dict[str, Any], reason: str) -> None:
    assert Stage(status(**changes)).refused() == reason


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (["Basic YTpi"], "malformed"),
        ([token()], "malformed"),
        (["Bearer not a token"], "malformed"),
        (["Bearer "], "malformed"),
        ([f"Bearer {token()}", f"Bearer {token('b')}"], "malformed"),
        (["Bearer a." + "b" * tokens.MAX_TOKEN_BYTES + ".c"], "malformed"),
    ],
)
def test_what_is_no_token_is_refused_without_asking(shown: list[str], reason: str) -> None:
    stage = Stage(status())
    assert stage.refused(*shown) == reason
    assert not stage.server.asked


def test_no_token_is_refused() -> None:
    with pytest.raises(Unauthenticated, match="no bearer token"):
        asyncio.run(Stage(status()).tokens.authenticate(Call()))


def test_a_good_answer_is_kept_for_a_minute_and_not_longer() -> None:
    async def test() -> None:
        stage = Stage(status())
        await stage.call()
        stage.clock.now = 59
        await stage.call()
        assert len(stage.server.asked) == 1
        stage.server.answer = status(authenticated=False)
        stage.clock.now = 60
        with pytest.raises(Unauthenticated):
            await stage.call()
        assert len(stage.server.asked) == 2

    asyncio.run(test())


def test_a_good_answer_does_not_outlive_its_token() -> None:
    async def test() -> None:
        stage = Stage(status())
        shown = f"Bearer {token(expires_in=10)}"
        await stage.call(shown)
        stage.clock.now = 9
        await stage.call(shown)
        stage.clock.now = 10
        await stage.call(shown)
        assert len(stage.server.asked) == 2

    asyncio.run(test())


def test_a_bad_answer_is_kept_for_a_few_seconds() -> None:
    async def test() -> None:
        stage = Stage(status(authenticated=False))
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await stage.call()
        assert len(stage.server.asked) == 1
        stage.server.answer = status()
        stage.clock.now = tokens.BAD_FOR_S
        await stage.call()

    asyncio.run(test())


def test_without_an_api_server_nothing_is_decided_and_nothing_is_kept() -> None:
    async def test() -> None:
        stage = Stage(ReviewUnavailable("connection refused"))
        with pytest.raises(Undecided, match="connection refused"):
            await stage.call()
        stage.server.answer = status()
        assert (await stage.call()).node == "node-a"
        stage.server.answer = ReviewUnavailable("connection refused")
        assert (await stage.call()).node == "node-a"  # within its minute

    asyncio.run(test())


def test_a_token_found_good_stands_for_an_hour_while_nobody_can_say() -> None:
    async def test() -> None:
        stage = Stage(status())
        shown = f"Bearer {token(expires_in=2 * tokens.STANDS_FOR_S)}"
        await stage.call(shown)
        stage.server.answer = ReviewUnavailable("connection refused")
        stage.clock.now = tokens.STANDS_FOR_S - 1
        assert (await stage.call(shown)).node == "node-a"
        assert len(stage.server.asked) == 2, "it is asked again each time"
        with pytest.raises(Undecided):
            await stage.call(f"Bearer {token('never seen')}")
        stage.clock.now = tokens.STANDS_FOR_S
        with pytest.raises(Undecided):
            await stage.call(shown)

    asyncio.run(test())


@pytest.mark.parametrize("ending", ["the token expires", "the API server takes it back"])
def test_what_no_longer_holds_does_not_stand_either(ending: str) -> None:
    async def test() -> None:
        stage = Stage(status())
        shown = f"Bearer {token(expires_in=100)}"
        await stage.call(shown)
        stage.clock.now = 70
        if ending == "the token expires":
            stage.clock.now = 100
        else:
            stage.server.answer = status(authenticated=False)
            with pytest.raises(Unauthenticated):
                await stage.call(shown)
            stage.clock.now += tokens.BAD_FOR_S
        stage.server.answer = ReviewUnavailable("connection refused")
        with pytest.raises(Undecided):
            await stage.call(shown)

    asyncio.run(test())


def test_a_flood_of_bad_tokens_pushes_no_good_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_KEPT", 8)

    async def test() -> None:
        stage = Stage(status())
        await stage.call()
        stage.server.answer = status(authenticated=False)
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await stage.call(f"Bearer {token(str(number))}")
        assert (await stage.call()).node == "node-a"

    asyncio.run(test())


def test_many_calls_with_one_token_are_one_review_and_many_tokens_wait_in_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens, "MAX_WAITING", 2)

    async def test() -> None:
        stage = Stage(status())
        stage.server.held = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            same = [group.create_task(stage.call()) for _ in range(5)]
            group.create_task(stage.call(f"Bearer {token('b')}"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(Undecided, match="2 tokens are being reviewed"):
                await stage.call(f"Bearer {token('c')}")
            stage.server.held.set()
        assert [task.result().node for task in same] == ["node-a"] * 5
        assert len(stage.server.asked) == 2
        await stage.call(f"Bearer {token('c')}")

    asyncio.run(test())
