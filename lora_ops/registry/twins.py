"""Which versions have the same weights: a closed adapter must not come back under another name.

A closed adapter is known by its tensors. Another file around them, other settings or another tenant's name
don't bring it back. The entry that registers a version states the digest of its tensors, so no file is read.
Entries of earlier releases lack that digest. For them the kept file is read, after its own digest was compared.
"""

from collections import defaultdict
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from lora_ops.adapter_files import weights_digest
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.manifest import Manifest
from lora_ops.registry.files import FileStore
from lora_ops.registry.queries import Queries
from lora_ops.registry.versions import CLOSED, Summary, Version


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

    def closed(self, mine: str | None, name: str) -> Summary | None:
        """Return a version, of whatever tenant, that was closed and has the tensors of digest `mine`, or None.

        Args:
            mine: the digest of the tensors that are asked about; None is no adapter, which has no twin.
            name: whose they are, for the error.

        Raises:
            Damaged: the log does not state the weights of a closed version, and its kept file is missing or
                was changed, so nobody can tell.
        """
        if mine is None:
            return None
        unknown: tuple[Summary, LoraOpsError] | None = None
        for one in [*self._by_digest.get(mine, ()), *self._unstated]:
            if one.state not in CLOSED:
                continue
            try:
                if self.weights(one) == mine:
                    return one
            except LoraOpsError as error:
                unknown = unknown or (one, error)
        if unknown:
            lost, cause = unknown
            raise Damaged(
                f"The kept weights of {lost.id}, which is '{lost.state}', are missing or damaged, so nobody "
                f"can tell whether {name} has the same: restore them from a backup."
            ) from cause
        return None

    def states(self, one: Summary) -> bool:
        """Return whether the log states the tensors of a version, as no earlier release did."""
        return one.id in self._stated

    def alike(self, version: Summary) -> list[Summary]:
        """Return the other versions, in whatever state, that are known to have the same tensors.

        Of versions whose tensors the log does not state, only those with a report are read: the others have
        nothing that could count for `version`.
        """
        stated = self._stated.get(version.id)
        if stated:
            others = self._by_digest[stated]
        else:
            others = [one for one in self._summaries if one.id in self._stated]
        return [
            one
            for one in [*others, *self._unstated_with_report]
            if one.id != version.id and self.same(one, version)
        ]

    def read_ahead(self, reference: str | None = None) -> None:
        """Read the kept files that a registration, or a step of `reference`, may ask for, before the lock.

        Who asks later finds them in memory, and is told of what is missing or damaged.
        """
        asked = [one for one in self._unstated if one.state in CLOSED or one.id == reference]
        if reference:
            asked += self._unstated_with_report
        for one in asked:
            with suppress(LoraOpsError):
                self.weights(one)

    @cached_property
    def _unstated_with_report(self) -> list[Summary]:
        reported = self._registry.log.reported() if self._unstated else ()
        return [one for one in self._unstated if one.id in reported]

    def answering(self, version: Summary) -> list[Summary]:
        """Return the other versions with the same tensors that an alias names: they may answer today."""
        named = [one for one in self._summaries if one.aliases and one.id != version.id]
        return [one for one in named if self.same(one, version)]

    def same(self, left: Summary, right: Summary) -> bool:
        """Return whether two versions are known to have the same tensors.

        This never raises for a damaged file or record, since an incident must not wait for a restore. Two
        versions of earlier releases whose files are damaged are compared by the digests of these files.
        """
        try:
            mine = self.weights(left)
            return mine is not None and mine == self.weights(right)
        except LoraOpsError:
            return self._same_file(left, right)

    def weights(self, one: Summary) -> str | None:
        """Return the digest of a version's tensors; None where its package has no adapter.

        Raises:
            LoraOpsError: the log does not state it, and the manifest or the kept file is missing or damaged.
        """
        stated = self._stated.get(one.id)
        if stated:
            return stated
        if one.id not in self._read:
            try:
                manifest = self._registry.load(one.tenant, one.number).manifest
                self._read[one.id] = kept_weights(self._registry.files, manifest)
            except LoraOpsError as error:
                self._read[one.id] = error
        found = self._read[one.id]
        if isinstance(found, LoraOpsError):
            raise found
        return found

    def _same_file(self, left: Summary, right: Summary) -> bool:
        try:
            files = [
                self._registry.load(one.tenant, one.number).manifest.files.get(ADAPTER_FILES[0])
                for one in (left, right)
            ]
        except LoraOpsError:
            return False
        return files[0] is not None and files[0] == files[1]


def answering_notes(registry: Queries, version: Summary) -> list[str]:
    """Return what may still answer with the weights of a version that was just closed, in words."""
    return [
        f"{twin.id} ('{twin.state}') has the same weights: look whether it must go, too."
        for twin in Twins(registry).answering(version)
    ]


def kept_weights(files: FileStore, manifest: Manifest) -> str | None:
    """Return the digest of the tensors that a manifest's kept adapter has; None without an adapter.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or is not a safetensors file.
    """
    file = manifest.files.get(ADAPTER_FILES[0])
    if file is None:
        return None
    if file.sha256 not in files.tensors:
        files.tensors[file.sha256] = weights_digest(files.checked(file.sha256, ADAPTER_FILES[0]))
    return files.tensors[file.sha256]


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
