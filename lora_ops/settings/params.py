"""The whole of params.yaml, typed."""

from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from lora_ops.errors import LoraOpsError, NotFound, with_text
from lora_ops.settings.archive import ArchiveSettings
from lora_ops.settings.autoscaling import AutoscalingSettings
from lora_ops.settings.base_model import BaseModelSettings
from lora_ops.settings.costs import CostSettings
from lora_ops.settings.detectors import DetectorSettings
from lora_ops.settings.drift import DriftSettings
from lora_ops.settings.files import find_root, first_problem, parse_yaml, read_section, read_yaml
from lora_ops.settings.kpis import KpiSettings
from lora_ops.settings.objectives import ObjectiveSettings
from lora_ops.settings.registry import RegistrySettings
from lora_ops.settings.risk import RiskBudgetSettings
from lora_ops.settings.rollout import RolloutSettings
from lora_ops.settings.section import Section, TenantName, colliding_tenant
from lora_ops.settings.serving import ServingSettings
from lora_ops.settings.tenant import TenantSettings
from lora_ops.settings.tracking import TrackingSettings


class Settings(Section):
    """The whole of params.yaml."""

    base_model: BaseModelSettings
    tracking: TrackingSettings
    registry: RegistrySettings
    serving: ServingSettings = ServingSettings()
    rollout: RolloutSettings = RolloutSettings()
    detectors: DetectorSettings = DetectorSettings()
    costs: CostSettings = CostSettings()
    archive: ArchiveSettings = ArchiveSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    drift: DriftSettings = DriftSettings()
    kpis: KpiSettings = KpiSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    risk_budgets: RiskBudgetSettings = RiskBudgetSettings()
    tenants: dict[TenantName, TenantSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _tenants_differ(self) -> "Settings":
        for name in self.tenants:
            if name == self.base_model.id:
                raise ValueError(f"'{name}' is both base_model.id and a tenant: choose another tenant name")
            other = colliding_tenant(name, self.tenants)
            if other:
                raise ValueError(f"tenants '{other}' and '{name}' are the same name in some stores: rename one")
        return self

    @model_validator(mode="after")
    def _names_known_tenants(self) -> "Settings":
        for section, named in (("serving", self.serving.tenants), ("risk_budgets", self.risk_budgets.tenants)):
            unknown = sorted(named.keys() - self.tenants.keys())
            if unknown:
                raise ValueError(
                    f"{section}.tenants has '{unknown[0]}', which is no tenant: "
                    "remove it there too, or add it to tenants"
                )
        return self

    @model_validator(mode="after")
    def _risks_can_burn(self) -> "Settings":
        name, budget = self.risk_budgets.largest()
        for one in self.objectives.burn_rates:
            if one.factor * budget >= 1:
                raise ValueError(
                    f"with risk_budgets.{name} {budget:g} no budget burns {one.factor:g} times too fast, not "
                    f"even where every answer is risky: lower it below {1 / one.factor:.3g}, or lower the "
                    "factor of objectives.burn_rates"
                )
        return self

    @property
    def names_hub(self) -> bool:
        """Whether the base model or the classifier is named by its id at the hub."""
        classifier = self.detectors.classifier
        return self.base_model.source == "hub" or (classifier is not None and classifier.id is not None)

    def tenant(self, name: str) -> TenantSettings:
        """The settings of one tenant.

        Raises:
            NotFound: params.yaml has no such tenant.
        """
        if name not in self.tenants:
            known = ", ".join(self.tenants)
            raise NotFound(
                f"params.yaml has no tenant '{name}' (it has: {known}): add it with `lora-ops tenant add`."
            )
        return self.tenants[name]


WHERE: dict[str, type[Section]] = {
    "registry": RegistrySettings,
    "serving": ServingSettings,
    "tracking": TrackingSettings,
}
"""The sections that say where the registry is, and where its gateways keep their files."""


def load_settings(root: Path | None = None) -> Settings:
    """params.yaml of the repository at `root` (default: `find_root()`).

    Raises:
        LoraOpsError: the file is missing, is not YAML, or a value is wrong; the text names the value.
    """
    return _validated(read_yaml((root or find_root()) / "params.yaml"))


def settings_to_stop(root: Path) -> Settings:
    """Return params.yaml to take a version out of service; where it is wrong, the last commit's.

    A version must not go on answering while somebody edits the file. Of a file that is wrong elsewhere, the
    sections count that say where the registry and its gateways are.

    Raises:
        LoraOpsError: as `load_settings`, and the last commit has no params.yaml that can be read either.
    """
    try:
        return load_settings(root)
    except LoraOpsError as error:
        found = _last_commits(root)
        if found is None:
            raise with_text(
                error,
                f"{str(error).rstrip('.')}; correct params.yaml, or take the last commit's (`git checkout "
                "params.yaml`), and run this again.",
            ) from error
    own: dict[str, Section] = {}
    for name, kind in WHERE.items():
        with suppress(LoraOpsError):
            own[name] = read_section(root, name, kind)
    return found.model_copy(update=own)


def _last_commits(root: Path) -> Settings | None:
    from lora_ops.git import committed_text

    text = committed_text(root, "params.yaml")
    try:
        return None if text is None else _validated(parse_yaml(text, "params.yaml of the last commit"))
    except LoraOpsError:
        return None


def _validated(raw: object) -> Settings:
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        more = error.error_count() - 1
        also = f" ({more} more problem{'s' if more > 1 else ''} after it)" if more else ""
        raise LoraOpsError(f"params.yaml: {first_problem(error)}{also}.") from error
