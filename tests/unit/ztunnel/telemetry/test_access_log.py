import io
import json
from dataclasses import replace

from mesh.identity import Identity
from mesh.reasons import Reason
from tests.support.mesh import address, event, workload
from ztunnel.events import Path
from ztunnel.model import Service
from ztunnel.telemetry.access_log import AccessLog, fields
from ztunnel.telemetry.labels import Edge

CLIENT, WEB = workload("client"), workload("web-1", service_account="web")
EDGE = Edge(
    inbound=True,
    source=CLIENT,
    destination=WEB,
    service=Service("web.shop.svc.cluster.local", "shop"),
    source_principal=str(CLIENT.identity),
    destination_principal=str(WEB.identity),
    mutual_tls=True,
)


def line(as_json: bool, **changes: object) -> str:
    out = io.StringIO()
    AccessLog(out, as_json, {7: "shop/only-web"}.get).write([(event(**changes), EDGE)])
    return out.getvalue()


def test_a_complete_connection_reads_as_istio_users_expect() -> None:
    text = line(False)
    time, level, scope, message, pairs = text.rstrip("\n").split("\t")
    assert (level, scope, message) == ("info", "access", "connection complete")
    assert time == "2026-01-01T00:00:00.250000Z"
    keys = [pair.partition("=")[0] for pair in pairs.split(" ")]
    assert keys == [
        "src.addr",
        "src.workload",
        "src.namespace",
        "src.identity",
        "dst.addr",
        "dst.hbone_addr",
        "dst.service",
        "dst.workload",
        "dst.namespace",
        "dst.identity",
        "direction",
        "bytes_sent",
        "bytes_recv",
        "duration",
        "reason",
    ]
    assert 'src.identity="' not in pairs
    assert f"src.identity={Identity('cluster.local', 'shop', 'client')}" in pairs
    assert "bytes_sent=5 bytes_recv=7 duration=12ms reason=ok" in pairs


def test_addresses_of_a_tunnel_and_of_what_was_dialled() -> None:
    outbound = replace(EDGE, inbound=False)
    facts = event(original=address("10.96.0.1", 80), hbone=address("10.1.1.1", 15008))
    shown = fields(facts, outbound, {}.get)
    assert shown["dst.addr"] == "10.1.1.1:15008"
    assert shown["dst.hbone_addr"] == "10.1.1.1:8080"
    assert shown["dst.original_addr"] == "10.96.0.1:80"
    assert fields(event(), EDGE, {}.get)["dst.addr"] == "10.1.1.1:15008"
    plain = fields(event(path=Path.PLAIN, hbone=None, original=address("10.1.1.1", 8080)), outbound, {}.get)
    assert plain["dst.addr"] == "10.1.1.1:8080"
    assert "dst.hbone_addr" not in plain
    assert "dst.original_addr" not in plain


def test_a_denied_connection_names_its_policy() -> None:
    found = json.loads(line(True, reason=Reason.POLICY_DENIED, policy=7, opened=False, status=401))
    assert found["message"] == "connection failed"
    assert found["level"] == "error"
    assert found["policy"] == "shop/only-web"
    assert found["error"] == "policy denied: policy shop/only-web: http status 401"


def test_a_detail_cannot_forge_another_field_or_line() -> None:
    text = line(False, reason=Reason.TLS_FAILED, detail='bad\nlevel=info policy="x"')
    assert text.count("\n") == 1
    assert r"bad\nlevel=info policy=\"x\"" in text


def test_no_name_writes_to_the_terminal_of_who_reads_the_log() -> None:
    out = io.StringIO()
    odd = replace(EDGE, source=replace(CLIENT, name='a\x1b[2J\r\nb"'), service=Service("h\x9b1mé", "shop"))
    AccessLog(out, False, {}.get).write([(event(), odd)])
    text = out.getvalue()
    assert text.count("\n") == 1
    assert all(char.isascii() and (char.isprintable() or char in "\t\n") for char in text)
    assert 'src.workload="a\\u001b[2J\\r\\nb\\""' in text
