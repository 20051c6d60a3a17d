"""Which versions have the same weights: a closed adapter must not come back under another name.

A closed adapter is known by its tensors. Another file around them, other settings or another tenant's name
don't bring it back. The entry that registers a version states the digest of its tensors, so no file is read.
Entries of earlier releases lack that digest. For them the kept file is read, after its own digest was compared.
The manifest names that file, and so does the signature where the manifest was lost. Where nothing can be read,
nobody can tell: that is a note and never an error, since an incident must not wait for a restore.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal

from lora_ops.adapter_files import weights_digest
from lora_ops.errors import LoraOpsError
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.manifest import Manifest
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.files import FileStore
from lora_ops.registry.queries import Queries
from lora_ops.registry.signing import signed_digests
from lora_ops.registry.versions import CLOSED, Summary, Version

Likeness = Literal["same", "other", "unknown"]


class Twins:
    """The weights of every version at one moment; each kept file is read at most once."""

    def __init__(self, registry: Queries) -> None:
        self._registry = registry
        self._summaries = registry.summaries()
        self._stated = registry.log.weights_digests()
        self._read: dict[str, str | LoraOpsError | None] = {}
        self._by_digest: dict[str, list[Summary]] = defaultdict(list)
        for one in self._summaries:
            if one.id in self._stated:
                self._by_digest[self._stated[one.id]].append(one)
        self._unstated = [one for one in self._summaries if one.id not in self._stated]

    def closed(self, mine: str | None, file: str | None) -> Summary | None:
        """Return a version, of whatever tenant, that was closed and has the tensors of digest `mine`, or None.

        Args:
            mine: the digest of the tensors that are asked about; None is no adapter, which has no twin.
            file: the digest of their file, which is compared where the tensors of a closed version are lost.
        """
        if mine is None:
            return None
        for one in self._closed([*self._by_digest.get(mine, ()), *self._unstated]):
            try:
                if self.weights(one) == mine:
                    return one
            except LoraOpsError:
                if file is not None and self._file_or_none(one) == file:
                    return one
        return None

    def closed_like(self, version: Summary) -> Summary | None:
        """Return a closed version, of whatever tenant, that is known to have the same tensors, or None."""
        closed = self._closed_beside(version)
        return next((one for one in closed if self.compare(one, version) == "same"), None)

    def closed_unknown(self, version: Summary) -> list[Summary]:
        """Return the closed versions of which nobody can tell whether they have the same tensors."""
        return [one for one in self._closed_beside(version) if self.compare(one, version) == "unknown"]

    def states(self, one: Summary) -> bool:
        """Return whether the log states the tensors of a version, as no earlier release did."""
        return one.id in self._stated

    def alike(self, version: Summary) -> list[Summary]:
        """Return the other versions, in whatever state, that are known to have the same tensors.

        Of versions whose tensors the log does not state, only those with a report and those of the same tenant,
        whose evaluation counts, are read: the others have nothing that could count for `version`.
        """
        stated = self._stated.get(version.id)
        if stated:
            others = self._by_digest[stated]
        else:
            others = [one for one in self._summaries if one.id in self._stated]
        return [
            one
            for one in [*others, *self._unstated_that_count(version.tenant)]
            if one.id != version.id and self.compare(one, version) == "same"
        ]

    def read_ahead(self, reference: str | None = None) -> None:
        """Read the kept files that a registration, or a step of `reference`, may ask for, before the lock."""
        asked = [one for one in self._unstated if one.state in CLOSED or one.id == reference]
        if reference:
            asked += self._unstated_that_count(reference.partition("@")[0])
        for one in asked:
            with suppress(LoraOpsError):
                self.weights(one)

    def _unstated_that_count(self, tenant: str) -> list[Summary]:
        return [one for one in self._unstated if one.tenant == tenant or one.id in self._reported]

    @cached_property
    def _reported(self) -> frozenset[str]:
        """The versions with a report, by name (`finance@3`)."""
        return frozenset(self._registry.log.reported()) if self._unstated else frozenset()

    def answering(self, version: Summary, likeness: Likeness = "same") -> list[Summary]:
        """Return the other versions that an alias names, which may answer today, by their likeness."""
        named = [one for one in self._summaries if one.aliases and one.id != version.id]
        return [one for one in named if self.compare(one, version) == likeness]

    def compare(self, left: Summary, right: Summary) -> Likeness:
        """Return whether two versions have the same tensors, as far as anybody can tell.

        Where tensors are lost, the digests of the files are compared: equal files have the same tensors, and
        different ones may have.
        """
        try:
            mine, theirs = self.weights(left), self.weights(right)
            return "same" if mine is not None and mine == theirs else "other"
        except LoraOpsError:
            file = self._file_or_none(left)
            return "same" if file is not None and file == self._file_or_none(right) else "unknown"

    def weights(self, one: Summary) -> str | None:
        """Return the digest of a version's tensors; None where its package has no adapter.

        Raises:
            LoraOpsError: the log does not state it, and the kept file is missing, damaged or named by nothing.
        """
        stated = self._stated.get(one.id)
        if stated:
            return stated
        if one.id not in self._read:
            try:
                file = self._file(one)
                self._read[one.id] = _tensors(self._registry.files, file) if file else None
            except LoraOpsError as error:
                self._read[one.id] = error
        found = self._read[one.id]
        if isinstance(found, LoraOpsError):
            raise found
        return found

    def _closed_beside(self, version: Summary) -> list[Summary]:
        stated = self._stated.get(version.id)
        others = [*self._by_digest[stated], *self._unstated] if stated else self._summaries
        return [one for one in self._closed(others) if one.id != version.id]

    def _closed(self, versions: Iterable[Summary]) -> list[Summary]:
        """Return those that were closed for what they are, so not those that were put away after service."""
        closed = [one for one in versions if one.state in CLOSED]
        log = self._registry.log
        return [
            one
            for one in closed
            if one.state != "archived" or standing(log.entries(one.tenant, one.number), one.number) in CLOSED
        ]

    def _file(self, one: Summary) -> str | None:
        """Return the digest of a version's adapter file, as its manifest or else its signature names it.

        Only the manifest and the signature count that the log states: a changed row would name other weights.

        Raises:
            LoraOpsError: neither can be read.
        """
        try:
            found = self._registry.load(one.tenant, one.number)
            self._registry.require_stated_manifest(found)
            file = found.manifest.files.get(ADAPTER_FILES[0])
            return file.sha256 if file else None
        except LoraOpsError:
            stated = self._registry.log.registered_as(one.id)
            signature = stated.signature if stated else one.signature
            if signature is None:
                raise
            kept = self._registry.files.checked(signature, f"the signature of {one.id}")
            return signed_digests(kept, one.id).get(ADAPTER_FILES[0])

    def _file_or_none(self, one: Summary) -> str | None:
        try:
            return self._file(one)
        except LoraOpsError:
            return None


def standing(history: Sequence[AuditEntry], number: int) -> str | None:
    """Return the state that a version's history leaves it in, as it counts for its twins; None before any.

    A superseded version that was archived still stands as superseded: a renewal of the same weights may serve.
    One that was rejected and then archived stays closed.
    """
    told = [entry.effects.get("states", {}).get(str(number)) for entry in history]
    states = [state for state in told if state]
    if states[-2:] == ["superseded", "archived"]:
        return "superseded"
    return states[-1] if states else None


def answering_notes(registry: Queries, version: Summary) -> list[str]:
    """Return what may still answer with the weights of a version that was just closed, in words."""
    twins = Twins(registry)
    notes = [
        f"{twin.id} ('{twin.state}') has the same weights: look whether it must go, too."
        for twin in twins.answering(version)
    ]
    unknown = ", ".join(f"{one.id} ('{one.state}')" for one in twins.answering(version, "unknown"))
    if unknown:
        notes.append(f"Nobody can tell whether {unknown} has the weights of {version.id}: look at its answers.")
    return notes


def kept_weights(files: FileStore, manifest: Manifest) -> str | None:
    """Return the digest of the tensors that a manifest's kept adapter has; None without an adapter.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or is not a safetensors file.
    """
    file = manifest.files.get(ADAPTER_FILES[0])
    return _tensors(files, file.sha256) if file else None


def _tensors(files: FileStore, file: str) -> str:
    if file not in files.tensors:
        files.tensors[file] = weights_digest(files.checked(file, ADAPTER_FILES[0]))
    return files.tensors[file]


def misstated_weights(registry: Queries, version: Version, adapter: Path | None = None) -> str | None:
    """Return that the log states other tensors than a version's file has, in words, or None.

    A closed adapter is known by the stated digest, so a false one would let it come back.

    Args:
        registry: where.
        version: which.
        adapter: a copy of its adapter, whose own digest was compared already; default: the kept file.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or is not a safetensors file.
    """
    stated, file = registry.log.weights_digest(version.id), version.manifest.files.get(ADAPTER_FILES[0])
    if stated is None:
        return None
    if adapter and file and file.sha256 not in registry.files.tensors:
        registry.files.tensors[file.sha256] = weights_digest(adapter)
    found = kept_weights(registry.files, version.manifest)
    if found == stated:
        return None
    return (
        f"the audit log says that the weights of {version.id} are {stated[:12]}…, and its file has "
        f"{found[:12] + '…' if found else 'none'}"
    )
