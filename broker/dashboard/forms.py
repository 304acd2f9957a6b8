"""What plain forms post, and what they are answered: a line for htmx, the page again for a browser without scripts."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, quote, unquote

from aiohttp import web
from markupsafe import Markup

from broker.api.rest import in_time
from broker.errors import BadMessage, PayloadTooLarge

MAX_BYTES = 65_536
MAX_FIELDS = 300
SAID = "emq_said"
"""The cookie that carries an action's result to the page after it."""
_LOCAL = re.compile(r"/(?![/\\])[^\x00-\x20\x7f\\]*")

Form = dict[str, list[str]]


async def read_form(request: web.Request) -> Form:
    """A posted form's fields; what is no form has none. Raises ``PayloadTooLarge``, ``BadMessage``."""
    raw = b""
    async with in_time():
        async for chunk in request.content.iter_any():
            raw += chunk
            if len(raw) > MAX_BYTES:
                raise PayloadTooLarge("The form is too large.")
    try:
        return parse_qs(raw.decode("utf-8", "replace"), max_num_fields=MAX_FIELDS)
    except ValueError:
        raise BadMessage(f"A form has at most {MAX_FIELDS} fields.") from None


def field(form: Form, name: str, default: str = "") -> str:
    """One field's value."""
    return form.get(name, [default])[0].strip()


def is_htmx(request: web.Request) -> bool:
    """Whether a page's script asks, not a browser that opens a page."""
    return "HX-Request" in request.headers


def local(path: str) -> str:
    """A path of this broker's own pages; ``/`` for what is none."""
    return path if _LOCAL.fullmatch(path) else "/"


def done(request: web.Request, form: Form, said: str, to: str | None = None) -> web.Response:
    """Answer an action that was done: a line for the status of the page, or the page (or ``to``) again."""
    if is_htmx(request):
        line = Markup('<span class="done">{}</span>').format(said)
        response = web.Response(text=line, content_type="text/html")
        if to is not None:
            response.headers["HX-Redirect"] = to
            _keep(response, said)
        return response
    response = web.Response(status=303, headers={"Location": to or local(field(form, "next"))})
    _keep(response, said)
    return response


def _keep(response: web.Response, said: str) -> None:
    response.set_cookie(SAID, quote(said[:300]), path="/", max_age=20, httponly=True, samesite="Strict")


def take_said(request: web.Request) -> str:
    """What the last action said, for the page that comes after it."""
    return unquote(request.cookies.get(SAID, ""))[:300]
