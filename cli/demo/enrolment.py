"""Claims: a label takes pods into the mesh and out of it; nothing restarts and nothing breaks."""

from collections.abc import Iterator

from cli.demo.report import Claim
from cli.demo.stage import Held, Stage, until

CLIENT, SERVER = "late/client", "late/server"


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 6 of the demo."""
    pids = {path: stage.pod(path)["pid"] for path in (CLIENT, SERVER)}
    ip = stage.pod(SERVER)["ips"][0]
    with stage.held(CLIENT, ip, 9000) as before:
        yield Claim(
            "outside the mesh the pods talk in clear",
            not _through_tunnel(stage, ip),
            "no line in the access log of node-1",
        )
        stage.label("late", "enabled")
        captured, after = until(10, lambda: _captured(stage, True))
        yield Claim("the label has the pods captured", captured, f"after {after:.2f} s")
        tunnelled, after = until(5, lambda: _through_tunnel(stage, ip))
        yield Claim("new connections go through the tunnel", tunnelled, f"access log of node-1, after {after:.2f} s")
        yield _still(before, "the connection from before goes on")
        with stage.held(CLIENT, ip, 9000) as during:
            during.say("one")
            stage.label("late", None)
            released, after = until(15, lambda: _captured(stage, False))
            yield Claim("without the label they are let go", released, f"after {after:.2f} s")
            plain, _ = until(5, lambda: not _through_tunnel(stage, ip))
            yield Claim("new connections go in clear again", plain, "no line in the access log of node-1")
            yield _still(during, "the connection through the tunnel goes on")
        yield _still(before, "and so does the first one")
    now = {path: stage.pod(path)["pid"] for path in (CLIENT, SERVER)}
    restarts = sum(stage.pod(path)["restarts"] for path in (CLIENT, SERVER))
    yield Claim("no application was restarted", now == pids and restarts == 0, f"same processes, {restarts} restarts")


def _captured(stage: Stage, wanted: bool) -> bool:
    return all(stage.pod(path)["mesh"]["settled"] for path in (CLIENT, SERVER)) and all(
        (stage.pod(path)["mesh"]["state"] == "captured") == wanted for path in (CLIENT, SERVER)
    )


def _through_tunnel(stage: Stage, ip: str) -> bool:
    start = stage.log_end("node-1")
    seen = stage.dial(CLIENT, "who", ip, "9000")
    if "error" in seen:
        return False
    found, _ = until(0.5, lambda: "src.identity=spiffe://cluster.local/ns/late/sa/client" in stage.log("node-1", start))
    return found


def _still(held: Held, text: str) -> Claim:
    answer = held.say("still-here")
    return Claim(text, answer == "still-here", f"echo: {answer}")
