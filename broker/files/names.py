"""Names of files: what people see, and the few that mean something.

Files lie under keys that the server makes; a name from a worker or client is a label and never becomes a path.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

MAX_NAME = 200
_STRICT = re.compile(r"[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,199}")
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_RESERVED = frozenset('<>:"/\\|?*')
_ATTR_CHARS = "!#$&+-.^_`|~"  # attr-char of RFC 5987 beyond letters and digits


def display_name(raw: str, fallback: str = "file") -> str:
    """A label that is safe to show and to save under: the last path segment, NFC, at most 200 characters.

    Control and direction characters go, what a file system reserves becomes ``_``, leading dots and trailing dots or
    spaces go, Windows device names get a leading ``_``. Never fails: what has nothing left is ``fallback``.
    """
    text = unicodedata.normalize("NFC", raw.encode("utf-8", "replace").decode())
    text = re.split(r"[/\\]", text)[-1]
    kept = (c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
    text = "".join("_" if c in _RESERVED else c for c in kept)
    text = _shorten(text.lstrip(". ").rstrip(". "))
    if _DEVICES.fullmatch(text):
        text = f"_{text}"
    return text or fallback


def is_strict(name: str) -> bool:
    """Whether a name may be more than a label: ``[A-Za-z0-9._ -]``, no leading dot, no ``..``, no device name."""
    return (
        _STRICT.fullmatch(name) is not None
        and ".." not in name
        and not name.endswith((".", " "))
        and not _DEVICES.fullmatch(name)
    )


def extension(name: str) -> str:
    """The lower-case extension with its dot, empty when there is none that is plain (at most 8 letters or digits)."""
    found = _EXTENSION.search(name)
    return found.group().lower() if found else ""


def content_disposition(kind: str, name: str) -> str:
    """A ``Content-Disposition`` value by RFC 6266; ``kind`` is ``inline`` or ``attachment``."""
    label = display_name(name)
    ascii_name = "".join(c if c.isascii() and c not in '%"\\' else "_" for c in label)
    encoded = quote(label, safe=_ATTR_CHARS)
    value = f'{kind}; filename="{ascii_name}"'
    return value if encoded == ascii_name else f"{value}; filename*=UTF-8''{encoded}"


def _shorten(text: str) -> str:
    """Cut to the limit, keeping a plain extension."""
    if len(text) <= MAX_NAME:
        return text
    ending = extension(text)
    return text[: MAX_NAME - len(ending)].rstrip(". ") + text[len(text) - len(ending) :] if ending else text[:MAX_NAME]
