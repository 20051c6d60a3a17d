"""The weekly drift check on real adapters: what is silent, what is told, and what can't be compared."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.errors import LoraOpsError, NotFound, Refused
from lora_ops.hashing import sha256_bytes
from lora_ops.loading import load_tokenizer
from lora_ops.monitoring.drift import Found, Measured, check, compare, kept_measurement, last_reference
from lora_ops.monitoring.drift_measurement import ADAPTER, BASE, Measurement, Probe, Side, running
from lora_ops.monitoring.drift_set import drift_set_path, write_drift_set
from lora_ops.monitoring.drift_tests import divergences
from lora_ops.prompts import render_prompt
from lora_ops.records.evidence import DriftEvidence
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.gc import named_digests
from lora_ops.registry.packages import export, verified_path
from lora_ops.registry.reports import Report, load
from lora_ops.registry.verification import verify
from lora_ops.settings.drift import DriftSettings
from tests.conftest import record_base
from tests.conftest import run as command
from tests.monitoring.conftest import drift_rows
from tests.serving.conftest import SYSTEM, Clone

ACTOR = "ana.silva"


STRICT = DriftSettings(kl=0.001, other_version=0.001)
"""The tiny model is random: its adapters move probabilities by hundredths of nats."""


def run(clone: Clone, *asked: str, **options: object) -> list[Found]:
    """Check drift, and return what was found; one of several failures is an error here."""
    settings = clone.settings().model_copy(update={"drift": options.pop("settings", STRICT)})
    with clone.registry() as registry:
        done = check(registry, clone.root, settings, asked, actor=ACTOR, **options)  # type: ignore[arg-type]
    assert not done.not_measured
    return done.found


def test_drift_of_an_unchanged_version_is_none(clone: Clone) -> None:
    (first,) = run(clone, "finance@1")
    (second,) = run(clone, "finance@1")
    assert (first.document.verdict, second.document.verdict) == ("reference", "none")
    assert second.document.reference_sha256 == first.document.source.sha256
    assert [(one.name, one.difference, one.p_corrected) for one in second.document.metrics] == [
        ("next token", 0, 1),
        ("hidden state", 0, 1),
    ]
    assert second.document.metrics[0].beside_base > 0.001  # the adapter does change answers
    assert second.document.metrics[0].changed == 0 and not second.document.differs


def test_drift_of_another_version_is_told_and_kept(clone: Clone) -> None:
    """Its record says so, each file is named by the log, and the verdict can be computed again."""
    run(clone, "finance@1")
    (found,) = run(clone, "finance@2", against="finance@1")
    document = found.document
    assert document.verdict == "drifted" and document.against == "finance@1"
    assert [one.is_judged for one in document.metrics] == [True, False]
    assert "another version: finance@1, now finance@2" in document.differs
    with clone.registry() as registry:
        known = record(registry, "finance@2")
        assert known.risk.drift and known.risk.drift.verdict == "drifted"
        assert any("drifted" in note for note in known.verdict.warnings)
        assert {document.source.sha256, found.evidence_sha256} <= named_digests(registry)
        assert not verify(registry).problems
        kept = [
            kept_measurement(registry, one)
            for one in (document.reference_sha256, document.source.sha256)
            if one
        ]
        version = registry.get("finance@2")
        again = compare(registry, [Measured(version, kept[1].measurement, kept[0])], STRICT)
        assert again[0].metrics == document.metrics and again[0].verdict == "drifted"
        assert isinstance(load(registry.files, known.history[-1].evidence[-1]), DriftEvidence)


def test_drift_of_the_base_alone_cannot_be_told(clone: Clone) -> None:
    """What moves the base too is no drift of the adapter, whoever looks at the adapter alone."""
    (first,) = run(clone, "finance@1")
    with clone.registry() as registry:
        version = registry.get("finance@1")
        reference = last_reference(registry, version)
        assert reference and reference.sha256 == first.document.source.sha256
        sides = {
            name: Side(one.tokens[:, ::-1], one.logprobs, one.rest, -one.states)
            for name, one in reference.measurement.sides.items()
        }
        moved = Measurement(reference.measurement.facts, sides)
        (document,) = compare(registry, [Measured(version, moved, reference)], STRICT)
        assert document.verdict == "cannot tell" and "the base model moved too" in document.said
        only = {BASE: reference.measurement.sides[BASE], ADAPTER: sides[ADAPTER]}
        alone = Measurement(reference.measurement.facts, only)
        (document,) = compare(registry, [Measured(version, alone, reference)], STRICT)
        assert document.verdict == "drifted"


def test_drift_measures_all_tenants_beside_one_that_fails(clone: Clone) -> None:
    drift_set_path(clone.root, "healthcare").unlink()
    with clone.registry() as registry:
        done = check(registry, clone.root, clone.settings(), (), actor=ACTOR)
    assert [one.version.id for one in done.found] == ["finance@2"]
    assert "There is no suites/healthcare.drift.jsonl" in done.not_measured["healthcare"]
    assert len(done.not_measured) == 1  # of media and publishing nothing answers


def change_set(clone: Clone) -> None:
    write_drift_set(clone.root, "finance", drift_rows(29), replace=True)


def change_base(clone: Clone) -> None:
    path = clone.base / "model.safetensors"
    save_file({key: tensor + 0.01 for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    record_base(clone.base)


def lose_measurement(clone: Clone) -> None:
    with clone.registry() as registry:
        reference = last_reference(registry, registry.get("finance@1"))
        assert reference
        registry.files.path(reference.sha256).write_bytes(b"no measurement")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_set, r"finance.drift.jsonl changed since the reference .* --new-reference"),
        (change_base, "finance@1 was trained on .*: its drift can't be measured here"),
        (lose_measurement, "a measurement of drift was changed on disk"),
        (lambda clone: drift_set_path(clone.root, "finance").write_text('{"id": "1"}\n'), "line 1: "),
        (lambda clone: drift_set_path(clone.root, "finance").write_bytes(b"\xff\n"), "line 1: "),
        (lambda clone: change_rows(clone, lambda text: text.splitlines()[0] + "\n"), "1 rows, and at least 20"),
        (lambda clone: change_rows(clone, lambda text: text + text.splitlines()[3]), "line 31: .* in line 4"),
    ],
)
def test_drift_refuses_what_cannot_be_compared(
    clone: Clone, change: Callable[[Clone], None], told: str
) -> None:
    run(clone, "finance@1")
    change(clone)
    with clone.registry() as registry:
        before = len(registry.log.rows())
        with pytest.raises(LoraOpsError, match=told):
            check(registry, clone.root, clone.settings(), ["finance@1"], actor=ACTOR)
        assert len(registry.log.rows()) == before


def change_rows(clone: Clone, change: Callable[[str], str]) -> None:
    path = drift_set_path(clone.root, "finance")
    path.write_text(change(path.read_text()))


def test_drift_takes_a_new_reference_where_the_set_changed(clone: Clone) -> None:
    run(clone, "finance@1")
    change_set(clone)
    (found,) = run(clone, "finance@1", renew=True)
    assert found.document.verdict == "reference" and found.document.rows == 29
    assert run(clone, "finance@1")[0].document.verdict == "none"


def test_new_reference_makes_no_drift_forgotten(clone: Clone) -> None:
    run(clone, "finance@1")
    assert run(clone, "finance@2", against="finance@1")[0].document.verdict == "drifted"
    for _ in range(2):
        (first,) = run(clone, "finance@2", renew=True)
        assert (
            first.document.verdict == "reference" and "before its reference: drifted (" in first.document.said
        )
    (later,) = run(clone, "finance@2")
    assert later.document.verdict == "none"
    assert later.document.replaced and later.document.replaced.startswith("drifted (")
    with clone.registry() as registry:
        known = record(registry, "finance@2")
        assert any("before its reference: drifted" in note for note in known.verdict.warnings)


def test_check_against_another_makes_no_drift_forgotten(clone: Clone) -> None:
    """Nor does it tell of what happened to the other version."""
    drift(clone, "finance@1")
    lenient = DriftSettings(kl=100, other_version=100)
    for settings, verdict in ((STRICT, "drifted"), (lenient, "none")):
        (beside,) = run(clone, "finance@1", against="finance@2", settings=settings)
        assert beside.document.verdict == verdict
        assert "; before it: drifted (" in beside.document.said and beside.document.said.count("before") == 1
    with clone.registry() as registry:
        assert any("drifted (" in note for note in record(registry, "finance@1").verdict.warnings)
    (first,) = run(clone, "finance@1", renew=True)
    assert first.document.replaced and first.document.replaced.count("drifted (") == 1
    (other,) = run(clone, "finance@2", against="finance@1", settings=lenient)
    assert other.document.verdict == "none" and other.document.replaced is None


def drift(clone: Clone, name: str) -> None:
    """File that a version drifted from its own reference; of the other one only the reference."""
    run(clone, "finance@1", "finance@2")
    with clone.registry() as registry:
        version = registry.get(name)
        reference = last_reference(registry, version)
        assert reference
        one = reference.measurement.sides[ADAPTER]
        moved = Side(one.tokens[:, ::-1], one.logprobs, one.rest, -one.states)
        sides = {BASE: reference.measurement.sides[BASE], ADAPTER: moved}
        now = Measured(version, Measurement(reference.measurement.facts, sides), reference)
        (document,) = compare(registry, [now], STRICT)
        assert document.verdict == "drifted"
        report = Report(document, now.measurement.to_bytes(), document.said)
        lifecycle.file_evidence(registry, name, report, actor=ACTOR)


def test_drift_refuses_versions_and_people_it_does_not_know(clone: Clone) -> None:
    with pytest.raises(NotFound, match="finance"):
        run(clone, "finance@9")
    with pytest.raises(NotFound, match="finance@1 has no reference yet"):
        run(clone, "finance@2", against="finance@1")
    with clone.registry() as registry, pytest.raises(Refused, match="stranger"):
        check(registry, clone.root, clone.settings(), ["finance@1"], actor="stranger")


def test_drift_set_is_replaced_only_when_asked(clone: Clone) -> None:
    path = drift_set_path(clone.root, "finance")
    before = sha256_bytes(path.read_bytes())
    with pytest.raises(Refused, match="finance.drift.jsonl exists"):
        write_drift_set(clone.root, "finance", drift_rows(25))
    assert sha256_bytes(path.read_bytes()) == before


def test_measurement_is_the_same_bytes_after_reading(clone: Clone) -> None:
    (found,) = run(clone, "finance@1")
    with clone.registry() as registry:
        kept = kept_measurement(registry, found.document.source.sha256).measurement
    assert sha256_bytes(kept.to_bytes()) == found.document.source.sha256
    with pytest.raises(LoraOpsError, match="can't be read"):
        Measurement.from_bytes(json.dumps({}).encode())


@pytest.mark.parametrize("named", [8, 390])
def test_kept_divergence_is_close_to_that_of_all_tokens(clone: Clone, named: int) -> None:
    """Summing up unlikely tokens never makes a divergence larger, and with nearly all named hardly smaller."""
    tokenizer = load_tokenizer(clone.base)
    texts = [render_prompt(tokenizer, row.text, SYSTEM) for row in drift_rows()]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    folders = []
    with clone.registry() as registry:
        for number in (1, 2):
            folders.append(clone.root / f"exported-{number}")
            export(registry, f"finance@{number}", folders[-1], for_review=True)
    with running(TorchEngine(clone.base), clone.base) as probe:
        all_tokens = [probe.measure(one, None, prompts, 1000) for one in folders]
        first = probe.measure(folders[0], None, prompts, named)
        second = probe.measure(folders[1], None, prompts, named, first)
    whole, kept = (
        divergences(all_tokens[0][ADAPTER], all_tokens[1][ADAPTER]),
        divergences(first[ADAPTER], second[ADAPTER]),
    )
    exact = [all_tokens[place][ADAPTER] for place in (0, 1)]
    order = [np.argsort(one.tokens, axis=1) for one in exact]
    p, q = (np.take_along_axis(one.logprobs.astype(float), by, 1) for one, by in zip(exact, order, strict=True))
    by_hand = ((np.exp(p) - np.exp(q)) * (p - q)).sum(1) / 2
    np.testing.assert_allclose(whole, by_hand, rtol=1e-4)
    assert (kept <= whole + 1e-6).all()
    assert named == 8 or kept.mean() > 0.9 * whole.mean()


def test_monitor_drift_prints_its_verdict_as_json(clone: Clone) -> None:
    """Both runs are commands, as cron starts them; drift and what was not measured end with 1."""
    words = ("lora-ops", "monitor", "drift", "finance@1", "--actor", ACTOR, "--json")
    done = command(*words, cwd=clone.root)
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert [one["verdict"] for one in told["versions"]] == ["reference"] and not told["not_measured"]
    refused = command(*words[:3], "finance@1", "--against", "healthcare@1", "--json", cwd=clone.root)
    assert refused.returncode != 0 and "error" in json.loads(refused.stdout)


def test_probe_of_a_server_names_few_tokens_and_no_state(clone: Clone) -> None:
    """What an OpenAI-compatible engine tells, by the protocol alone; its divergence is a lower bound."""
    tokenizer = load_tokenizer(clone.base)
    texts = [render_prompt(tokenizer, row.text, SYSTEM) for row in drift_rows(5)]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    with clone.registry() as registry:
        folder = verified_path(registry, "finance@1")
    with running(TorchEngine(clone.base), clone.base) as probe:
        whole = probe.measure(folder, None, prompts, 1000)

        class Server:
            """The engine with the protocol's methods and no other."""

            load, unload, generate = probe._engine.load, probe._engine.unload, probe._engine.generate

        few = Probe(Server(), probe._portal, tokenizer).measure(folder, None, prompts, 1000)  # type: ignore[arg-type]
    for name in (ADAPTER, BASE):
        assert few[name].tokens.shape == (5, 20) and few[name].states.shape == (5, 0)
        assert (divergences(whole[name], few[name]) < 1e-4).all()
    assert (divergences(few[ADAPTER], few[BASE]) <= divergences(whole[ADAPTER], whole[BASE]) + 1e-6).all()
