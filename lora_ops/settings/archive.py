"""`archive` of params.yaml."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lora_ops.settings.section import Section, refuse_shared_folder


def _refuse_no_store(store: str) -> str:
    """Return a folder or URL of an archive, unless it can't be one.

    Raises:
        ValueError: it names no place, or has a password, which the audit log would keep for ever.
    """
    if "://" not in store:
        if re.match(r"[a-zA-Z0-9+]{2,}:", store):
            raise ValueError("this is no URL: write one such as s3://bucket/adapters")
        return refuse_shared_folder(store)
    problem = url_problem(store)
    if problem:
        raise ValueError(problem)
    if "memory" in (part.partition("://")[0].lower() for part in store.split("::")):
        raise ValueError("what is in memory is gone with its process: name a folder, or a URL of a storage")
    return store


def url_problem(url: str) -> str | None:
    """Return why a URL of fsspec can't be that of an archive, or None.

    Each part of a chain (`simplecache::s3://bucket`) is looked at: messages and the audit log state it.
    """
    if not url.isprintable() or url.startswith("-"):
        return "this is no URL: write one such as s3://bucket/adapters"
    parts = url.split("::")
    if "://" not in parts[-1]:
        return "its last part is no URL: write one such as s3://bucket/adapters"
    for part in parts:
        protocol, _, rest = part.partition("://")
        if protocol.lower() in ("file", "local"):
            if not rest.startswith("/"):
                return f"{part} depends on where a command runs: write file:/// and the whole path"
            continue
        host = rest.split("/")[0]
        # abfs://container@account is the name of a place; a password stands after a colon.
        has_user = "@" in host and (":" in host or not protocol.lower().startswith("abfs"))
        if has_user or "?" in rest or re.search(r":(?![0-9]+$)", host):
            return (
                "a user, password or query in the URL would be kept in the audit log: give it by the "
                "environment"
            )
    return None


def _require_version(text: str) -> str:
    """Return the name of an exact version.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}@[1-9][0-9]{0,17}", text):
        raise ValueError("name exact versions, such as finance@3")
    return text


class ArchiveSettings(Section):
    """Where weights go that nobody uses, and when; see docs/costs.md."""

    days: int = Field(90, ge=1, description="without a request or a change, after which weights may go")
    store: Annotated[str, AfterValidator(_refuse_no_store)] = Field(
        ".archive", description="a folder, or any URL that fsspec knows, such as s3://bucket/adapters"
    )
    codec: Literal["shuffle-zstd", "zstd", "none"] = Field(
        "shuffle-zstd", description="without loss; benchmarks/compression.py compares them"
    )
    keep: tuple[Annotated[str, AfterValidator(_require_version)], ...] = Field(
        (), description="versions that stay whatever happens, such as those under a legal hold: finance@3"
    )
