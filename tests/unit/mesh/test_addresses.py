from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.addresses import IPAddress, from_bytes16, from_packed, to_bytes16, with_port

unmapped = st.ip_addresses(v=4) | st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None)


@given(unmapped)
def test_sixteen_bytes_keep_the_address(address: IPAddress) -> None:
    assert from_bytes16(to_bytes16(address)) == address
    assert from_packed(address.packed) == address


def test_v4_stands_mapped() -> None:
    assert to_bytes16("10.1.2.3") == bytes.fromhex("00000000000000000000ffff0a010203")
    assert from_bytes16(IPv6Address("::ffff:10.1.2.3").packed) == IPv4Address("10.1.2.3")


@pytest.mark.parametrize("raw", [b"", b"123", bytes(5), bytes(15), bytes(17)])
def test_other_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        from_packed(raw)


def test_v6_is_bracketed_beside_a_port() -> None:
    assert with_port(IPv6Address("fd00::1"), 80) == "[fd00::1]:80"
    assert with_port(IPv4Address("10.0.0.1"), 80) == "10.0.0.1:80"
