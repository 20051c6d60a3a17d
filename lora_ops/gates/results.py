"""The answers to a suite, as tables for people and as the file that the package keeps."""

from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.folders import make_folder
from lora_ops.gates.expectations import Patience, mismatches, score
from lora_ops.paths import CASE_ANSWERS, POLICY_ANSWERS
from lora_ops.records.policy import PolicyPromptsRecord
from lora_ops.records.suite import AnswersRecord, CasesRecord

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 200
"""Characters of a question or an answer in a table."""


def write_case_answers(answers: AnswersRecord, policy: AnswersRecord, folder: Path) -> None:
    """Write the answers to both suites into `folder`, where `package` takes them from."""
    make_folder(folder)
    (folder / CASE_ANSWERS).write_text(answers.to_json(), encoding="utf-8")
    (folder / POLICY_ANSWERS).write_text(policy.to_json(), encoding="utf-8")


def case_table(cases: CasesRecord, answers: AnswersRecord, *, only_wrong: bool = False) -> "pd.DataFrame":
    """Return question, answer, score and what is wrong of each case; those that must pass come first."""
    import pandas as pd

    given = {one.key: one.texts for one in answers.answers}
    rows, patience = [], Patience()
    for one in sorted(cases.cases, key=lambda one: not one.case.must_pass):
        texts, case = given[one.key], one.case
        worth = score(case, texts, cases.labels, patience)
        wrong = (
            [what for text in texts for what in mismatches(case.expect, text, cases.labels, patience)]
            if case.expect
            else []
        )
        asked = case.text or case.prompt or case.turns[-1].content
        rows.append(
            {
                "slice": case.slice,
                "case": case.id,
                "must pass": "yes" if case.must_pass else "",
                "question": asked[:SHOWN],
                "answer": texts[0][:SHOWN],
                "score": round(worth, 3),
                "what is wrong": "; ".join(dict.fromkeys(wrong)),
            }
        )
    frame = pd.DataFrame(
        rows, columns=["slice", "case", "must pass", "question", "answer", "score", "what is wrong"]
    )
    return frame[frame["score"] < 1].reset_index(drop=True) if only_wrong else frame


def slice_table(cases: CasesRecord, answers: AnswersRecord) -> "pd.DataFrame":
    """Return of each slice its cases, their mean score, the margin, and whether it gates."""
    import pandas as pd

    given = {one.key: one.texts for one in answers.answers}
    rows, patience = [], Patience()
    for name, chosen in cases.slices.items():
        scores = [
            score(one.case, given[one.key], cases.labels, patience)
            for one in cases.cases
            if one.case.slice == name
        ]
        rows.append(
            {
                "slice": name,
                "about": chosen.about,
                "cases": len(scores),
                "mean": round(sum(scores) / len(scores), 3),
                "gates": f"margin {chosen.margin:g}" if chosen.gating else "shown only",
            }
        )
    return pd.DataFrame(rows, columns=["slice", "about", "cases", "mean", "gates"])


def policy_table(prompts: PolicyPromptsRecord, answers: AnswersRecord) -> "pd.DataFrame":
    """Return prompt and answer of the policy suite, those of the red team first."""
    import pandas as pd

    given = {one.key: one.texts[0] for one in answers.answers}
    rows = [
        {"kind": one.kind, "prompt": one.text[:SHOWN], "answer": given[one.key][:SHOWN]}
        for one in prompts.prompts
    ]
    return pd.DataFrame(rows, columns=["kind", "prompt", "answer"])
