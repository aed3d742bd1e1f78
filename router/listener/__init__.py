"""What stands between an accepted connection and its first request.

    proxyprotocol   the header by which a proxy tells whom it speaks for; pure
    certificate     the certificate of ``listen``, read again when its files change
    door            a connection on its way in: PROXY header, TLS handshake, their limits
    paths           routes under a prefix

A connection to a plain ``listen`` goes past all of this: it is aiohttp's from the first byte.
"""
