"""The worker's settings: the environment, and the file ``emq.json`` that install.py writes beside this one.

An address in the file wins over one in the environment (it was meant for this very ComfyUI); for everything else the
environment wins. With no address at all the worker looks for a broker that runs on this machine with its default data
folder.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

ADDRESSES = ("EMQ_REDIS_URL", "REDIS_HOST", "EMQ_BROKER_URL")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MOST = 65_535
POOL = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
WORKER_NAME = re.compile(r"^[^\s\x00-\x1f]{1,128}$")


class SettingsError(Exception):
    """A setting cannot be used; the message says which and what it may be."""


@dataclass(frozen=True)
class Settings:
    """Everything the worker can be told; times in seconds."""

    redis_url: str | None = None
    broker_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    submit_key: str | None = field(default=None, repr=False)
    """The key with which this ComfyUI's page sends jobs to the fleet; without it the worker's own."""
    page: bool = True
    """Whether ComfyUI's page may ask EMQ at all."""
    data: Path | None = None
    """The broker's data folder to look into when there is no address."""
    worker_id: str | None = None
    machine_id: str | None = None
    gpu_count: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    pools: tuple[str, ...] = ("default",)
    job_types: tuple[str, ...] = ("comfyui",)
    drain_s: float = 20.0
    deliver_temp: bool = False
    clean_outputs: bool = False
    strip_metadata: bool = False
    input_cache_gb: float = 10.0
    log_level: str = "INFO"

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, file: Path | None = None) -> Settings:
        """Read environment and file.

        Raises:
            SettingsError: a value cannot be used.
        """
        names = _merged(os.environ if environment is None else environment, _read(file or _default_file()))
        return cls(
            redis_url=_redis_url(names),
            broker_url=_broker_url(names),
            api_key=names.get("EMQ_API_KEY"),
            submit_key=names.get("EMQ_SUBMIT_KEY"),
            page=_switch(names, "EMQ_PAGE", True),
            data=_data_folder(names),
            worker_id=_worker_id(names),
            machine_id=names.get("MACHINE_ID"),
            gpu_count=_whole(names, "GPU_COUNT"),
            labels=_labels(names),
            tags=_list(names, "EMQ_TAGS"),
            pools=_pools(names),
            job_types=_list(names, "EMQ_JOB_TYPES") or ("comfyui",),
            drain_s=_number(names, "EMQ_DRAIN_S", 20.0, "seconds"),
            deliver_temp=_switch(names, "EMQ_DELIVER_TEMP", False),
            clean_outputs=_switch(names, "EMQ_CLEAN_OUTPUTS", False),
            strip_metadata=_switch(names, "EMQ_STRIP_METADATA", False),
            input_cache_gb=_number(names, "EMQ_INPUT_CACHE_GB", 10.0, "gigabytes"),
            log_level=_log_level(names),
        )

    @property
    def by_gateway(self) -> bool:
        """Whether the worker talks to a broker instead of to Redis."""
        return self.broker_url is not None and self.redis_url is None

    def local_redis_url(self) -> str | None:
        """The address of the Valkey that a broker on this machine started, if there is one now."""
        if self.data is None:
            return None
        try:
            content = json.loads((self.data / "valkey.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        url = content.get("url") if isinstance(content, dict) else None
        return url if isinstance(url, str) and url else None


def default_worker_id(port: int) -> str:
    """The name of a worker that was given none: one for each ComfyUI on each machine."""
    return f"{socket.gethostname()}-{port}"


def _default_file() -> Path:
    return Path(__file__).resolve().parent / "emq.json"


def _read(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {file}: {error}; correct it, or remove it") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{file} does not hold a JSON object; correct it, or remove it")
    return {str(name): str(value) for name, value in content.items() if value is not None}


def _merged(environment: Mapping[str, str], file: Mapping[str, str]) -> dict[str, str]:
    """The settings that hold; empty ones count as absent."""
    merged = {**file, **{name: value for name, value in environment.items() if value}}
    if any(file.get(name) for name in ADDRESSES):
        for name in ADDRESSES:
            merged.pop(name, None)
        merged.update({name: file[name] for name in ADDRESSES if file.get(name)})
    return {name: value.strip() for name, value in merged.items() if value.strip()}


def _redis_url(names: Mapping[str, str]) -> str | None:
    if url := names.get("EMQ_REDIS_URL"):
        if "://" not in url:
            raise SettingsError(f"EMQ_REDIS_URL is {url!r}; it looks like redis://host:6379/0")
        return url
    if host := names.get("REDIS_HOST"):
        password = names.get("REDIS_PASSWORD")
        secret = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{secret}{host}:{_whole(names, 'REDIS_PORT') or 6379}/{_whole(names, 'REDIS_DB') or 0}"
    return None


def _broker_url(names: Mapping[str, str]) -> str | None:
    url = names.get("EMQ_BROKER_URL")
    if url is None:
        return None
    url = re.sub(r"^ws", "http", url).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"EMQ_BROKER_URL is {url!r}; it looks like http://host:8000")
    return url


def _data_folder(names: Mapping[str, str]) -> Path:
    if data := names.get("EMQ_DATA"):
        return Path(data)
    base = names.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "emq"


def _worker_id(names: Mapping[str, str]) -> str | None:
    name = names.get("WORKER_ID")
    if name is not None and not WORKER_NAME.match(name):
        raise SettingsError(f"WORKER_ID is {name!r}; it may have up to 128 characters and no spaces")
    return name


def _labels(names: Mapping[str, str]) -> dict[str, str]:
    """What only labels the worker: it runs inside ComfyUI and needs no address of it."""
    wanted = {"COMFYUI_HOST": "comfyui_host", "COMFYUI_PORT": "comfyui_port", "COMFYUI_WS_PORT": "comfyui_ws_port"}
    return {label: names[name] for name, label in wanted.items() if name in names}


def _list(names: Mapping[str, str], name: str) -> tuple[str, ...]:
    parts = (part.strip() for part in names.get(name, "").split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _pools(names: Mapping[str, str]) -> tuple[str, ...]:
    pools = _list(names, "EMQ_POOLS") or _list(names, "EMQ_POOL") or ("default",)
    for pool in pools:
        if not POOL.match(pool):
            raise SettingsError(f"EMQ_POOLS has {pool!r}; a pool's name is made of letters, digits, _ and -")
    return pools


def _whole(names: Mapping[str, str], name: str) -> int | None:
    if name not in names:
        return None
    text = names[name]
    if not (text.isascii() and text.isdigit() and int(text) <= MOST):
        raise SettingsError(f"{name} is {text!r}; it is a whole number, at most {MOST}")
    return int(text)


def _switch(names: Mapping[str, str], name: str, default: bool) -> bool:
    return names[name].lower() in ("1", "true", "yes", "on") if name in names else default


def _number(names: Mapping[str, str], name: str, default: float, unit: str) -> float:
    try:
        value = float(names.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {names[name]!r}; it is a number of {unit}, 0 or more")
    return value


def _log_level(names: Mapping[str, str]) -> str:
    level = names.get("LOG_LEVEL", "INFO").upper()
    if level not in LOG_LEVELS:
        raise SettingsError(f"LOG_LEVEL is {names['LOG_LEVEL']!r}; it is one of {', '.join(LOG_LEVELS)}")
    return level
