"""RFC 6455 through the router, from outside: the Autobahn suite's cases, and thousands of random sequences.

``make test-conformance`` runs all of it; a part that takes seconds runs with every ``make test``.
"""
