"""Where a kept source of a report is not what the packages that are here give."""

from collections.abc import Iterator

from lora_ops.errors import LoraOpsError
from lora_ops.gates.held_out import evaluated_again, packaged_rows
from lora_ops.gates.kept_answers import kept_answers, shared_rows
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.regression import RegressionSource
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import listed
from lora_ops.registry.versions import Version


def unlike_packages(registry: Registry, version: Version, source: RegressionSource) -> Iterator[str]:
    """Yield where the answers of a kept source are not those of the packages that are here, in words.

    A source of made-up answers gives its own report again, so only the packages show it. A version that is
    gone, or whose package keeps no answers, is left out: `lora-ops registry verify` names lost files.

    Raises:
        LoraOpsError: a kept file of `version` is missing or was changed.
    """
    for system in source.systems:
        name, digest = system.baseline.name, system.baseline.digest
        if system.baseline.role == "base":
            continue
        try:
            other = version if name == version.id else registry.get(name, whole=False)
            packaged = kept_answers(registry, other, source.cases)
        except LoraOpsError:
            if name == version.id:
                raise
            continue
        if other.summary.content_digest != digest:
            yield f"regression.systems.{name} is of other content than {name}"
            continue
        given = {one.key: one for one in system.answers}
        wrong = [
            given[key].case for key in packaged if key in given and given[key].texts != packaged[key].texts
        ]
        if wrong:
            yield f"regression.systems.{name} has other answers than its package to {listed(wrong)}"
        stated = source.packaged.packaged if source.packaged and name == version.id else len(packaged)
        if stated < len(packaged):
            yield f"regression.packaged is {stated}, and the package has {len(packaged)} answers to these cases"
    yield from _unlike_evaluation(registry, version, source)
    production = next((one.baseline.name for one in source.systems if one.baseline.role == "production"), None)
    if source.held_out and production:
        yield from _unlike_held_out(registry, version, source, production)


def _unlike_evaluation(registry: Registry, version: Version, source: RegressionSource) -> Iterator[str]:
    if source.evaluated is None or source.evaluated.verdict == "missing":
        return
    frame, given = packaged_rows(registry, version), source.evaluation_answers
    if ADAPTER not in given or any(len(one) != len(frame) for one in given.values()):
        yield f"regression.evaluation_answers are not those of its {len(frame)} held-out rows"
        return
    counted = evaluated_again(version, frame, given)
    if counted != source.evaluated:
        yield (
            f"regression.evaluated is {source.evaluated.to_json().strip()}, and the package and the answers "
            f"that were given again make it {counted.to_json().strip()}"
        )


def _unlike_held_out(
    registry: Registry, version: Version, source: RegressionSource, production: str
) -> Iterator[str]:
    given = source.evaluation_answers
    try:
        number = registry.get(production, whole=False).number
        kept, _, _ = shared_rows(registry, version, number, given)
        # Earlier releases compared the packaged answers of the candidate, too.
        packaged, _, _ = shared_rows(registry, version, number, {})
    except LoraOpsError:
        return
    stated = sorted(source.held_out, key=lambda one: one.key)
    if stated not in [sorted(rows, key=lambda one: one.key) for rows in (kept, packaged)]:
        same = len({*kept} & {*source.held_out})
        yield (
            f"regression.held_out has {len(source.held_out)} rows, and {same} of the {len(kept)} rows that the "
            f"packages of {version.id} and {production} give are among them"
        )
