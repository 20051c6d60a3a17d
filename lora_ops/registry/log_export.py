"""The audit log as a file for an auditor: signed, and checked without the registry.

The signature lies beside the file as openssl writes it, so that nobody needs lora-ops to check it:
`openssl dgst -sha256 -verify FILE.pub -signature FILE.sig FILE`.
"""

import csv
import io
import json
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lora_ops.clock import utc
from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, disk_reason
from lora_ops.hashing import canonical
from lora_ops.registry.audit import Head, Row, chain_problem
from lora_ops.registry.files import write_atomically
from lora_ops.registry.signing_keys import key_fingerprint, matches_signature
from lora_ops.registry.store import Registry
from lora_ops.small_files import parse_json, read_small

Format = Literal["json", "csv"]
SCHEMA = 1


class Export(NamedTuple):
    """What an export holds.

    Attributes:
        head: where its log ends.
        entries: how many there are.
        key: fingerprint of the key that signed the file.
    """

    head: Head
    entries: int
    key: str


def export_log(registry: Registry, target: Path, form: Format) -> Export:
    """Write the whole log to `target`, its signature to `target.sig` and the public key to `target.pub`.

    Both forms hold every field that the hashes are taken of; in CSV the body of an entry is a cell of JSON.

    Raises:
        Damaged: the log can't be trusted.
        Unavailable: `target` can't be written, or the private key can't be used.
        LoraOpsError: `target` exists, or is no file.
    """
    signature_file, key_file = beside(target)
    for path in (target, signature_file, key_file):
        if path.exists():
            raise Refused(f"{path} exists already: name a new file.")
    problem = registry.follower.problem()
    if problem:
        raise Damaged(f"The audit log in {registry.path} can't be trusted, so it is not exported: {problem}.")
    rows = registry.log.rows()
    content = _as_csv(rows) if form == "csv" else _as_json(registry, rows)
    signature = registry.signer.sign_text(content)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(key_file, registry.signer.public_key(signature["key"]).encode())
        write_atomically(signature_file, b64decode(signature["value"]))
        # Last, so that a file that is there has its signature.
        write_atomically(target, content.encode())
    except OSError as error:
        raise Unavailable(f"The log can't be written to {target} ({disk_reason(error)}).") from error
    return Export(_end(rows), len(rows), signature["key"])


def check_export(target: Path, *, keys: Sequence[str] = ()) -> Export:
    """Check an exported log: the signature, the chain of hashes, and that the key is one of `keys` (if any).

    Raises:
        Damaged: something does not fit; the text says what.
        LoraOpsError: a file is missing.
    """
    signature_file, key_file = beside(target)
    try:
        content, signature, public = (
            read_small(target),
            read_small(signature_file),
            read_small(key_file),
        )
    except OSError as error:
        raise LoraOpsError(
            f"{target} can't be checked ({error}): {signature_file.name} and {key_file.name} belong beside it."
        ) from error
    key = key_fingerprint(public)
    if keys and key not in keys:
        raise Damaged(f"{target} is signed by key {key}, which is none of those that are trusted here.")
    if not matches_signature(public, content, signature):
        raise Damaged(f"{target} was changed: the signature beside it does not fit.")
    try:
        text = content.decode()
        rows = _read_json(text) if text.startswith("{") else _read_csv(text)
        broken = chain_problem(rows)
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise Damaged(f"{target} holds no audit log: {error}.") from error
    if broken:
        raise Damaged(f"The log in {target} is not whole: {broken}.")
    return Export(_end(rows), len(rows), key)


def beside(target: Path) -> tuple[Path, Path]:
    """Return where the signature and the public key of an exported log lie.

    Raises:
        LoraOpsError: `target` names no file.
    """
    if not target.name or target.is_dir():
        raise LoraOpsError(f"'{target}' is no file: name a file, such as audit-2026.json.")
    return target.with_name(f"{target.name}.sig"), target.with_name(f"{target.name}.pub")


def _end(rows: Sequence[Row]) -> Head:
    return Head(rows[-1].seq, rows[-1].hash) if rows else Head()


def _as_json(registry: Registry, rows: Sequence[Row]) -> str:
    entries = [{**row._asdict(), "body": json.loads(row.body)} for row in rows]
    document = {"schema": SCHEMA, "exported_at": utc(registry.clock()), "head": _end(rows), "entries": entries}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _read_json(text: str) -> list[Row]:
    return [Row(**{**entry, "body": canonical(entry["body"])}) for entry in parse_json(text)["entries"]]


def _as_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return out.getvalue()


def _read_csv(text: str) -> list[Row]:
    # A field holds a whole owners.yaml, and csv takes 131,072 characters.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        names, *rows = csv.reader(io.StringIO(text, newline=""))
    finally:
        csv.field_size_limit(limit)
    if tuple(names) != Row._fields:
        raise ValueError(f"its columns are {', '.join(names)}")
    return [Row(int(seq), int(form), *texts) for seq, form, *texts in rows]
