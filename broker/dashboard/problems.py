"""Errors as people see them: a page for a browser, a line for a page's script."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from markupsafe import Markup

from broker.access.identity import IDENTITY
from broker.api import errors
from broker.dashboard.forms import is_htmx
from broker.dashboard.frame import render_plain
from broker.dashboard.roles import ROLES
from broker.dashboard.stream import PATH
from broker.errors import EmqError, NotFound, Unauthorized

_MACHINES = ("/api/", "/ws", "/health", "/stats", "/metrics", "/openapi.json", "/static/", PATH)


@web.middleware
async def errors_to_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as HTML where a person reads them."""
    if not _for_a_person(request):
        return await handler(request)
    try:
        return await handler(request)
    except EmqError as error:
        return _page(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _page(request, _translated(error))
    except ConnectionError:
        raise
    except Exception as error:
        return _page(request, errors.unexpected(error, f"{request.method} {request.path}"[:200]))


def _translated(error: web.HTTPException) -> EmqError:
    if error.status == 404:
        return NotFound("There is nothing at this address.")
    found = EmqError(error.reason)
    found.http_status = error.status  # type: ignore[misc]
    return found


def _for_a_person(request: web.Request) -> bool:
    """Whether a browser shows what is answered."""
    resource = request.match_info.route.resource
    if resource is not None and (request.method, resource.canonical) in request.config_dict[ROLES]:
        return resource.canonical != PATH
    return "text/html" in request.headers.get(hdrs.ACCEPT, "") and not request.path.startswith(_MACHINES)


def _page(request: web.Request, error: EmqError) -> web.Response:
    if is_htmx(request):
        line = Markup('<span class="problem">⚠ {}</span>').format(error.message)
        response = web.Response(text=line, status=error.http_status, content_type="text/html")
        if isinstance(error, Unauthorized):
            response.headers["HX-Redirect"] = "/login"
        return response
    known = request.get(IDENTITY) is not None
    return render_plain(request, "error.html", error.http_status, problem=error.message, known=known)
