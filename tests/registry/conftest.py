"""What the registry's tests share: real packages, real folders, a clock that can be set."""

import atexit
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from lora_ops.evaluation import compare
from lora_ops.evaluation.inference import Sample, difference, mean_sample
from lora_ops.gates.review import evidence
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.evidence import make_report
from lora_ops.gates.review.sessions import Session, folder_of, start
from lora_ops.gates.review.submissions import submit
from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.packaging import model_card
from lora_ops.paths import ADAPTER_FILES, ANSWERS, EVALUATION, MEMBERSHIP, MODEL_CARD
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import DataRecord, SourceRecord, SplitRecord
from lora_ops.records.evaluation import (
    ADAPTER,
    BASE,
    BASE_FEW_SHOT,
    LEAD,
    OPPONENTS,
    BiasAssessment,
    EvaluationRecord,
    GroupMetric,
    Interval,
    PairedDifference,
    beats_base,
)
from lora_ops.records.manifest import FileRecord, GitRecord, Manifest
from lora_ops.records.review import Judgement
from lora_ops.records.training import TrainingRecord
from lora_ops.registry import lifecycle, store
from lora_ops.registry.consistency import require_consistent
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import Report, make
from lora_ops.registry.requirements import EVIDENCE, missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.data import ContractLimits
from lora_ops.settings.registry import WandbSettings
from lora_ops.settings.tenant import TenantSettings
from tests.wandb_server import WandbServer

MORNING = datetime(2026, 3, 2, 9, tzinfo=UTC)
AUTHOR, FIRST, SECOND = "ana", "ben", "chen"
GROUPS = {"train": 200, "validation": 20, "test": 100}
"""The groups of each split of every package."""
LABELS = ("Food", "Travel")
"""Each row's target is the first one, and each wrong answer the other one."""
GATES = {
    "train": {
        "rank": 8,
        "alpha": 16,
        "dropout": 0.0,
        "learning_rate": 0.001,
        "epochs": 1,
        "batch_size": 16,
        "seed": 0,
    },
    "evaluate": {
        "metrics": ["exact_match"],
        "max_new_tokens": 8,
        "few_shot": 6,
        "bootstrap": 2000,
        "must_beat_base": True,
        "max_gap": None,
    },
    "data": {
        "source": "data/sources/rows.csv",
        "labels": list(LABELS),
        "rows": {"train": 600, "validation": 60, "test": 300},
        "bias_columns": [],
        "group": "code",
        "published": None,
        "task": "labels",
        "contract": ContractLimits().model_dump(mode="json"),
    },
    "package": {"freshness_days": 365, "license": "Apache-2.0"},
}
"""The settings of every package, as a tenant in params.yaml has them."""


@cache
def ssh_key(person: str) -> Path:
    """Make a person's SSH key, once in a run; its public key is beside it."""
    folder = Path(tempfile.mkdtemp(prefix="ssh-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "id_ed25519"
    made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{person}@example.com", "-f", str(path)]
    subprocess.run(made, check=True)
    return path


def public_key(person: str) -> str:
    """Return the line that owners.yaml has of a person's SSH key."""
    return ssh_key(person).with_suffix(".pub").read_text().strip()


class Clock:
    """The time that a test says it is."""

    def __init__(self) -> None:
        self.time = MORNING

    def __call__(self) -> datetime:
        return self.time

    def move(self, **by: float) -> None:
        self.time += timedelta(**by)


Build = Callable[..., tuple[Path, Manifest]]


def build_package(folder: Path, seed: int, tenant: str = "finance", fresh_days: float = 365) -> Manifest:
    """Write a small real package, as complete as the pipeline's; the same seed gives the same content."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).standard_normal((4, 2)).astype(np.float32)
    save_file({"base_model.model.q_proj.lora_A.weight": weights}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "smol"}))
    rows = [f"{split},{sha256_text(f'{split}{i}')},3" for split, many in GROUPS.items() for i in range(many)]
    (folder / MEMBERSHIP).write_text("\n".join(["split,group_sha256,rows", *rows]) + "\n")
    digest = sha256_text(f"{tenant}{seed}")
    days = max(1, math.ceil(fresh_days))
    score = 0.5 + (seed % 40) / 100
    metrics = {
        "exact_match": {name: interval(0.1) for name in OPPONENTS if name != LEAD} | {ADAPTER: interval(score)}
    }
    evaluation = EvaluationRecord(
        tenant=tenant,
        rows=300,
        test_sha256=digest,
        adapter_sha256=digest,
        primary="exact_match",
        metrics=metrics,
        beats_base=True,
        answered_by="engine",
        seconds_base=1.0,
        seconds_adapter=1.0,
    )
    draft = Manifest(
        tenant=tenant,
        # Days that are over begin before the morning.
        created_at=MORNING + timedelta(days=fresh_days - days),
        base_model=BaseModelRecord(
            id="smol",
            revision="r1",
            sha256=digest,
            parameters=10,
            source="package",
            files=dict.fromkeys(("tokenizer.json", "chat_template.jinja"), sha256_text("tokenizer")),
        ),
        data=DataRecord(
            tenant=tenant,
            task="labels",
            source=SourceRecord(name="iso18245", version="1.4.1", sha256=digest),
            splits={
                name: SplitRecord(rows=3 * many, groups=many, sha256=digest) for name, many in GROUPS.items()
            },
            source_rows=1000,
            contract_success=True,
            base_model_sha256=digest,
            own_checks={},
        ),
        git=GitRecord(commit="abc123", dirty=False),
        dvc_lock_sha256=digest,
        params={
            **GATES,
            "train": {**GATES["train"], "seed": seed},
            "package": {**GATES["package"], "freshness_days": days},
        },
        packages={"peft": "0.21"},
        training=TrainingRecord(
            tenant=tenant,
            base_model_sha256=digest,
            train_sha256=digest,
            examples=600,
            steps=38,
            resumed_from_step=0,
            tokens=10_000,
            seconds=60.0,
            device="cpu",
            dtype="float32",
            trainable_parameters=100,
            final_loss=0.4,
            validation_loss=0.5,
        ),
        evaluation=evaluation,
        license="Apache-2.0",
        fresh_until=MORNING + timedelta(days=fresh_days),
        report="report.html",
        size_bytes=0,
        files={},
    )
    return evaluated(folder, draft, compared(evaluation))


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.05, high=value + 0.05)


def compared(evaluation: EvaluationRecord, **changed: object) -> EvaluationRecord:
    """Change an evaluation, and let its differences follow from its metrics and from `beats_base`.

    Args:
        evaluation: which.
        changed: its fields; `differences` stay as they are given.
    """
    made = evaluation.model_copy(update=changed)
    of = made.metrics
    differences = {
        name: {
            metric: by_answers(made, of[metric][ADAPTER].value, of[metric][name].value)
            if made.beats_base or name != BASE
            else PairedDifference(value=0.5, low=0.1, high=0.9, p_value=0.6, p_corrected=0.6)
            for metric in of
        }
        for name in OPPONENTS
        if name in of[made.primary]
    }
    known = made.differences if "differences" in changed else differences
    value = of[made.primary][ADAPTER]
    groups = {"Food": GroupMetric(rows=made.rows, value=value)} if "groups" not in changed else made.groups
    strongest = max(differences, key=lambda name: of[made.primary][name].value)
    beaten = beats_base(known) if "differences" in changed and "beats_base" not in changed else made.beats_base
    return made.model_copy(
        update={
            "differences": known,
            "strongest_opponent": strongest,
            "groups": groups,
            "beats_base": beaten,
        }
    )


def right_answers(rows: int, share: float) -> list[bool]:
    """Return which of so many rows a system is right about whose exact match is `share`."""
    return [row < round(share * rows) for row in range(rows)]


@cache
def _paired(rows: int, left: float, right: float) -> PairedDifference:
    groups = [group_of_row(row) for row in range(rows)]
    of_left, of_right = (
        mean_sample(np.array(right_answers(rows, one), float), groups) for one in (left, right)
    )
    return difference(of_left, of_right, 1, 0)


def by_answers(evaluation: EvaluationRecord, left: float, right: float) -> PairedDifference:
    """Return the difference of two systems as `write_answers` lets them answer."""
    return _paired(evaluation.rows, left, right)


def group_of_row(row: int) -> str:
    return f"test{row % GROUPS['test']}"


def write_answers(folder: Path, evaluation: EvaluationRecord) -> None:
    """Write answers whose exact match is what an evaluation says of its primary metric."""
    rows = range(evaluation.rows)
    of = evaluation.metrics[evaluation.primary]
    columns = {
        "id": [str(row) for row in rows],
        "group": [group_of_row(row) for row in rows],
        "text": [f"row {row}" for row in rows],
        "target": [LABELS[0] for _ in rows],
    }
    for name, measured in of.items():
        columns[name] = [LABELS[not right] for right in right_answers(len(rows), measured.value)]
    for column, bias in evaluation.bias.items():
        groups = [name for name, group in bias.groups.items() for _ in range(group.rows)]
        columns[f"slice.{column}"] = [*groups, *([""] * len(rows))][: len(rows)]
    pd.DataFrame(columns).to_csv(folder / ANSWERS, index=False)


def with_evaluation(folder: Path, manifest: Manifest, **changed: object) -> Manifest:
    """Change fields of the evaluation, in the package as in its manifest, and what follows from them."""
    return evaluated(folder, manifest, compared(manifest.evaluation, **changed))  # type: ignore[arg-type]


def evaluated(folder: Path, manifest: Manifest, evaluation: EvaluationRecord) -> Manifest:
    """Write another evaluation into the package; the manifest that fits its files and its test rows."""
    weights, config = (sha256_file(folder / name) for name in ADAPTER_FILES)
    base = {"base_files_sha256": manifest.base_model.files_sha256}
    own: dict[str, object] = {"clusters": GROUPS["test"], **base}
    if evaluation.adapter_config_sha256 == manifest.evaluation.adapter_config_sha256:
        own["adapter_config_sha256"] = config
    if evaluation.adapter_sha256 == manifest.evaluation.adapter_sha256:  # else a test names another adapter
        own["adapter_sha256"] = weights
    params = {**GATES, **manifest.params}
    prepared = {**params["data"], "bias_columns": list(evaluation.bias)}
    asked = [evaluation.primary, *(name for name in evaluation.metrics if name != evaluation.primary)]
    limits = {column.limit for column in evaluation.bias.values()} or {params["evaluate"]["max_gap"]}
    measured = {**params["evaluate"], "metrics": asked, "max_gap": next(iter(limits))}
    if evaluation.settings == manifest.evaluation.settings:  # else a test names others
        own["settings"] = measured
    evaluation = evaluation.model_copy(update=own)
    (folder / EVALUATION).write_text(evaluation.to_json())
    write_answers(folder, evaluation)
    report = sha256_file(folder / EVALUATION)
    test = manifest.data.splits["test"].model_copy(
        update={"rows": evaluation.rows, "sha256": evaluation.test_sha256}
    )
    made = manifest.model_copy(
        update={
            "evaluation": evaluation,
            "evaluation_report_sha256": report,
            "bias": BiasAssessment.of(evaluation, report),
            "data": manifest.data.model_copy(
                update={"splits": {**manifest.data.splits, "test": test}, "settings": prepared, **base}
            ),
            "training": manifest.training.model_copy(
                update={"settings": params["train"], "adapter_sha256": weights, **base}
            ),
            "params": {**params, "data": prepared, "evaluate": measured},
        }
    )
    if not manifest.files or MODEL_CARD in manifest.files:
        write_card(folder, made)
    files = {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.iterdir())
        if not manifest.files or path.name in {*manifest.files, EVALUATION, ANSWERS}
    }
    size = sum(files[name].bytes for name in ADAPTER_FILES)
    return made.model_copy(update={"files": files, "size_bytes": size})


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the model card that a manifest gives, where it names what a card says."""
    with suppress(ValidationError, KeyError):
        card = model_card(manifest, TenantSettings.model_validate(manifest.params))
        (folder / MODEL_CARD).write_text(card, encoding="utf-8")


def with_card(folder: Path, manifest: Manifest) -> Manifest:
    """Let the model card follow from a manifest that was changed; the manifest that fits it."""
    write_card(folder, manifest)
    path = folder / MODEL_CARD
    card = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
    return manifest.model_copy(update={"files": {**manifest.files, MODEL_CARD: card}})


def trained_alike(
    folder: Path, manifest: Manifest, common: Manifest, seed: int, rank: int, value: float
) -> Manifest:
    """Make a package of the same base model, data and test rows as `common`, of one recipe and its result."""
    result = Interval(value=value, low=max(0, value - 0.05), high=min(1, value + 0.05))
    metrics = {"exact_match": {BASE: interval(0.1), BASE_FEW_SHOT: interval(0.1), ADAPTER: result}}
    alike = with_evaluation(folder, manifest, test_sha256=common.evaluation.test_sha256, metrics=metrics)
    same = {name: getattr(common, name) for name in ("base_model", "data")}
    recipe = {**GATES["train"], "seed": seed, "rank": rank}
    own = {"settings": recipe, "adapter_sha256": alike.training.adapter_sha256}
    training = common.training.model_copy(update=own)
    return alike.model_copy(update={**same, "training": training, "params": {**alike.params, "train": recipe}})


@pytest.fixture(scope="session", autouse=True)
def resampled_once() -> Iterator[None]:
    """Resample the same answers and votes once in a worker: nearly all packages and reviews have the same.

    The functions depend on their arguments alone, which are compared in full.
    """
    known: dict[Any, Any] = {}

    def once(of: Callable[..., Any]) -> Callable[..., Any]:
        def found(*given: Any) -> Any:
            key = (of, *map(_as_key, given))
            if key not in known:
                known[key] = of(*given)
            return known[key]

        return found

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((compare, "difference"), (compare, "interval"), (evidence, "alpha")):
            patch.setattr(module, name, once(getattr(module, name)))
        yield


def _as_key(given: Any) -> Any:
    if isinstance(given, Sample):
        return given.parts.shape, given.parts.dtype.str, given.parts.tobytes(), given.statistic
    return repr(given) if isinstance(given, dict) else given


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def package(tmp_path: Path) -> Build:
    """Build a package: `package(seed, tenant=..., fresh_days=...)` gives its folder and its manifest."""

    def build(seed: int = 1, **options: object) -> tuple[Path, Manifest]:
        folder = tmp_path / "packages" / f"{options.get('tenant', 'finance')}-{seed}"
        return folder, build_package(folder, seed, **options)  # type: ignore[arg-type]

    return build


def saved_again(folder: Path, manifest: Manifest) -> Manifest:
    """Write the same tensors with other bytes around them; the manifest that fits them."""
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    header, tensors = content[8 : 8 + int.from_bytes(content[:8], "little")], content[8:]
    padded = header + b" " * 8
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + tensors[len(header) :])
    return evaluated(folder, manifest, manifest.evaluation)


@pytest.fixture(scope="session")
def owners() -> Owners:
    return make_owners()


def make_owners() -> Owners:
    """One default team: an author, who may also approve, three approvers, a reviewer and two operators."""
    return Owners.model_validate(
        {
            "default": {
                "team": "Payments",
                "contacts": ["payments@example.com"],
                "escalation": ["cro@example.com"],
                "review_cadence_days": 90,
                "people": [
                    {
                        "id": name,
                        "name": name.title(),
                        "email": f"{name}@example.com",
                        "logins": [f"{name}.silva"] if name == AUTHOR else [],
                        "roles": [role],
                        "keys": [public_key(name)] if role == "approver" else [],
                    }
                    for role, names in (
                        ("approver", (AUTHOR, FIRST, SECOND, "dana")),
                        ("reviewer", ("eve",)),
                        ("operator", ("ci", "oncall")),
                    )
                    for name in names
                ],
            }
        }
    )


@pytest.fixture
def registry(tmp_path: Path, owners: Owners, clock: Clock) -> Iterator[Registry]:
    opened = Registry(tmp_path / "registry", create=True, owners=owners, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def older_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take packages as earlier releases did, which asked less of a manifest."""
    monkeypatch.setattr(Registry, "_require_fit", staticmethod(require_consistent))


@pytest.fixture
def written_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take evaluations whose numbers a test writes down, so that no answers give them."""
    monkeypatch.setattr(store, "require_recounted", lambda folder, manifest: None)


class OlderRegistry(Registry):
    """Registers versions as releases did that asked for less and stated no digest of the weights."""

    def _require_fit(self, package: Path, manifest: Manifest) -> None:
        require_consistent(package, manifest)

    def _insert(self, *given: Any) -> None:
        change, action, manifest, signature, _, *rest = given
        super()._insert(change, action, manifest, signature, None, *rest)


@pytest.fixture
def older_registry(tmp_path: Path, owners: Owners, clock: Clock) -> Iterator[Registry]:
    """Open the folder of `registry` as an earlier release would."""
    opened = OlderRegistry(tmp_path / "registry", create=True, owners=owners, clock=clock)
    yield opened
    opened.close()


def rows_of(kind: str, adapter: str, at: datetime) -> str:
    """Write raw results of one kind that a step may rest on; of other kinds a text. Votes have no rows."""
    rows: list[dict[str, object]] = []
    if kind == "policy":
        rows = [{"check": "no-advice", "prompt": f"prompt {i}", "passed": True} for i in range(40)]
    elif kind in ("shadow", "canary"):
        rows = [{"time": at.isoformat(), "status": 200, "request_id": str(i)} for i in range(100)]
    else:
        return f"# {kind} of {adapter}\n\nWhat happened, and what was done about it.\n"
    return "".join(json.dumps({"adapter": adapter, **row}) + "\n" for row in rows)


def policy(*checks: str, failed: int = 0) -> list[dict[str, object]]:
    return [{"check": name, "prompt": str(i), "passed": i >= failed} for name in checks for i in range(30)]


REVIEWERS = ("dana", "ben", "chen")
Say = Callable[[int, str], str]
"""Place of a pair in the plan and reviewer to `adapter`, `same` or `other`."""


def fill_in(
    registry: Registry,
    session: Session,
    person: str,
    say: Say,
    more: Callable[[int], dict[str, Any]] = lambda place: {},
) -> None:
    """Let a reviewer judge every pair of their list, as the notebook does."""
    desk = Desk(registry, session, person, registry.clock)
    rows = [pair.row for pair in session.plan.pairs]
    for place, task in enumerate(session.plan.tasks[person], 1):
        said = say(rows.index(task.row), person)
        sides = {"adapter": task.adapter, "other": "left" if task.adapter == "right" else "right"}
        judgement = {"vote": sides.get(said, "same"), **more(place)}
        desk.say(place, Judgement.model_validate(judgement))


def reviewed(
    registry: Registry, reference: str, say: Say, people: Sequence[str] = (), pairs: int = 20
) -> Report:
    """Let people vote on a version in a new review session, submit their votes and count them.

    Without names two people vote who have a key and are not the author.
    """
    version = registry.get(reference, whole=False)
    assert registry.owners is not None
    team = registry.owners.team(version.tenant)
    author = team.person(version.summary.author)
    known = {one.id: one.keys for one in team.people if one != author}
    people = people or [one for one in REVIEWERS if public_key(one) in known.get(one, ())][:2]
    shutil.rmtree(folder_of(registry, version), ignore_errors=True)
    session = start(
        registry, reference, actor=people[0], reviewers=people, pairs=pairs, annotators=len(people), seed=1
    )
    for person in people:
        fill_in(registry, session, person, say)
        submit(registry, session, actor=person, key=ssh_key(person))
    return make_report(registry, reference)[0]


def file_votes(registry: Registry, reference: str, say: Say, pairs: int = 20) -> None:
    """Let people vote on a version, and file the evidence."""
    lifecycle.file_evidence(registry, reference, reviewed(registry, reference, say, pairs=pairs), actor="eve")


def won(place: int, person: str) -> str:
    """Let the adapter win 12 pairs, lose 3, and be as good in the others."""
    return "adapter" if place < 12 else "other" if place < 15 else "same"


def losing(pairs: int) -> Say:
    """Let the adapter lose the first `pairs` pairs and win the others."""
    return lambda place, person: "other" if place < pairs else "adapter"


AT_ONCE = {
    "hours": 0,
    "regression": False,
    "release_notes": False,
    "policy": "file",
    "rollout": "optional",
}
"""What a registry asks for whose clock stands still, whose packages keep no suite, and that nobody serves."""


class Story:
    """Takes a version through its life, one stage after the other, with everything that each needs.

    Less evidence is asked for than by default: see `AT_ONCE`.
    """

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        registry.least = registry.least.model_copy(update=AT_ONCE)

    def evidence(self, *kinds: str, about: str = "finance@1") -> list[Report]:
        """Count raw results of some kinds into reports about one version; nothing is filed yet."""
        self.folder.mkdir(exist_ok=True)
        made = []
        for kind in kinds:
            if kind == "human_evaluation":
                made.append(reviewed(self.registry, about, won))
                continue
            report = self.folder / f"{kind}.txt"
            report.write_text(rows_of(kind, about, self.registry.clock()))
            made.append(make(self.registry, about, kind, report))
        return made

    def file(self, *kinds: str, about: str = "finance@1") -> None:
        """File evidence of some kinds, each in a change of its own."""
        for report in self.evidence(*kinds, about=about):
            lifecycle.file_evidence(self.registry, about, report, actor="ci")

    def approve(self, reference: str, *people: str) -> None:
        """Let people approve, each with a key of their own."""
        for person in people or (FIRST, SECOND):
            key = ssh_key(person)
            lifecycle.approve(self.registry, reference, actor=person, reason="the canary is fine", key=key)

    def to(self, reference: str, stage: str) -> Version:
        """Promote stage by stage until the version is in `stage`."""
        version = self.registry.get(reference)
        while version.state != stage:
            step, _ = missing_for(self.registry, version.id)
            assert step, f"{version.id} is {version.state}: no way to {stage}"
            given: list[Report] = []
            if step == "production":
                self.file("canary", about=version.id)
                self.approve(version.id)
            else:
                kinds = EVIDENCE[version.state, step] - {"evaluation", "regression"}
                given = self.evidence(*kinds, about=version.id)
            version = lifecycle.promote(
                self.registry, version.id, step, actor="ci", reason="next", evidence=given
            )
        return version

    def to_rollout(self) -> None:
        """Bring finance@1 into production, and finance@2 to where its rollout may begin."""
        self.to("finance@1", "production")
        self.to("finance@2", "validated")
        self.file("human_evaluation", about="finance@2")


@pytest.fixture
def story(registry: Registry, tmp_path: Path) -> Story:
    return Story(registry, tmp_path / "reports")


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory, owners: Owners) -> Path:
    """Make one registry, to be copied: finance@1 in production, finance@2 in canary, finance@3 in shadow."""
    folder = tmp_path_factory.mktemp("staged")
    with closing(Registry(folder / "registry", create=True, owners=owners, clock=Clock())) as registry:
        story = Story(registry, folder / "reports")
        for seed, stage in ((1, "production"), (2, "canary"), (3, "shadow")):
            manifest = build_package(folder / f"package-{seed}", seed, fresh_days=3650)
            registry.register(folder / f"package-{seed}", manifest, actor=AUTHOR)
            story.to(f"finance@{seed}", stage)
    return folder / "registry"


@pytest.fixture
def server(_wandb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> WandbServer:
    """A W&B that knows nothing yet."""
    monkeypatch.setenv("WANDB_MODE", "online")
    _wandb.clear()
    return _wandb


@pytest.fixture
def connect(server: WandbServer) -> Callable[..., WandbProject]:
    """Connect to the W&B project, as one more machine each time: `connect(collection=...)`."""
    return lambda **settings: WandbProject(WandbSettings(retries=1, **settings))


@pytest.fixture
def bad_release(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@2 took over from finance@1."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana")
    for version in ("finance@1", "finance@2"):
        story.to(version, "production")
    return registry
