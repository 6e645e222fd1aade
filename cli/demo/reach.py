"""Claims: programs reach each other by every kind of address, in every manner of connection."""

from collections.abc import Iterator

from cli.demo.report import Claim
from cli.demo.stage import Stage

GIB = 1 << 30


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 1 of the demo."""
    yield from _http(stage)
    yield from _redis(stage)
    yield _greeting(stage)
    yield _short(stage)
    yield _half_close(stage)


def bulk(stage: Stage) -> Iterator[Claim]:
    """The transfer that is too large for a packet capture."""
    seen = stage.dial(stage.client, "push", "app", "9000", str(GIB), timeout_s=60)
    same = seen.get("sent") == seen.get("received")
    evidence = f"{seen.get('received')} in {seen.get('seconds')} s" if same else str(seen)
    yield Claim("1 GiB arrives with the checksum it was sent with, and is answered after half-close", same, evidence)


def _http(stage: Stage) -> Iterator[Claim]:
    vip4, vip6 = stage.vips("web")
    ip4, ip6 = stage.pod("shop/web")["ips"]
    for what, url, family in (
        ("service name, IPv4", "http://web/", "-4"),
        ("service name, IPv6", "http://web/", "-6"),
        ("service VIP, IPv4", f"http://{vip4}/", "-4"),
        ("service VIP, IPv6", f"http://[{vip6}]/", "-6"),
        ("pod IP, IPv4", f"http://{ip4}:8080/", "-4"),
        ("pod IP, IPv6", f"http://[{ip6}]:8080/", "-6"),
    ):
        form = "%{http_code} from %{remote_ip}:%{remote_port}"
        done = stage.run(stage.client, "curl", "-gsS", "-m", "10", family, "-o", "/dev/null", "-w", form, url)
        yield Claim(
            f"HTTP to nginx on the other node by {what}", done.out.startswith("200 "), f"curl {url}: {done.words}"
        )
    done = stage.run(stage.client, "curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "http://files/")
    yield Claim("HTTP to python3 -m http.server", done.out == "200", f"curl http://files/: {done.words}")


def _redis(stage: Stage) -> Iterator[Claim]:
    vip4, vip6 = stage.vips("redis")
    for host in ("redis", vip4, vip6):
        done = stage.run(stage.client, "redis-cli", "-h", host, "set", "key", host)
        yield Claim(f"Redis by {host}", done.out.strip() == "OK", f"redis-cli set: {done.words}")
    for what, keepalive in (("long-lived connections", "1"), ("a connection per request", "0")):
        arguments = ("-h", "redis", "-t", "ping_mbulk", "-n", "1000", "-c", "10", "-k", keepalive, "-q")
        done = stage.run(stage.client, "redis-benchmark", *arguments)
        last = done.out.replace("\r", "\n").strip().splitlines()[-1:]
        good = done.status == 0 and bool(last) and "requests per second" in last[0]
        yield Claim(f"redis-benchmark, 1000 requests over {what}", good, last[0] if good else done.words)


def _greeting(stage: Stage) -> Claim:
    seen = stage.dial(stage.client, "greet", "app", "9025")
    good = seen.get("greeting") == "220 greeter ready"
    return Claim("a server that speaks first is heard before anything is sent", good, str(seen))


def _short(stage: Stage) -> Claim:
    seen = stage.dial(stage.client, "many", "app", "9000", "100")
    return Claim("100 short connections, one after the other, none fails", seen.get("errors") == {}, str(seen))


def _half_close(stage: Stage) -> Claim:
    seen = stage.dial(stage.client, "push", "app", "9000", str(1 << 20))
    good = seen.get("sent") == seen.get("received")
    return Claim(
        "half-close: the server answers after it has seen the end", good, f"1 MiB, answer {seen.get('received')}"
    )
