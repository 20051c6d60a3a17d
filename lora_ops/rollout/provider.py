"""The flag `adapter.<tenant>` of OpenFeature: answered by the registry's routes, or by flagd.

Its value is `production`, `canary` or a version's id. Our own provider gives the id of the version that a route
names. Whatever a provider says, the gateway decides whether that version may answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, FeatureProvider, Metadata

from lora_ops.records.route import RouteRecord
from lora_ops.rollout.assignment import Requester, assign, short_name
from lora_ops.settings.rollout import FlagdSettings

PREFIX = "adapter."
PRODUCTION = "production"
CANARY = "canary"


@dataclass(frozen=True)
class TenantRoute:
    """What one evaluation needs to know of a tenant.

    Attributes:
        state: gives the state of a version that may answer now, and None for any other.
        epoch: the last entry of the audit log that was known.
    """

    route: RouteRecord
    state: Callable[[int], str | None]
    epoch: int


class RegistryProvider(AbstractProvider):
    """Answers the flags from the routes in the registry.

    Args:
        tenant_route: gives a tenant's route, or None where there is no such tenant.
    """

    def __init__(self, tenant_route: Callable[[str], TenantRoute | None]) -> None:
        super().__init__()
        self._tenant_route = tenant_route

    def get_metadata(self) -> Metadata:
        """Return the provider's name."""
        return Metadata(name="lora-ops registry")

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Return `production` or a version's id; variant, reason and metadata say why.

        Raises:
            FlagNotFoundError: there is no such tenant.
        """
        tenant = flag_key.removeprefix(PREFIX)
        found = self._tenant_route(tenant) if flag_key.startswith(PREFIX) else None
        if found is None:
            raise FlagNotFoundError(f"There is no flag '{flag_key}': a tenant's is {PREFIX}<tenant>.")
        who = _requester(evaluation_context or EvaluationContext())
        assigned = assign(found.route, found.state, who)
        metadata: dict[str, bool | int | float | str] = {"epoch": found.epoch, "decision": assigned.decision}
        if assigned.arm:
            metadata["arm"] = assigned.arm
        if assigned.decision in ("pinned_user", "segment"):
            variant, reason = "pinned", Reason.TARGETING_MATCH
        else:
            variant, reason = assigned.decision, Reason.SPLIT if found.route.canary else Reason.STATIC
        value = PRODUCTION if assigned.number is None else f"{tenant}@{assigned.number}"
        return FlagResolutionDetails(value, reason=reason, variant=variant, flag_metadata=metadata)

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Refuse: the flags are strings."""
        _refuse(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Refuse: the flags are strings."""
        _refuse(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Refuse: the flags are strings."""
        _refuse(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Refuse: the flags are strings."""
        _refuse(flag_key)


def flagd_provider(settings: FlagdSettings, root: Path) -> FeatureProvider:
    """Return flagd's provider; it connects, or reads its file, once it is registered.

    Args:
        root: where a relative `path` begins.
    """
    from openfeature.contrib.provider.flagd import FlagdProvider
    from openfeature.contrib.provider.flagd.config import CacheType, ResolverType

    return FlagdProvider(
        resolver_type=ResolverType(settings.resolver),
        host=settings.host,
        port=settings.port,
        deadline_ms=settings.deadline_ms,
        # It is emptied by a stream of changes. While that is broken, a flag that was turned off would go on.
        cache=CacheType.DISABLED,
        offline_flag_source_path=str(root / settings.path) if settings.resolver == "file" else None,
    )


def context(tenant: str, who: Requester, *, sent: bool = False) -> EvaluationContext:
    """Return what a flag is evaluated for: the unit as targeting key, with user, segment and tenant.

    Args:
        sent: another process may be asked, by `short_name` of each name.
    """
    named = {"user": who.user, "segment": who.segment, "tenant": tenant}
    attributes = {name: value for name, value in named.items() if value is not None}
    unit = who.unit
    if sent:
        unit, attributes = short_name(unit), {name: short_name(value) for name, value in attributes.items()}
    return EvaluationContext(targeting_key=unit, attributes=attributes)


def _requester(context: EvaluationContext) -> Requester:
    def named(attribute: str) -> str | None:
        value = context.attributes.get(attribute)
        return value if isinstance(value, str) else None

    return Requester(context.targeting_key or "", named("user"), named("segment"))


def _refuse(flag_key: str) -> NoReturn:
    raise TypeMismatchError(f"'{flag_key}' is a string: {PRODUCTION}, {CANARY} or a version's id.")
