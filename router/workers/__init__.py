"""Several processes that serve the listening addresses together (``general_settings.workers``), supervised by their parent.

    sockets      the listening sockets: one a worker and address, opened by the parent and kept by it
    parent       forks the workers, replaces those that die, ends them; answers what they ask; no event loop, no thread
    slots        a worker as the parent knows it, its place, and when the next one takes that
    gathering    the parent asks all workers what only all of them know, or has all of them do something
    reloads      the parent has all workers take a new configuration, or none
    messages     what a worker says, read with suspicion                                                                 (pure)
    worker       one process that serves: as a single one does, with the parent's sockets and at the end of a channel
    generations  a worker's side of a reload
    channel      messages between the two over a socket pair
    exchange     ``router.fleet.exchange.Exchange`` through the parent, which keeps the board: no server is needed
    merge        what all of them say, as one: metrics

Connections are spread by the kernel (SO_REUSEPORT). The parent holds a duplicate of every listening socket, so that those of a
worker that died stay open with what waits in them, and its replacement takes both over.
"""
