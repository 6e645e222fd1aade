"""The bytes of a policy, spelled out once; that the engine reads them the same way is test_compile's part."""

from tests.unit.ztunnel.mesh_builder import border, ip
from ztunnel.model import AccountMatch, How, Match, Policy, Prefix, StringMatch
from ztunnel.program import encode


def policy(*rules: tuple[tuple[Match, ...], ...]) -> Policy:
    return Policy("p", "shop", rules=rules)


def takes(program: bytes) -> bool:
    ffi, lib = border().ffi, border().lib
    tables = ffi.gc(lib.cv_tables_create(), lib.cv_tables_destroy)
    raw, name = ffi.from_buffer("uint8_t[]", program), ffi.new("char[]", b"shop/p")
    return bool(
        lib.cv_tables_put_policy(tables, ffi.new("struct cv_policy *", (1, name, 0, 0, raw, len(program)))) == 0
    )


def size(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


FULL = Match(
    principals=(StringMatch(How.PREFIX, "td"), StringMatch(How.PRESENCE)),
    not_source_ips=(Prefix(ip("10.0.0.0"), 104),),
    destination_ports=(80, 443),
    service_accounts=(AccountMatch("a", "b"),),
)


def test_no_rules_are_no_bytes() -> None:
    assert encode(policy()) == b""
    assert takes(b"")


def test_empty_levels_are_empty_nodes() -> None:
    assert encode(policy(())) == size(b"")
    assert encode(policy(((),))) == size(size(b""))
    assert encode(policy(((Match(),),))) == size(size(size(b"")))


def test_fields_in_the_order_of_their_kinds() -> None:
    fields = [
        b"\x03" + b"\x01\x00\x02td" + b"\x03\x00\x00",
        b"\x06" + ip("10.0.0.0") + b"\x68",
        b"\x09" + b"\x00\x50" + b"\x01\xbb",
        b"\x0b" + b"\x00\x01a\x00\x01b",
    ]
    program = encode(policy(((FULL,),)))
    assert program == size(size(size(b"".join(map(size, fields)))))
    assert takes(program)


def test_no_prefix_of_a_program_is_taken_for_it() -> None:
    program = encode(policy(((FULL,),)))
    assert not any(takes(program[:length]) for length in range(1, len(program)))


def test_trailing_and_misordered_bytes_are_refused() -> None:
    program = encode(policy(((FULL,),)))
    assert not takes(program + b"\0")
    port = size(b"\x09\x00\x50")
    assert takes(size(size(size(port))))
    assert not takes(size(size(size(port + port))))
    assert not takes(size(size(size(size(b"\x0a\x00\x50") + port))))
    for field in (
        b"",
        b"\x00\x00",
        b"\x0d\x00\x50",
        b"\x09",
        b"\x09\x00",
        b"\x05" + bytes(16) + b"\x81",
        b"\x01\x04\x00\x00",
    ):
        assert not takes(size(size(size(size(field)))))
