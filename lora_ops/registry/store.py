"""The embedded registry: SQLite for records, content-addressed files beside it."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.records import Manifest, now, sha256_file
from lora_ops.registry.files import FileStore
from lora_ops.settings import find_root, load_settings

SCHEMA = """
CREATE TABLE versions (
    tenant TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    content_digest TEXT NOT NULL,
    manifest TEXT NOT NULL,
    registered_at TEXT NOT NULL,
    PRIMARY KEY (tenant, number),
    UNIQUE (tenant, content_digest)
) STRICT;
CREATE TABLE aliases (
    tenant TEXT NOT NULL,
    alias TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (tenant, alias),
    FOREIGN KEY (tenant, number) REFERENCES versions (tenant, number)
) STRICT;
"""
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Version:
    """One registered version and the aliases that name it."""

    manifest: Manifest
    aliases: tuple[str, ...]
    registered_at: str

    @property
    def number(self) -> int:
        """The version number, from 1."""
        assert self.manifest.version is not None
        return self.manifest.version


def parse_reference(reference: str) -> tuple[str, int | str]:
    """`finance@3` as ("finance", 3), `finance@candidate` and `finance` as ("finance", "candidate").

    Raises:
        LoraOpsError: the text is none of these.
    """
    match = re.fullmatch(r"([a-z][a-z0-9_-]*)(?:@([1-9][0-9]*|[a-z]+))?", reference)
    if match is None:
        raise LoraOpsError(
            f"'{reference}' names no version: write tenant@number (finance@3) or tenant@alias "
            "(finance@candidate)."
        )
    tenant, which = match[1], match[2] or "candidate"
    return tenant, int(which) if which.isdigit() else which


class Registry:
    """Adapter versions under one folder; every change is one SQLite transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = FileStore(path / "files")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path / "registry.sqlite", isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        except (OSError, sqlite3.Error) as error:
            raise LoraOpsError(f"Cannot open the registry in {path}: {error}.") from error

    def _migrate(self) -> None:
        with self._transaction():
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found > SCHEMA_VERSION:
                raise LoraOpsError(
                    f"The registry in {self.path} was written by a newer lora-ops (schema {found}, "
                    f"this one knows {SCHEMA_VERSION}): update lora-ops."
                )
            if found < 1:
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Release the database."""
        self._db.close()

    def register(self, package: Path, manifest: Manifest) -> tuple[Version, bool]:
        """Keep a package as the next version of its tenant and let `candidate` name it.

        The same content again is the same version: nothing is added, `candidate` comes back to it.

        Args:
            package: folder that holds every file of `manifest.files`.
            manifest: what 04_package wrote, without a version.

        Returns:
            The version, and whether it is a new one.

        Raises:
            LoraOpsError: a file is missing or has another digest than the manifest says.
        """
        for name, file in manifest.files.items():
            if not (package / name).is_file() or sha256_file(package / name) != file.sha256:
                raise LoraOpsError(
                    f"{package / name} is not the file that its manifest describes: package it again."
                )
        for name in manifest.files:
            self.files.add(package / name)
        digest = manifest.content_digest()
        with self._transaction():
            row = self._db.execute(
                "SELECT number FROM versions WHERE tenant = ? AND content_digest = ?",
                (manifest.tenant, digest),
            ).fetchone()
            if row is None:
                (last,) = self._db.execute(
                    "SELECT coalesce(max(number), 0) FROM versions WHERE tenant = ?", (manifest.tenant,)
                ).fetchone()
                number = last + 1
                registered = manifest.model_copy(update={"version": number})
                self._db.execute(
                    "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                    (manifest.tenant, number, digest, registered.to_json(), now().isoformat()),
                )
            else:
                number = row[0]
            self._db.execute(
                "INSERT INTO aliases VALUES (?, 'candidate', ?)"
                " ON CONFLICT (tenant, alias) DO UPDATE SET number = excluded.number",
                (manifest.tenant, number),
            )
        return self.get(f"{manifest.tenant}@{number}"), row is None

    def versions(self, tenant: str | None = None) -> list[Version]:
        """Every version, or those of one tenant, oldest first."""
        rows = self._db.execute(
            "SELECT v.manifest, v.registered_at, group_concat(a.alias) FROM versions v"
            " LEFT JOIN aliases a ON a.tenant = v.tenant AND a.number = v.number"
            " WHERE ?1 IS NULL OR v.tenant = ?1 GROUP BY v.tenant, v.number ORDER BY v.tenant, v.number",
            (tenant,),
        )
        return [_version(*row) for row in rows]

    def get(self, reference: str) -> Version:
        """The version that `finance@3`, `finance@candidate` or `finance` names.

        Raises:
            LoraOpsError: there is no such tenant, version or alias; the text lists what there is.
        """
        tenant, which = parse_reference(reference)
        versions = self.versions(tenant)
        for version in versions:
            if which == version.number or which in version.aliases:
                return version
        if not versions:
            known = (
                ", ".join(sorted({v.manifest.tenant for v in self.versions()})) or "none yet: run `make repro`"
            )
            raise LoraOpsError(f"The registry has no adapter of '{tenant}' (tenants: {known}).")
        there = ", ".join(v.manifest.adapter_id for v in versions)
        raise LoraOpsError(f"The registry has no {tenant}@{which} (there are: {there}).")

    def export(self, reference: str, target: Path) -> Version:
        """Write a version's files and its manifest into the new folder `target`, digests checked.

        Raises:
            LoraOpsError: unknown version, a kept file is missing or changed, or `target` exists.
        """
        version = self.get(reference)
        if target.exists():
            raise LoraOpsError(f"{target} exists already: name a new folder.")
        paths = {n: self.files.checked(f.sha256, n) for n, f in version.manifest.files.items()}
        target.mkdir(parents=True)
        for name, path in paths.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
        (target / "manifest.json").write_text(version.manifest.to_json(), encoding="utf-8")
        return version


def _version(manifest: str, registered_at: str, aliases: str | None) -> Version:
    names = tuple(sorted(aliases.split(","))) if aliases else ()
    return Version(Manifest.model_validate_json(manifest), names, registered_at)


def open_registry(root: Path | None = None) -> Registry:
    """The registry that params.yaml names, for the repository at `root`."""
    root = root or find_root()
    return Registry(root / load_settings(root).registry.path)
