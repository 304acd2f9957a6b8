"""The deployment's signing secret and the keys derived from it.

``EMQ_SECRET`` holds one or more secrets, comma-separated: the first signs, all verify, so a secret is changed by
adding the new one behind, then putting it in front, then dropping the old one, each on all brokers. Without it the
first broker makes one in its data folder, and the others of its Redis take that one over (see ``docs/decisions``).
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

    @property
    def key_ids(self) -> list[str]:
        """The ids of all secrets, the signing one's first."""
        return [secret.key_id for secret in self._secrets]

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


def configured_secrets(configured: str) -> Secrets:
    """The secrets of the setting. Raises ``ConfigurationError`` for one that is too short."""
    return Secrets([value.strip() for value in configured.split(",") if value.strip()])


def own_secret(data: Path) -> str:
    """This broker's secret, ``DATA/secret``; made (mode 600) when it is missing. Raises ``ConfigurationError``."""
    path = data / "secret"
    try:
        if not path.exists():
            _create(path)
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read or make the signing secret {path}: {error}") from error


def refuse_another(mine: Secrets, pool_key_id: str, configured: bool) -> None:
    """Raises ``ConfigurationError`` when the pool's brokers sign with a secret that is not among ours."""
    if not pool_key_id or mine.key("", pool_key_id) is not None:
        return
    has = f"EMQ_SECRET here is {mine.key_id}" if configured else "this broker has no EMQ_SECRET"
    raise ConfigurationError(
        f"Another broker of this pool signs links with the secret {pool_key_id}, but {has}: its links would be "
        "refused here, and ours there. Set the same EMQ_SECRET for all brokers; to change it, give all of them "
        "old,new, then new,old, then new. A broker that has ended counts for 15 s."
    )


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
