"""Outputs of jobs: where they lie, what they are called, and how a result that names them is checked and delivered.

An output lies under ``{tenant}/{job}/{attempt}/{n}`` and is called ``{attempt}-{n}.{extension}`` towards clients: the
server makes both, and the name alone is enough to find the file.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from broker.errors import BadMessage, EmqError, NotFound
from broker.files import names, types
from broker.files.store import FileStore, StoredFile
from broker.files.urls import UrlSigner

log = logging.getLogger(__name__)

MAX_OUTPUTS = 10_000
MAX_TOLD = 100
"""Of so many outputs a worker need not say which upload is which."""
_NUMBERS = frozenset({"width", "height", "duration_s"})
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NAME = re.compile(r"([1-9][0-9]{0,8})-(0|[1-9][0-9]{0,3})(\.[a-z0-9]{1,8})?")


def tenant_folder(tenant: str) -> str:
    """The tenant's folder: its name where that is plain, else a digest of it (with a dot, so it is nobody's name)."""
    return tenant if _TENANT.fullmatch(tenant) else f"h.{blake3(tenant.encode('utf-8', 'replace')).hexdigest(16)}"


def job_folder(tenant: str, job_id: str) -> str:
    """The folder of all of a job's outputs; raises ``NotFound`` for what cannot be a job's id."""
    if not _JOB.fullmatch(job_id):
        raise NotFound("There is no such job.")
    return f"{tenant_folder(tenant)}/{job_id}"


def attempt_folder(tenant: str, job_id: str, attempt: int) -> str:
    """The folder of one attempt's outputs."""
    return f"{job_folder(tenant, job_id)}/{attempt}"


def server_name(attempt: int, number: int, file: StoredFile) -> str:
    """The name in an output's URL; the extension fits the content where a browser shows it, else it is the label's."""
    ending = types.extension_of(file.content_type) or names.extension(file.label)
    return f"{attempt}-{number}{ending}"


def _names(attempt: int, number: int, file: StoredFile) -> set[str]:
    """The names that a file has had: while nobody had looked at it, its label alone spoke for its type."""
    claimed = types.extension_of(types.guess(file.label)) or names.extension(file.label)
    return {server_name(attempt, number, file), f"{attempt}-{number}{claimed}"}


def parse_name(name: str) -> tuple[int, int]:
    """Attempt and number of a server-made name; raises ``NotFound`` for any other."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise NotFound("There is no such output.")
    return int(found[1]), int(found[2])


async def find_output(store: FileStore, tenant: str, job_id: str, name: str) -> StoredFile:
    """The file behind an output's name; raises ``NotFound``."""
    attempt, number = parse_name(name)
    file = await store.stat(f"{attempt_folder(tenant, job_id, attempt)}/{number}")
    if name not in _names(attempt, number, file):
        raise NotFound("There is no such output.")
    return file


async def checked_result(
    store: FileStore, tenant: str, job_id: str, attempt: int, result: Mapping[str, Any]
) -> dict[str, Any]:
    """A worker's result with what it says of its files replaced by what the store knows.

    Raises ``BadMessage`` when an output names a file that this attempt has not uploaded.
    """
    outputs = result.get("outputs", [])
    if not isinstance(outputs, list) or len(outputs) > MAX_OUTPUTS or not all(isinstance(o, dict) for o in outputs):
        raise BadMessage(f"result.outputs must be a list of at most {MAX_OUTPUTS} objects.")
    folder = attempt_folder(tenant, job_id, attempt)
    named = await _with_keys(store, folder, outputs)
    return {**result, "outputs": [await _checked_output(store, folder, attempt, output) for output in named]}


async def _with_keys(store: FileStore, folder: str, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs of a worker that does not say which upload is which: told by content, else by name."""
    nameless = [o for o in outputs if o.get("key") is None and ("hash" in o or "filename" in o)]
    if not nameless or len(outputs) > MAX_TOLD:
        return outputs
    stored: list[StoredFile] = []
    for number in range(len(outputs)):
        with contextlib.suppress(NotFound):
            stored.append(await store.stat(f"{folder}/{number}"))
    taken = {str(output.get("key")) for output in outputs}
    named = []
    for output in outputs:
        free = [file for file in stored if output in nameless and file.key not in taken]
        key = next((file.key for file in free if _is_file_of(output, file)), None)
        taken.add(str(key))
        named.append(output if key is None else {**output, "key": key})
    return named


def _is_file_of(output: Mapping[str, Any], file: StoredFile) -> bool:
    if "hash" in output:
        return bool(output["hash"] == file.hash)
    return bool(output.get("filename") == file.label)


async def _checked_output(store: FileStore, folder: str, attempt: int, output: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in output.items() if key not in ("url", "key", "name")}
    key = output.get("key")
    if key is None:
        return kept
    parent, _, number = str(key).rpartition("/")
    try:
        if parent != folder or not _NAME.fullmatch(f"{attempt}-{number}"):
            raise NotFound("There is no such file.")
        file = await store.stat(str(key))
    except NotFound as error:
        raise BadMessage(
            f"The output {str(key)[:200]!r} was not uploaded by this attempt; upload it, then report again."
        ) from error
    known = {"size": file.size, "hash": file.hash, "content_type": file.content_type}
    label = names.display_name(str(output.get("filename") or file.label))
    return {**kept, **known, "filename": label, "key": file.key, "name": server_name(attempt, int(number), file)}


async def remove_outputs(store: FileStore, tenant: str, job_id: str) -> None:
    """Remove a job's files; what cannot be removed now goes with the next cleaning."""
    try:
        await store.delete_everywhere(job_folder(tenant, job_id))
    except EmqError as error:
        log.warning("the files of the deleted job %s are still there: %s", job_id, error.message)


def delivered_result(signer: UrlSigner, tenant: str, job_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result as a client gets it: each output with a fresh ``url``, without the store's ``key``.

    What lies in Redis may come from a worker directly, so only names that the server could have made become URLs.
    """
    outputs = result.get("outputs")
    listed = outputs if isinstance(outputs, list) else []
    return {**result, "outputs": [_delivered(signer, tenant, job_id, o) for o in listed if isinstance(o, dict)]}


def _delivered(signer: UrlSigner, tenant: str, job_id: str, output: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in output.items() if key not in ("url", "key", "replica")}
    for field in _NUMBERS & kept.keys():
        number = kept[field]
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
            del kept[field]
    name = output.get("name")
    if isinstance(name, str) and _NAME.fullmatch(name) and _JOB.fullmatch(job_id):
        kept["url"] = signer.output_url(tenant, job_id, name)
    return kept
