"""`archive` of params.yaml."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from lora_ops.settings.section import Section, refuse_shared_folder


def _refuse_no_store(store: str) -> str:
    """Return a folder or URL of an archive, unless it can't be one.

    Raises:
        ValueError: it names no place, or has a password, which the audit log would keep for ever.
    """
    if "://" not in store:
        return refuse_shared_folder(store)
    if not store.isprintable() or store.startswith("-"):
        raise ValueError("this is no URL: write one such as s3://bucket/adapters")
    if "@" in store.split("://", 1)[1].split("/")[0]:
        raise ValueError(
            "a user or password in the URL would be kept in the audit log: give it by the environment"
        )
    return store


class ArchiveSettings(Section):
    """Where weights go that nobody uses, and when; see docs/costs.md."""

    days: int = Field(90, ge=1, description="without a request or a change, after which weights may go")
    store: Annotated[str, AfterValidator(_refuse_no_store)] = Field(
        ".archive", description="a folder, or any URL that fsspec knows, such as s3://bucket/adapters"
    )
    codec: Literal["shuffle-zstd", "zstd", "none"] = Field(
        "shuffle-zstd", description="without loss; benchmarks/compression.py compares them"
    )
    keep: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}@[1-9][0-9]{0,17}$")], ...] = (
        Field(
            (), description="versions that stay whatever happens, such as those under a legal hold: finance@3"
        )
    )
