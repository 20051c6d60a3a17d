"""One entry of `tenants` in params.yaml."""

from pydantic import model_validator

from lora_ops.settings.data import DataSettings
from lora_ops.settings.evaluate import OF_TEXTS, EvaluateSettings
from lora_ops.settings.package import PackageSettings
from lora_ops.settings.section import Section
from lora_ops.settings.train import TrainSettings


class TenantSettings(Section):
    """One line of business with its own adapter."""

    data: DataSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    package: PackageSettings

    @model_validator(mode="after")
    def _metrics_fit_task(self) -> "TenantSettings":
        if self.data.task == "text" and "macro_f1" in self.evaluate.metrics:
            raise ValueError("macro_f1 is a metric of labels: use chrf, rouge_l or token_f1 for free text")
        of_texts = [name for name in self.evaluate.metrics if name in OF_TEXTS]
        if self.data.task == "labels" and of_texts:
            raise ValueError(f"{of_texts[0]} is a metric of free text: use exact_match or macro_f1 for labels")
        return self
