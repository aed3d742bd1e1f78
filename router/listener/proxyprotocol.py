"""The PROXY protocol, versions 1 and 2, from the receiver's side. No I/O.

A proxy that passes TCP on writes one header before the first byte of its client; it names the client. The header is read whether
or not it comes at once, and refused at the first byte that cannot belong to one, so that nobody sends on in vain.

Whose header is believed is the caller's business: anybody can write one.

Source: HAProxy, doc/proxy-protocol.txt, §§2.1 and 2.2.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

#: Version 1 with its CR LF is no longer.
MOST_V1_BYTES: Final = 107
#: Of version 2, all together. The length field allows 64 KiB, and TLVs with a client's certificate take a few.
MOST_V2_BYTES: Final = 16 * 1024

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD_BYTES: Final = 16
_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = 0, 1, 2, 3
_STREAM, _DGRAM = 1, 2
# Both addresses and both ports of a family.
_ADDRESS_BYTES: Final = {_INET: 12, _INET6: 36, _UNIX: 216}
# Decimal, without zeros in front.
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)


class BadHeader(ValueError):
    """The bytes are no PROXY header. The text holds none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A complete header.

    Attributes:
        size: bytes; the client's own begin behind them.
        source: the client's address, ``None``: the header names none (a proxy's own check, or a client without an IP address).
        port: the client's; 0 without a source.
        version: 1 or 2.
    """

    size: int
    source: str | None
    port: int
    version: int


def parse(data: bytes | bytearray) -> Header | None:
    """Read the header at the beginning of what has come so far.

    Args:
        data: from the connection's first byte on.

    Returns:
        ``None``: it is not complete yet. It never waits for more than ``MOST_V2_BYTES``.

    Raises:
        BadHeader: whatever may follow, it will be none.
    """
    if data[: len(_V1)] == _V1[: len(data)]:
        return _version_1(data)
    if data[: len(_V2)] == _V2[: len(data)]:
        return _version_2(data)
    raise BadHeader("found no PROXY header, expected one of version 1 or 2")


# --- version 1 -----------------------------------------------------------------------------------


def _version_1(data: bytes | bytearray) -> Header | None:
    end = data.find(b"\r\n", 0, MOST_V1_BYTES)
    if end < 0:
        if len(data) >= MOST_V1_BYTES:
            raise BadHeader(f"version 1: found no end of line, expected one within {MOST_V1_BYTES} bytes")
        return None
    size = end + 2
    # Bytes that are no ASCII fit nowhere, except where whatever stands is to be ignored.
    fields = data[:end].decode("ascii", "replace").split(" ")
    if fields[1] == "UNKNOWN":
        return Header(size=size, source=None, port=0, version=1)
    if fields[1] not in ("TCP4", "TCP6"):
        raise BadHeader("version 1: found another protocol, expected TCP4, TCP6 or UNKNOWN")
    if len(fields) != 6:
        raise BadHeader(f"version 1: found {len(fields)} fields, expected 6 with one space in between")
    kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]
    kind = ipaddress.IPv4Address if fields[1] == "TCP4" else ipaddress.IPv6Address
    source, _ = (_address(kind, field) for field in fields[2:4])
    port, _ = (_port(field) for field in fields[4:6])
    return Header(size=size, source=source, port=port, version=1)


def _address(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], text: str) -> str:
    try:
        # A zone means something on the proxy's host alone.
        if "%" in text:
            raise ValueError
        return str(kind(text))
    except ValueError:
        raise BadHeader("version 1: found an address that is none of its protocol") from None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
        raise BadHeader("version 1: found a port that is none, expected 0 to 65535")
    return int(text)


# --- version 2 -----------------------------------------------------------------------------------


def _version_2(data: bytes | bytearray) -> Header | None:
    # What is wrong is told by the byte that makes it so.
    if len(data) > 12:
        version, command = data[12] >> 4, data[12] & 0xF
        if version != 2:
            raise BadHeader(f"found version {version}, expected 1 or 2")
        if command not in (_LOCAL, _PROXY):
            raise BadHeader(f"version 2: found command {command}, expected LOCAL or PROXY")
    if len(data) < _V2_HEAD_BYTES:
        return None
    command, family, transport = data[12] & 0xF, data[13] >> 4, data[13] & 0xF
    length = int.from_bytes(data[14:16], "big")
    size = _V2_HEAD_BYTES + length
    if size > MOST_V2_BYTES:
        raise BadHeader(f"version 2: found a header of {size} bytes, expected at most {MOST_V2_BYTES}")
    # The family of a LOCAL one is to be ignored.
    if command == _PROXY:
        if family > _UNIX or transport > _DGRAM:
            raise BadHeader("version 2: found an unknown address family or protocol")
        if length < _ADDRESS_BYTES.get(family, 0):
            raise BadHeader(f"version 2: found {length} bytes of addresses, expected {_ADDRESS_BYTES[family]}")
    if len(data) < size:
        return None
    # Of a protocol that is not told the addresses are to be ignored; those of Unix sockets are no addresses.
    if command == _LOCAL or family not in (_INET, _INET6) or transport == _UNSPEC:
        return Header(size=size, source=None, port=0, version=2)
    width = 4 if family == _INET else 16
    source = ipaddress.ip_address(bytes(data[16 : 16 + width]))
    port = int.from_bytes(data[16 + 2 * width : 18 + 2 * width], "big")
    return Header(size=size, source=str(source), port=port, version=2)
