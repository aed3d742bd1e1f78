"""Routes under a prefix."""

from __future__ import annotations

from aiohttp import web

from router.listener.paths import _with_slash, under


async def handler(request: web.Request) -> web.StreamResponse:
    """Never called."""
    raise AssertionError


def test_every_route_is_under_the_prefix_and_as_it_was() -> None:
    """Method, handler and options stay; a name is of one path only, so the plain one keeps it."""
    routes = [web.get("/", handler), web.post("/admin/reload", handler, name="reload")]
    found = [(route.method, route.path, route.handler, route.kwargs.get("name")) for route in under("/a/b", routes)]
    assert found == [
        ("GET", "/a/b/", handler, None),
        ("POST", "/a/b/admin/reload", handler, None),
        ("GET", "/a/b", _with_slash, None),
        ("GET", "/", handler, None),
        ("POST", "/admin/reload", handler, "reload"),
    ]
    # The application takes them all: no two of them have one name.
    web.Application().add_routes(under("/a/b", routes))


def test_without_a_prefix_nothing_changes() -> None:
    """The routes themselves come back."""
    routes = [web.get("/metrics", handler)]
    assert under("", routes) == routes
