"""Routes under a prefix (``root_path``)."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web


def under(root_path: str, routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """Return the routes with a prefix, and as they are.

    Without it they are for whoever does not come through the proxy that adds it: probes, scrapers, an operator on the host; and
    for a proxy that takes the prefix off on its way.

    Args:
        root_path: with a slash before it and none behind it; empty: there is none.
        routes: whose paths begin with a slash.
    """
    plain = list(routes)
    if not root_path:
        return plain
    prefixed = [_prefixed(root_path, route) for route in plain]
    if any(route.method == "GET" and route.path == "/" for route in plain):
        # The page names its files beside itself, so that its address has to end with a slash; people type it without.
        prefixed.append(web.get(root_path, _with_slash))
    return [*prefixed, *plain]


def _prefixed(root_path: str, route: web.RouteDef) -> web.RouteDef:
    # A route's name is of one path only.
    kwargs = {key: value for key, value in route.kwargs.items() if key != "name"}
    return web.RouteDef(route.method, root_path + route.path, route.handler, kwargs)


async def _with_slash(request: web.Request) -> web.StreamResponse:
    # Relative, for a proxy in front may have put more before the path.
    last = request.rel_url.raw_path.rpartition("/")[2]
    query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
    return web.Response(status=308, headers={"Location": f"{last}/{query}"})
