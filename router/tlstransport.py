"""TLS over a transport of the event loop, for dials of the router's own processes and for clients of a ``listen`` with TLS.

uvloop's TLS keeps a read buffer and an encrypted copy of the largest read for as long as a connection lives: 107 KiB for one
that once read 26 KiB, asyncio's 318 KiB. Calls last for an hour and mostly wait, so here nothing is kept: what the loop reads
into its one buffer is decrypted at once, in pieces that keep OpenSSL's small, and handed on in one go. It is also a shorter way
from the socket to the relay, for it does less: decrypting and encrypting without a queue between.

Handshake, certificates and records are OpenSSL's, through ``ssl.SSLObject``. Certificate and host name are checked by the
context before anything is written or read. CLOSE of a WebSocket tells the end of a stream, so a connection that ends without
``close_notify`` is no different from one that ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any, Final, cast

# What is decrypted and encrypted in one go. OpenSSL's memory buffers keep a third more than they ever held.
PIECE_BYTES: Final = 8 * 1024
# A record holds no more (RFC 8446 §5.1), and a read never returns more than one.
_RECORD_BYTES: Final = 16 * 1024
# A peer may ask for new keys, be answered, and not read the answers. What waits for it then is no more than this.
ANSWERS_BYTES: Final = 1024 * 1024


class TlsTransport(asyncio.Transport):
    """The transport of ``app``, and the protocol of the transport below it.

    Args:
        loop: the event loop.
        app: the protocol; its ``connection_made`` is called once the handshake is done.
        context: how to check the server, or with which certificate to be one.
        server_hostname: whom to expect; a server expects nobody.
        announced: ``app`` is told of its transport by whoever asked for TLS (``start_tls``), not from here.
        server_side: the peer opens the handshake.

    Attributes:
        established: done with the handshake's end. Its exception: the handshake failed (``ssl.SSLError``), or the connection was
            lost (``OSError``).
    """

    __slots__ = (
        "_announced",
        "_app",
        "_closing",
        "_context",
        "_error",
        "_full",
        "_incoming",
        "_open",
        "_outgoing",
        "_paused",
        "_raw",
        "_raw_write",
        "_ssl",
        "_unwritten",
        "established",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        app: asyncio.BaseProtocol,
        context: ssl.SSLContext,
        server_hostname: str | None,
        *,
        announced: bool = False,
        server_side: bool = False,
    ) -> None:
        super().__init__()
        self.established: asyncio.Future[None] = loop.create_future()
        self._app: Any = app
        self._announced = announced
        self._context = context
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._raw: Any = None  # the transport below, once there is one
        self._raw_write: Any = None
        self._open = False  # the handshake is done, and the connection not lost
        self._closing = False
        self._error: ssl.SSLError | None = None  # why the connection is about to be cut
        self._full = False  # the buffer below is
        self._paused = False  # what ``app`` was told of its writing
        # While OpenSSL has to read before it can write: a message between records (TLS 1.3 tickets may be as long as several).
        self._unwritten: list[bytes] = []

    # --- asyncio.Protocol, of the transport below ---------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: begin the handshake."""
        self._raw = transport
        self._raw_write = self._raw.write
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """Encrypted bytes arrived."""
        if len(data) <= PIECE_BYTES:
            self._incoming.write(data)
            plain = self._decrypt() if self._open else self._shake_hands()
        else:
            view = memoryview(data)
            parts = []
            for start in range(0, len(data), PIECE_BYTES):
                self._incoming.write(view[start : start + PIECE_BYTES])
                parts.append(self._decrypt() if self._open else self._shake_hands())
            plain = b"".join(parts)
        if plain:
            self._app.data_received(plain)

    def eof_received(self) -> bool:
        """The peer ends its direction: so do we."""
        if self._open:
            self._app.eof_received()
        return False

    def pause_writing(self) -> None:
        """The buffer below is full."""
        self._full = True
        self._tell_writing()

    def resume_writing(self) -> None:
        """The buffer below has room again."""
        self._full = False
        self._tell_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._closing = True
        self._unwritten.clear()
        app, self._app = self._app, None
        if self._open:
            self._open = False
            app.connection_lost(exc or self._error)
        self._fail(exc or ConnectionResetError("connection lost during the TLS handshake"))

    # --- TLS ----------------------------------------------------------------------------------------

    def _shake_hands(self) -> bytes:
        """Go on with the handshake; return what was decrypted when it is done."""
        if self._closing:
            return b""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return b""
        except ssl.SSLError as error:  # a certificate that is not accepted is one as well
            self._flush()  # the alert that tells the peer why
            self._fail(error)
            self.abort()
            return b""
        self._flush()
        self._open = True
        if not self._announced:
            self._app.connection_made(self)
        if not self.established.done():
            self.established.set_result(None)
        return self._decrypt() if self._incoming.pending else b""

    def _fail(self, error: BaseException) -> None:
        if not self.established.done():
            # A traceback leads back here, and would keep all this for the collector.
            self.established.set_exception(error.with_traceback(None))
            # Whoever dials may have been cancelled; Python must not complain then.
            self.established.exception()

    def _decrypt(self) -> bytes:
        """Return what can be read of what has come."""
        parts = []
        read, pending, incoming = self._ssl.read, self._ssl.pending, self._incoming
        try:
            while True:
                part = read(_RECORD_BYTES)
                if not part:
                    self._end()
                    break
                parts.append(part)
                # Asked first, for the exception that says so costs more than the read.
                if not incoming.pending and not pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end()
        except ssl.SSLError as error:
            # A record that was tampered with, or an alert. What stood before it is good.
            self._break(error)
        if self._outgoing.pending:
            # An answer of OpenSSL's own: to a change of keys, or an alert.
            self._flush()
            if self._full and self._raw.get_write_buffer_size() > ANSWERS_BYTES:
                self._break(ssl.SSLError("found a peer that asks for answers and reads none"))
        if self._unwritten:
            unwritten, self._unwritten = self._unwritten, []
            for data in unwritten:
                self.write(data)
            self._tell_writing()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end(self) -> None:
        """The peer said ``close_notify``; what came before it is still to be handed on."""
        asyncio.get_running_loop().call_soon(self._ended)

    def _ended(self) -> None:
        if not self._closing:
            self._app.eof_received()
            self.close()

    def _break(self, error: ssl.SSLError) -> None:
        """TLS cannot go on; what was decrypted is still to be handed on."""
        if self._error is None:
            self._error = error.with_traceback(None)
            asyncio.get_running_loop().call_soon(self.abort)

    def _tell_writing(self) -> None:
        """Tell whether to write on, when that has changed."""
        paused = self._full or bool(self._unwritten)
        if self._open and paused is not self._paused:
            self._paused = paused
            if paused:
                self._app.pause_writing()
            else:
                self._app.resume_writing()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._raw_write(data)

    # --- asyncio.Transport, for ``app`` -------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; what is written after the end is dropped."""
        if self._closing or not self._open:
            return
        if self._unwritten:
            self._unwritten.append(bytes(data))
            return
        size = len(data)
        at = 0
        sealed = []
        try:
            if 0 < size <= PIECE_BYTES:
                self._ssl.write(data)
                self._raw_write(self._outgoing.read())
                return
            view = memoryview(data)
            while at < size:
                self._ssl.write(view[at : at + PIECE_BYTES])
                sealed.append(self._outgoing.read())
                at += PIECE_BYTES
        except ssl.SSLWantReadError:
            self._unwritten.append(bytes(data[at:]))
        except ssl.SSLError as error:
            self._break(error)
        # In one go: who is told in between that the buffer is full may write, and that belongs behind all of this.
        sealed.append(self._outgoing.read())
        self._raw_write(b"".join(sealed))
        self._tell_writing()

    def close(self) -> None:
        """Send what is buffered and ``close_notify``, then end the connection; the peer's own is not waited for."""
        if self._closing:
            return
        self._closing = True
        if self._open:
            with contextlib.suppress(ssl.SSLError, OSError, ValueError):
                self._ssl.unwrap()
            self._flush()
        if self._raw is not None:
            self._raw.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it was ended, by whomever."""
        return self._closing or cast(bool, self._raw is not None and self._raw.is_closing())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's TLS transports answer."""
        if name == "ssl_object":
            return self._ssl
        if name == "sslcontext":
            return self._context
        if name == "peercert":
            return self._ssl.getpeercert()
        if name == "cipher":
            return self._ssl.cipher()
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another one is told from now on."""
        self._app = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told."""
        return cast(asyncio.BaseProtocol, self._app)

    def is_reading(self) -> bool:
        """Whether the peer is read."""
        return cast(bool, self._raw.is_reading())

    def pause_reading(self) -> None:
        """Nothing is kept back here, so the transport below is paused."""
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of the transport below: encrypted bytes, 22 more for each record."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that wait below."""
        return cast(int, self._raw.get_write_buffer_size()) + sum(map(len, self._unwritten))

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high."""
        return cast("tuple[int, int]", self._raw.get_write_buffer_limits())

    def can_write_eof(self) -> bool:
        """TLS has no half-closed connections that asyncio would know."""
        return False
