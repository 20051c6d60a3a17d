"""The detectors beside what they replaced, and beside Presidio: precision and recall on the same rows.

The made rows are forms that the recognisers' author thought of, a quarter of them in full-width or Arabic
digits or with odd spaces. No other detector was made for these. The templates are Presidio's own.

Presidio imports spaCy (550 MB), so it has an environment of its own:

    python -m venv /tmp/presidio && /tmp/presidio/bin/pip install presidio-analyzer==2.2.366
    python benchmarks/detectors.py --presidio /tmp/presidio/bin/python
"""

import argparse
import json
import subprocess
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_ops.detectors.identifiers import Found, find_identifiers
from lora_ops.detectors.insults import packaged_insults
from lora_ops.detectors.made_identifiers import IdentifierRow, made_identifiers
from lora_ops.detectors.measure import measure_identifiers, measure_insults
from lora_ops.detectors.samples import presidio_templates, pyrit_replies, real_toxicity_prompts

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "data/raw"
BEFORE = "27efc61"  # the last commit with lora_ops/pii.py and the list of words
KINDS = {
    "EMAIL_ADDRESS": "e-mail address",
    "IBAN_CODE": "IBAN",
    "CREDIT_CARD": "payment card number",
    "US_SSN": "US social security number",
    "IP_ADDRESS": "IP address",
    "PHONE_NUMBER": "phone number",
}
# Runs in Presidio's environment: rows in, spans out. Without this line tldextract asks the network for a list.
PRESIDIO = """
import json, sys, spacy, tldextract
tldextract.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import SpacyNlpEngine
class Blank(SpacyNlpEngine):
    def __init__(self):
        super().__init__()
        self.nlp = {"en": spacy.blank("en")}
    def load(self): pass
    def is_loaded(self): return True
engine = AnalyzerEngine(nlp_engine=Blank(), supported_languages=["en"])
texts, kinds = json.load(sys.stdin)
found = [engine.analyze(text, "en", entities=kinds, score_threshold=0.4) for text in texts]
json.dump([[(one.entity_type, one.start, one.end) for one in each] for each in found], sys.stdout)
"""


class Words:
    """The list of words that scored answers before, from git's history; 0.5 is swearing at nobody."""

    name, version, digest, threshold = "list of words", BEFORE, "0" * 64, 0.5

    def __init__(self) -> None:
        self._module = before("lora_ops/serving/risk.py", "from lora_ops.pii import redact", "")

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return each text's score."""
        return [self._module.toxicity(text) for text in texts]


def before(path: str, old: str = "", new: str = "") -> types.ModuleType:
    """Return a module as it was, with `old` replaced."""
    source = subprocess.run(
        ["git", "show", f"{BEFORE}:{path}"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    module = types.ModuleType(Path(path).stem)
    exec(compile(source.replace(old, new) if old else source, path, "exec"), module.__dict__)
    return module


def five_expressions() -> Callable[[str], list[Found]]:
    """Return the search of lora_ops/pii.py; full-width digits in an IP address raised an error."""
    search = before("lora_ops/pii.py").find_pii

    def find(text: str) -> list[Found]:
        try:
            return [Found(*one) for one in search(text)]
        except ValueError:
            return []

    return find


def presidio(python: Path, rows: Sequence[IdentifierRow]) -> Callable[[str], list[Found]]:
    """Return what Presidio found in these rows."""
    texts = [row.text for row in rows]
    done = subprocess.run(
        [python, "-c", PRESIDIO], input=json.dumps([texts, list(KINDS)]), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{python} can't run Presidio: {done.stderr.strip().splitlines()[-1]}")
    spans = dict(zip(texts, json.loads(done.stdout), strict=True))
    return lambda text: [Found(KINDS[kind], start, end) for kind, start, end in spans[text]]


def main() -> None:
    """Print one line for each detector, kind and sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presidio", type=Path, help="a Python that has presidio-analyzer")
    chosen = parser.parse_args()
    samples = {"made": made_identifiers(), "templates": presidio_templates(RAW)}
    for sample, rows in samples.items():
        finders = {"now": find_identifiers, "before": five_expressions()}
        if chosen.presidio:
            finders["Presidio"] = presidio(chosen.presidio, rows)
        for name, find in finders.items():
            for one in measure_identifiers(rows, sample, find):
                print(f"{sample:10} {name:9} {one.target:26} P {one.precision}  R {one.recall}")
    for sample, replies in {"PyRIT": pyrit_replies(RAW), "web texts": real_toxicity_prompts(RAW)}.items():
        for detector in (packaged_insults(), Words()):
            one = measure_insults(detector, replies, sample)
            print(f"{sample:10} {detector.name:22} P {one.precision}  R {one.recall}")


if __name__ == "__main__":
    main()
