"""What every request passes: security headers, the origin check, the identity, errors turned into responses."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from broker.access.audit import AUDIT, is_audited, named
from broker.access.credentials import CREDENTIALS, is_public, refuse_key_in_query
from broker.access.identity import IDENTITY
from broker.access.origin import SAFE_METHODS, OriginGuard
from broker.access.proxies import client_ip
from broker.api import errors
from broker.api.tickets import brings_ticket
from broker.errors import BadMessage, EmqError, Unauthorized

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
UNAUDITED = frozenset({"/api/jobs", "/api/assets", "/api/assets/{hash}", "/api/tickets", "/login", "/logout"})
"""Submits and uploads are no acts of administration; log-ins are noted where they happen."""
LEFT = 499
"""What the log has of who left before the end of an answer, as NGINX's has."""
GUARD = web.AppKey("guard", OriginGuard)


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put the security headers on a response; a handler's own ones stay."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "EMQ"


@web.middleware
async def errors_to_responses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in one form; one in the middle of an answer ends the connection."""
    try:
        response = await handler(request)
    except EmqError as error:
        response = errors.response(error)
    except web.HTTPException as exc:
        response = errors.from_http(exc)
    except ConnectionError:
        if not _has_begun(request):
            raise
        response = web.Response(status=LEFT)
    except Exception as exc:
        response = errors.response(errors.unexpected(exc, f"{request.method} {request.path}"[:200]))
    if _has_begun(request) and not response.prepared and request.transport is not None:
        # A second answer would be taken for the rest of the first, and who still misses some of that would wait.
        request.transport.abort()
    return response


def _has_begun(request: web.Request) -> bool:
    return request.writer.output_size > 0


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse foreign pages, then find out who asks; a lease or a signed URL says that by itself."""
    credentials = request.config_dict[CREDENTIALS]
    request.config_dict[GUARD].check(request, open_access=credentials.ring.open)
    refuse_key_in_query(request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise BadMessage("Send the body without Content-Encoding.")
    if not brings_ticket(request) and not is_public(request.path):
        try:
            request[IDENTITY] = await credentials.identify(request)
        except Unauthorized:
            if _is_page(request):
                raise web.HTTPSeeOther("/login") from None
            if credentials.shown(request):
                await credentials.attempts.failed(client_ip(request))
            raise
    return await handler(request)


@web.middleware
async def audit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Note what administrators and people change."""
    response = await handler(request)
    who = request.get(IDENTITY)
    if who is None or request.method in SAFE_METHODS or not is_audited(who) or response.status >= 400:
        return response
    resource = request.match_info.route.resource
    path = resource.canonical if resource else request.path
    if path not in UNAUDITED:
        target = named(request.match_info) or response.headers.get("Location", "").rpartition("/")[2]
        await request.config_dict[AUDIT].note(who, client_ip(request), f"{request.method} {path}", target)
    return response


def _is_page(request: web.Request) -> bool:
    """Whether a person without a key in the hand opens a page."""
    wants_page = request.method == hdrs.METH_GET and "text/html" in request.headers.get(hdrs.ACCEPT, "")
    if "HX-Request" in request.headers:
        return False  # the page's script would follow a redirect and put the log-in into the page
    return wants_page and hdrs.AUTHORIZATION not in request.headers and not request.path.startswith(("/api/", "/ws"))
