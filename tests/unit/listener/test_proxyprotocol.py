"""PROXY headers, as the specification's two sections have them."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from router.listener.proxyprotocol import MOST_V1_BYTES, MOST_V2_BYTES, BadHeader, Header, parse
from tests.helpers.proxy_headers import SIGNATURE, version_1, version_2


@pytest.mark.parametrize(
    ("line", "source", "port"),
    [
        ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", "192.168.0.1", 56324),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", "255.255.255.255", 65535),
        ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0", "0.0.0.0", 0),
        ("PROXY TCP6 2001:DB8::1 ::1 1 2", "2001:db8::1", 1),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2", "::ffff:192.0.2.1", 1),
        (f"PROXY TCP6 {':'.join(['ffff'] * 8)} {':'.join(['ffff'] * 8)} 65535 65535", ":".join(["ffff"] * 8), 65535),
        ("PROXY UNKNOWN", None, 0),
        ("PROXY UNKNOWN ffff:f ÿ whatever", None, 0),
    ],
)
def test_version_1(line: str, source: str | None, port: int) -> None:
    """A line names the client, or says that nobody knows it; addresses come in their usual form."""
    expected = Header(size=len(line.encode()) + 2, source=source and str(ipaddress.ip_address(source)), port=port, version=1)
    assert parse(line.encode() + b"\r\nGET / HTTP/1.1\r\n") == expected


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY \r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4\t1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY TCP6 1::2::3 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 nobody 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \xb2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\nGET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rGET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
        b"PROXY UNKNOWN " + b"x" * MOST_V1_BYTES + b"\r\n",
        b"proxy UNKNOWN\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\x00",
    ],
)
def test_version_1_refuses(line: bytes) -> None:
    """What is not exactly the specification's line is none, and the error quotes nothing of it."""
    with pytest.raises(BadHeader) as caught:
        parse(line)
    assert "1.2.3" not in str(caught.value)


def test_a_line_is_waited_for_no_longer_than_it_may_be() -> None:
    """107 bytes hold every line, so the 107th without an end is too much."""
    longest = b"PROXY UNKNOWN " + b"x" * (MOST_V1_BYTES - 16) + b"\r\n"
    assert len(longest) == MOST_V1_BYTES
    header = parse(longest)
    assert header is not None and header.size == MOST_V1_BYTES
    assert parse(b"PROXY UNKNOWN ".ljust(MOST_V1_BYTES - 1, b"x")) is None
    with pytest.raises(BadHeader):
        parse(b"PROXY UNKNOWN ".ljust(MOST_V1_BYTES, b"x"))


@pytest.mark.parametrize(
    ("data", "source", "port"),
    [
        (version_2("192.0.2.1", 56324), "192.0.2.1", 56324),
        (version_2("2001:db8::1", 1), "2001:db8::1", 1),
        (version_2("192.0.2.1", 5, transport=2), "192.0.2.1", 5),
        (version_2("192.0.2.1", 5, tlvs=b"\x04\x00\x03abc"), "192.0.2.1", 5),
        (version_2("192.0.2.1", 5, tlvs=b"no TLV at all"), "192.0.2.1", 5),
        (version_2("192.0.2.1", 5, transport=0), None, 0),
        (version_2("192.0.2.1", 5, command=0), None, 0),
        (version_2(None, 0, command=0), None, 0),
        (version_2(None, 0), None, 0),
        (version_2(None, 0, family=3, block=b"/run/x.sock".ljust(216, b"\0")), None, 0),
        (version_2(None, 0, command=0, family=9, transport=9), None, 0),
    ],
)
def test_version_2(data: bytes, source: str | None, port: int) -> None:
    """A header names the client, or is the proxy's own; whatever follows its addresses is passed over."""
    assert parse(data + b"GET") == Header(size=len(data), source=source, port=port, version=2)
    assert parse(data[:-1]) is None


@pytest.mark.parametrize(
    "data",
    [
        SIGNATURE + b"\x11",
        SIGNATURE + b"\x31",
        SIGNATURE + b"\x22",
        SIGNATURE + b"\x2f\x11\x00\x0c" + bytes(12),
        version_2(None, 0, family=4, block=bytes(64)),
        version_2(None, 0, transport=3),
        version_2(None, 0, family=1, block=bytes(11)),
        version_2(None, 0, family=2, block=bytes(35)),
        version_2(None, 0, family=3, block=bytes(215)),
        SIGNATURE + b"\x21\x11" + struct.pack(">H", MOST_V2_BYTES - 15),
        SIGNATURE + b"\x20\x00\xff\xff",
        SIGNATURE[:-1] + b"\r",
        SIGNATURE[1:],
    ],
)
def test_version_2_refuses(data: bytes) -> None:
    """Another version, an unknown command or family, addresses that are cut and a length beyond the bound are refused at once."""
    with pytest.raises(BadHeader):
        parse(data)


def test_the_longest_header_is_taken() -> None:
    """A header of just the bound is read to its end."""
    data = version_2("192.0.2.1", 5, tlvs=bytes(MOST_V2_BYTES - 28))
    assert len(data) == MOST_V2_BYTES
    header = parse(data)
    assert header is not None and header.size == MOST_V2_BYTES


def test_nothing_is_said_of_nothing() -> None:
    """Before the first byte either version may come."""
    assert parse(b"") is None
    assert parse(version_1("192.0.2.1", 5)[:6]) is None


def test_what_cannot_become_a_header_is_refused_by_its_first_byte() -> None:
    """Nobody waits for the rest of what is none."""
    waited = []
    for byte in range(256):
        try:
            assert parse(bytes([byte])) is None
            waited.append(byte)
        except BadHeader:
            continue
    assert bytes(waited) == b"\rP"
