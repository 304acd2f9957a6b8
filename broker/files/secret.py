"""The deployment's signing secret and the keys derived from it.

``EMQ_SECRET`` holds one or more secrets, comma-separated: the first signs, all verify, so a secret is changed by
putting the new one in front and dropping the old one later. Without it a secret is made once in the data folder.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ConfigurationError

_MIN_LENGTH = 16


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """One secret and the short public id by which a signature names it."""

    key_id: str
    value: bytes

    def derive(self, purpose: str) -> bytes:
        """A 32-byte key for one purpose; keys of different purposes say nothing about each other."""
        return hmac.digest(self.value, b"emq:" + purpose.encode(), hashlib.sha256)


class Secrets:
    """The secrets of a deployment, the signing one first."""

    def __init__(self, values: list[str]) -> None:
        if not values or any(len(value) < _MIN_LENGTH for value in values):
            raise ConfigurationError(f"Each secret in EMQ_SECRET must have at least {_MIN_LENGTH} characters.")
        self._secrets = [_named(value.encode()) for value in values]

    @property
    def key_id(self) -> str:
        """The id of the signing secret."""
        return self._secrets[0].key_id

    def signing_key(self, purpose: str) -> tuple[str, bytes]:
        """The id of the signing secret and its key for ``purpose``."""
        first = self._secrets[0]
        return first.key_id, first.derive(purpose)

    def derived(self, purpose: str) -> str:
        """A secret for one purpose, by the signing secret."""
        return self.signing_key(purpose)[1].hex()

    def key(self, purpose: str, key_id: str) -> bytes | None:
        """The key of the secret with this id, ``None`` when there is no such secret (any more)."""
        return next((s.derive(purpose) for s in self._secrets if hmac.compare_digest(s.key_id, key_id)), None)


def load_secrets(configured: str | None, data: Path) -> Secrets:
    """Read the secrets from the setting, else from ``DATA/secret``, which is made (mode 600) when it is missing.

    Raises ``ConfigurationError`` for a secret that is too short or a file that cannot be read.
    """
    if configured:
        return Secrets([value.strip() for value in configured.split(",") if value.strip()])
    path = data / "secret"
    try:
        if not path.exists():
            _create(path)
        return Secrets([path.read_text("ascii").strip()])
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read or make the signing secret {path}: {error}") from error


def _named(value: bytes) -> Secret:
    digest = hmac.digest(value, b"emq:key-id", hashlib.sha256).hex()
    return Secret(digest[:8], value)


def _create(path: Path) -> None:
    """Make the file in one step, so that two replicas starting at once end up with the same secret."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"secret.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
