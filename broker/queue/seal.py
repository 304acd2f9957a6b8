"""Payloads and results at rest: AES-256-GCM, by keys of the broker's that neither Redis nor a worker has.

A sealed payload is ``EMQ1``, the key's 4-byte id, a 12-byte nonce, the ciphertext; a sealed result is the JSON
``{"sealed": "<base64 of the same>"}``, because Redis embeds results in events. What it
belongs to (a payload or a result, of which job) is authenticated along, so that nobody with Redis in their hands can
put one in the place of another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.errors import ConfigurationError, Unavailable

MAGIC = b"EMQ1"
TAG = "via:gateway"
"""Only the gateway's workers have this tag; sealed jobs require it, since a worker in Redis could not read them."""
_RESULT = b'{"sealed":'
_LEAST = 16


class Seal:
    """Encrypts by the first secret, decrypts by all of them. Without a secret nothing is encrypted."""

    def __init__(self, secrets: list[str] | None = None, purpose: str = "payload") -> None:
        """Raises ``ConfigurationError`` for a secret that is too short."""
        if any(len(secret) < _LEAST for secret in secrets or ()):
            raise ConfigurationError(f"Each secret in EMQ_PAYLOAD_KEY must have at least {_LEAST} characters.")
        keys = [hmac.digest(secret.encode(), f"emq:{purpose}".encode(), hashlib.sha256) for secret in secrets or ()]
        self._keys = {hashlib.sha256(key).digest()[:4]: AESGCM(key) for key in keys}
        self._first = next(iter(self._keys), None)

    @classmethod
    def of(cls, setting: str | None, purpose: str = "payload") -> Seal:
        """By a comma-separated setting."""
        return cls([part.strip() for part in (setting or "").split(",") if part.strip()], purpose)

    @property
    def active(self) -> bool:
        """Whether anything is encrypted."""
        return self._first is not None

    def is_current(self, data: bytes) -> bool:
        """Whether ``data`` is as :meth:`close` would leave it now: by the first secret, or plain without one."""
        return data.startswith(MAGIC + self._first) if self._first else not data.startswith(MAGIC)

    def close(self, data: bytes, about: str) -> bytes:
        """Encrypt ``data``; without a secret it stays as it is."""
        if self._first is None:
            return data
        nonce = os.urandom(12)
        return MAGIC + self._first + nonce + self._keys[self._first].encrypt(nonce, data, about.encode())

    def open(self, data: bytes, about: str) -> bytes:
        """What was sealed; what was not is returned as it is. Raises ``Unavailable`` without the right secret."""
        if not data.startswith(MAGIC):
            return data
        key = self._keys.get(data[4:8])
        try:
            if key is None:
                raise InvalidTag
            return key.decrypt(data[8:20], data[20:], about.encode())
        except (InvalidTag, ValueError):
            raise Unavailable(
                "This is encrypted by a key that this broker does not have, or was changed: see EMQ_PAYLOAD_KEY."
            ) from None

    def close_json(self, text: bytes, about: str) -> bytes:
        """Encrypt a JSON text into a JSON text."""
        if self._first is None:
            return text
        return json.dumps(
            {"sealed": base64.b64encode(self.close(text, about)).decode()}, separators=(",", ":")
        ).encode()

    def open_json(self, text: bytes, about: str) -> bytes:
        """The JSON text that was sealed."""
        if not text.startswith(_RESULT):
            return text
        try:
            sealed = base64.b64decode(json.loads(text)["sealed"], validate=True)
        except (ValueError, KeyError, TypeError, binascii.Error):
            return text
        return self.open(sealed, about) if sealed.startswith(MAGIC) else text


def payload_of(job_id: str) -> str:
    """What a job's payload is authenticated with."""
    return f"payload:{job_id}"


def result_of(job_id: str) -> str:
    """What a job's result is authenticated with."""
    return f"result:{job_id}"
