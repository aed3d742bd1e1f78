"""Several processes that serve the listening addresses together (``general_settings.workers``), supervised by their parent.

    sockets    the listening sockets: one a worker and address, opened by the parent and kept by it
    parent     forks the workers, replaces those that die, ends them; answers what they ask; no event loop, no thread
    worker     one process that serves: as a single one does, with the parent's sockets and at the end of a channel
    channel    messages between the two over a socket pair
    exchange   ``router.fleet.exchange.Exchange`` through the parent, which keeps the board: no server is needed
    merge      what all of them say, as one: metrics and the view of operators                                  (pure)

Connections are spread by the kernel (SO_REUSEPORT). The parent holds a duplicate of every listening socket, so that those of a
worker that died stay open with what waits in them, and its replacement takes both over.
"""
