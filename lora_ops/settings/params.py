"""The whole of params.yaml, typed."""

from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.settings.autoscaling import AutoscalingSettings
from lora_ops.settings.base_model import BaseModelSettings
from lora_ops.settings.costs import CostSettings
from lora_ops.settings.detectors import DetectorSettings
from lora_ops.settings.drift import DriftSettings
from lora_ops.settings.files import find_root, first_problem, read_yaml
from lora_ops.settings.kpis import KpiSettings
from lora_ops.settings.objectives import ObjectiveSettings
from lora_ops.settings.registry import RegistrySettings
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
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    drift: DriftSettings = DriftSettings()
    kpis: KpiSettings = KpiSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
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
    def _serves_known_tenants(self) -> "Settings":
        unknown = sorted(self.serving.tenants.keys() - self.tenants.keys())
        if unknown:
            raise ValueError(
                f"serving.tenants has '{unknown[0]}', which is no tenant: "
                "remove it there too, or add it to tenants"
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


def load_settings(root: Path | None = None) -> Settings:
    """params.yaml of the repository at `root` (default: `find_root()`).

    Raises:
        LoraOpsError: the file is missing, is not YAML, or a value is wrong; the text names the value.
    """
    path = (root or find_root()) / "params.yaml"
    raw = read_yaml(path)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        more = error.error_count() - 1
        also = f" ({more} more problem{'s' if more > 1 else ''} after it)" if more else ""
        raise LoraOpsError(f"params.yaml: {first_problem(error)}{also}.") from error
