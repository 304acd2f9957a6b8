"""Who may use which page and button: one table, one middleware."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.access.identity import Role, current
from broker.access.origin import SAFE_METHODS
from broker.api.services import services
from broker.errors import Forbidden

ROLES = web.AppKey("roles", dict[tuple[str, str], Role])
"""Method and path of each page and action → the least role."""
_ORDER = list(Role)
OWN = frozenset({"/ui/theme"})
"""What changes nothing but the browser's own view."""


def includes(role: Role, needed: Role) -> bool:
    """Whether ``role`` may do what ``needed`` may."""
    return _ORDER.index(role) >= _ORDER.index(needed)


@web.middleware
async def check_role(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse pages and actions to whom they are not for; in read-only mode, every action to everybody."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource else ""
    needed = request.config_dict[ROLES].get((request.method.replace("HEAD", "GET"), path))
    if needed is None:
        return await handler(request)
    if not includes(current(request).role, needed):
        raise Forbidden(f"This is for the role {needed.value}.", role=needed.value)
    if request.method not in SAFE_METHODS and path not in OWN and services(request).settings.dashboard_read_only:
        raise Forbidden("The dashboard is in read-only mode.", reason="read_only")
    return await handler(request)
