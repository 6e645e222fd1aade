"""Claims: what applications are told about addresses is what they would see without the mesh."""

from collections.abc import Iterator

from cli.demo.report import Claim
from cli.demo.stage import Stage


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 5 of the demo."""
    ips = stage.pod(stage.client)["ips"]
    for family, vip, own in zip(("IPv4", "IPv6"), stage.vips("app"), ips, strict=True):
        seen = stage.dial(stage.client, "who", vip, "9000")
        if "error" in seen:
            yield Claim(f"the application answers over {family}", False, str(seen))
            continue
        mine = seen["sockname"]
        accepted = [_plain(seen["server"][name]) for name in ("accepted", "peername")]
        yield Claim(
            f"{family}: the server's accept and getpeername show the true client address",
            accepted == [mine, mine] and mine[0] == own,
            f"client {mine}, server saw {accepted[0]}",
        )
        yield Claim(
            f"{family}: the client's getpeername shows the address that it dialled",
            seen["peername"] == [vip, 9000],
            f"dialled {vip}:9000, getpeername {seen['peername']}",
        )
        yield Claim(
            f"{family}: the client's getsockname shows the pod's own", mine[0] == own, f"pod {own}, getsockname {mine}"
        )


def _plain(address: list[str | int]) -> list[str | int]:
    return [str(address[0]).removeprefix("::ffff:"), address[1]]
