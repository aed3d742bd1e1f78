"""PROXY headers: whatever comes, in whatever pieces, is a header, a part of one, or refused, within bounds."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from router.listener.proxyprotocol import MOST_V1_BYTES, MOST_V2_BYTES, BadHeader, Header, parse
from tests.helpers.proxy_headers import SIGNATURE, version_1, version_2

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
PORTS = st.integers(0, 0xFFFF)
TLVS = st.binary(max_size=300)
HEADERS = st.one_of(
    st.builds(version_1, ADDRESSES, PORTS),
    st.builds(lambda source, port, tlvs: version_2(source, port, tlvs=tlvs), ADDRESSES, PORTS, TLVS),
    st.builds(lambda source, port, tlvs: version_2(source, port, command=0, tlvs=tlvs), ADDRESSES, PORTS, TLVS),
)
# Bytes that get past the first look.
NEARLY = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=200).map(lambda rest: b"PROXY " + rest),
    st.text("TCPUNKOW46 .:0123456789abcdf\r\n", max_size=120).map(lambda rest: b"PROXY " + rest.encode()),
    st.binary(max_size=400).map(lambda rest: SIGNATURE + rest),
    st.builds(
        lambda header, at, byte: header[: at % len(header)] + bytes([byte]) + header[at % len(header) + 1 :],
        HEADERS,
        st.integers(0, 1000),
        st.integers(0, 255),
    ),
)


@given(source=ADDRESSES, port=PORTS, tlvs=TLVS, rest=st.binary(max_size=40))
def test_what_a_proxy_writes_is_read(source: str, port: int, tlvs: bytes, rest: bytes) -> None:
    """Either version gives back the client that it was made for, and where the client's own bytes begin."""
    known = str(ipaddress.ip_address(source))
    line = version_1(source, port)
    assert parse(line + rest) == Header(size=len(line), source=known, port=port, version=1)
    binary = version_2(source, port, tlvs=tlvs)
    assert parse(binary + rest) == Header(size=len(binary), source=known, port=port, version=2)


@given(header=HEADERS, rest=st.binary(max_size=40))
def test_byte_by_byte_is_no_different(header: bytes, rest: bytes) -> None:
    """Every beginning of a header is one to be continued, and more than the header changes nothing of it."""
    for size in range(len(header)):
        assert parse(bytearray(header[:size])) is None
    whole = parse(header)
    assert whole is not None and whole.size == len(header)
    assert parse(header + rest) == whole


@given(data=NEARLY)
def test_anything_else_is_refused_or_waited_for_within_bounds(data: bytes) -> None:
    """Nothing but ``BadHeader`` comes out; a refusal is final, and a wait ends before the bound."""
    refused = False
    for size in range(len(data) + 1):
        try:
            header = parse(data[:size])
        except BadHeader:
            refused = True
            continue
        assert not refused, "more bytes made good what was refused"
        if header is not None:
            assert header.size <= size
            assert header.source is None or str(ipaddress.ip_address(header.source)) == header.source
            return
        assert size < (MOST_V2_BYTES if data[:1] == b"\r" else MOST_V1_BYTES)
