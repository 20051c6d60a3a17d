"""Which adapter version answers to a model's name: what is in production, what is pinned, or the base model."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.registry.lifecycle import SERVING
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Summary, Version, parse_reference

Decision = Literal["production", "candidate", "pinned", "base"]
BASE = "base"


class UnknownModel(LoraOpsError):
    """No model has this name."""


class NotServed(LoraOpsError):
    """The model exists and may not answer; the text says why."""


@dataclass(frozen=True)
class Route:
    """Who answers, and why.

    Attributes:
        decision: `production`, `candidate` (nothing is in production yet), `pinned` (an exact version was
            asked for), `base`.
        version: None for the base model.
    """

    decision: Decision
    version: Version | None
    base_model: BaseModelRecord

    @property
    def name(self) -> str:
        """`finance@3`, or the base model's id."""
        return self.version.id if self.version else self.base_model.id

    @property
    def tenant(self) -> str | None:
        """Whose model it is; the base model is nobody's."""
        return self.version.tenant if self.version else None

    @property
    def digest(self) -> str:
        """The adapter's content digest, or the SHA-256 of the base model's weights."""
        return self.version.summary.content_digest if self.version else self.base_model.sha256

    @property
    def system(self) -> str | None:
        """The system prompt that the adapter was trained with."""
        return self.version.manifest.params.get("data", {}).get("system") if self.version else None


class Router:
    """Reads routes from the registry and keeps them until any process changes it.

    SQLite's `data_version` tells of every commit by others, so a promotion, a rollback or a revocation holds
    for the next request, at the price of one pragma.
    """

    def __init__(self, registry: Registry, base_model: BaseModelRecord, *, allow_candidates: bool) -> None:
        self._registry = registry
        self._base_model = base_model
        self._allow_candidates = allow_candidates
        self._seen: int | None = None
        self._routes: dict[str, Route] = {}
        self._versions: Sequence[Summary] | None = None

    def route(self, model: str) -> Route:
        """The route of a model's name: a tenant, an exact version (`finance@3`), the base model's id or `base`.

        Raises:
            UnknownModel: no tenant, version or alias has this name.
            NotServed: the version was closed, has expired, or nobody has approved it.
            LoraOpsError: the registry can't be read.
        """
        self._forget_if_changed()
        return self._route(model)

    def _route(self, model: str) -> Route:
        found = self._routes.get(model)
        if found is None:
            found = self._routes[model] = self._find(model)
        if found.version:
            self._check(found.version)
        return found

    def is_base(self, model: str) -> bool:
        """Whether a name means the base model."""
        return model in (self._base_model.id, BASE)

    def served(self) -> list[tuple[str, Route]]:
        """Every name that answers now, with its route: the tenants, their versions, then the base model."""
        summaries = self.versions()
        names = [*dict.fromkeys(one.tenant for one in summaries), *(one.id for one in summaries)]
        routes = []
        for name in names:
            with suppress(UnknownModel, NotServed):  # listed are the names that answer
                routes.append((name, self._route(name)))
        return [*routes, (self._base_model.id, self._route(self._base_model.id))]

    def versions(self) -> Sequence[Summary]:
        """Every version in the registry."""
        self._forget_if_changed()
        if self._versions is None:
            self._versions = self._registry.summaries()
        return self._versions

    def tenants(self) -> list[str]:
        """Every tenant with a version in the registry."""
        return list(dict.fromkeys(one.tenant for one in self.versions()))

    def _forget_if_changed(self) -> None:
        seen = self._registry.data_version()
        if seen != self._seen:
            self._routes.clear()
            self._versions = None
            self._seen = seen

    def _find(self, model: str) -> Route:
        if self.is_base(model):
            return Route("base", None, self._base_model)
        try:
            tenant, which = parse_reference(model)
        except LoraOpsError as error:
            raise UnknownModel(f"There is no model '{model[:80]}': see /v1/models for the names.") from error
        if "@" not in model:
            return self._current(tenant)
        return Route("pinned", self._load(model), self._base_model)

    def _current(self, tenant: str) -> Route:
        if self._registry.named(tenant, "production") is not None:
            return Route("production", self._load(f"{tenant}@production"), self._base_model)
        return Route("candidate", self._load(f"{tenant}@candidate"), self._base_model)

    def _load(self, reference: str) -> Version:
        try:
            return self._registry.get(reference)
        except LoraOpsError as error:
            raise UnknownModel(str(error)) from error

    def _check(self, version: Version) -> None:
        # The same rules as `lora-ops registry show` tells of.
        if version.state in CLOSED:
            raise NotServed(f"{version.id} was {version.state}: it does not answer any more.")
        if version.state not in SERVING and not self._allow_candidates:
            raise NotServed(
                f"{version.id} is '{version.state}', and only shadow, canary and production serve: promote it, "
                "or set serving.allow_candidates in params.yaml."
            )
        if utc(self._registry.clock()) >= version.summary.fresh_until:
            raise NotServed(
                f"{version.id} expired on {version.summary.fresh_until[:10]}: train it on fresh data."
            )
