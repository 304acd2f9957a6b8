"""Signed file URLs: whoever holds one may read that one file for an hour, without a credential.

A URL carries the tenant, the end of its life, the id of the secret and an HMAC over path, tenant and expiry, so a
replica verifies it without asking anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode

from broker.errors import Forbidden
from broker.files.secret import Secrets

PURPOSE = "file-url"
REPLICAS = "replica"
"""The purpose of what replicas ask of each other."""
MAX_AGE_S = 3600


class UrlSigner:
    """Makes and checks signed URLs.

    ``public_url`` is the broker's URL as clients see it; without it URLs are relative to the broker's root.
    """

    def __init__(
        self,
        secrets: Secrets,
        public_url: str | None = None,
        *,
        purpose: str = PURPOSE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = secrets
        self._base = (public_url or "").rstrip("/")
        self._purpose = purpose
        self._clock = clock

    def sign(self, path: str, tenant: str, age_s: int = MAX_AGE_S, *, method: str = "GET") -> str:
        """A URL for ``path`` (unquoted, from the root) that is valid for ``age_s`` seconds, at most an hour."""
        expires = str(int(self._clock()) + min(age_s, MAX_AGE_S))
        key_id, key = self._secrets.signing_key(self._purpose)
        query = {"t": tenant, "e": expires, "k": key_id, "s": _signature(key, method, path, tenant, expires)}
        return f"{self._base}{quote(path)}?{urlencode(query)}"

    def output_url(self, tenant: str, job_id: str, name: str) -> str:
        """A signed URL for a job's output."""
        return self.sign(f"/api/jobs/{job_id}/outputs/{name}", tenant)

    def verify(self, path: str, query: Mapping[str, str], *, method: str = "GET") -> str:
        """The tenant that ``query`` is signed for; raises ``Forbidden`` for a forged or expired one."""
        tenant, expires = query.get("t", ""), query.get("e", "")
        key = self._secrets.key(self._purpose, query.get("k", "")[:64].encode("ascii", "replace").decode())
        given = query.get("s", "").encode("utf-8", "replace")
        good = key is not None and hmac.compare_digest(_signature(key, method, path, tenant, expires).encode(), given)
        if not good:
            raise Forbidden("This link's signature is not valid; ask for the job's record to get a fresh one.")
        if int(expires) < self._clock():
            raise Forbidden("This link has expired; ask for the job's record to get a fresh one.", reason="expired")
        return tenant


def is_signed(query: Mapping[str, str]) -> bool:
    """Whether a request brings a signature (good or not)."""
    return "s" in query


def _signature(key: bytes, method: str, path: str, tenant: str, expires: str) -> str:
    message = json.dumps([method, path, tenant, expires]).encode()  # unambiguous, whatever the fields hold
    return hmac.digest(key, message, hashlib.sha256).hex()
