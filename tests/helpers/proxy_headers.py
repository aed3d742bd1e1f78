"""PROXY headers as proxies write them, encoded without the router's own code."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

SIGNATURE: Final = bytes.fromhex("0d0a0d0a000d0a515549540a")


def version_1(source: str, port: int) -> bytes:
    """A line for a client; the other end is any."""
    four = ipaddress.ip_address(source).version == 4
    return f"PROXY {'TCP4' if four else 'TCP6'} {source} {'192.0.2.99' if four else '2001:db8::99'} {port} 443\r\n".encode()


def version_2(
    source: str | None,
    port: int,
    *,
    command: int = 1,
    family: int | None = None,
    transport: int = 1,
    block: bytes | None = None,
    tlvs: bytes = b"",
) -> bytes:
    """A binary header.

    Args:
        source: the client's address; ``None``: none is told.
        port: the client's.
        command: 0 is LOCAL, 1 PROXY.
        family: follows from the source unless given.
        transport: 1 is a stream.
        block: the addresses, where they are to be others.
        tlvs: what follows them.
    """
    address = None if source is None else ipaddress.ip_address(source)
    if family is None:
        family = 0 if address is None else 1 if address.version == 4 else 2
    if address is None:
        transport = 0 if family == 0 and transport == 1 else transport
    if block is None:
        block = b"" if address is None else address.packed * 2 + struct.pack(">HH", port, 443)
    block += tlvs
    return SIGNATURE + bytes([0x20 | command, family << 4 | transport]) + struct.pack(">H", len(block)) + block
