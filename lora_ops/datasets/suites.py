"""The expectations of a contract as suites in great-expectations' own JSON: generated ones, and a tenant's own.

A tenant's own suite is `suites/data/TENANT.json`, as `ExpectationSuite.to_json_dict()` writes it; of it
`expectations` suffices. It is about the source's columns, the generated suite about prompts and answers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ops.detectors.identifiers import KINDS
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_text
from lora_ops.settings.data import DataSettings
from lora_ops.small_files import read_json

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

OWN_SUITES = "suites/data"
IDENTIFIERS_SETTING = "data.on_pii or data.contract.allow_pii"


def default_suite(tenant: str, settings: DataSettings, *, tokens: bool) -> dict[str, Any]:
    """Return the suite that the tenant's settings ask for; `tokens` says whether prompts are rendered."""
    import great_expectations as gx

    suite = gx.ExpectationSuite(tenant, expectations=_defaults(settings, tokens=tokens))
    return dict(suite.to_json_dict())


def read_own_suite(tenant: str, root: Path) -> dict[str, Any] | None:
    """Return the tenant's own suite, or None where it has none.

    Raises:
        LoraOpsError: the file is not a suite in the JSON of great-expectations.
    """
    path = root / OWN_SUITES / f"{tenant}.json"
    if not path.is_file():
        return None
    where = f"{OWN_SUITES}/{tenant}.json"
    try:
        read = read_json(path)
    except OSError as error:
        raise LoraOpsError(f"{where} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise LoraOpsError(f"{where} is not JSON: {error}.") from error
    if not isinstance(read, dict) or not isinstance(read.get("expectations"), list):
        raise LoraOpsError(f"{where} is no suite: it needs a list `expectations` of type and kwargs.")
    load_suite({**read, "name": tenant}, where)
    return {**read, "name": tenant}


def own_checks(suite: dict[str, Any] | None) -> dict[str, str]:
    """Return the name of each expectation of a tenant's own suite with the SHA-256 of its JSON.

    Approvers compare them with an earlier version's: a removed suite leaves no check that could fail.
    """
    found: dict[str, str] = {}
    for each in suite["expectations"] if suite else ():
        name = check_name(each["type"], each.get("kwargs") or {}, each.get("meta") or {})
        # Two expectations may have one name, and each of them judged the rows.
        number = sum(one == name or one.startswith(f"{name} #") for one in found)
        found[f"{name} #{number + 1}" if number else name] = sha256_text(canonical(each))
    return found


def check_name(kind: str, kwargs: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """Return how people read of an expectation: the name that its suite gives it, or its type and arguments."""
    arguments = ", ".join(f"{key}={value}" for key, value in kwargs.items() if key != "batch_id")
    return str(meta.get("name") or f"{kind}({arguments})"[:120])


def load_suite(suite: dict[str, Any], where: str) -> Any:
    """Return a suite as great-expectations loads it.

    Raises:
        LoraOpsError: an expectation has an unknown type or wrong arguments; the text names it.
    """
    import great_expectations as gx
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    # Not add_expectation: it would drop the first of two expectations of one type about one column.
    loaded = []
    for number, each in enumerate(suite["expectations"], start=1):
        try:
            known = {
                key: each[key] for key in ("type", "kwargs", "meta", "severity") if each.get(key) is not None
            }
            loaded.append(ExpectationConfiguration(**known).to_domain_obj())
        # great-expectations has pydantic's own errors of an old release, which are ValueErrors.
        except (GreatExpectationsError, ValueError, TypeError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LoraOpsError(f"{where}: expectation {number} can't be used: {reason}.") from error
    return gx.ExpectationSuite(suite["name"], expectations=loaded, meta=suite.get("meta"))


def _defaults(settings: DataSettings, *, tokens: bool) -> list[Any]:
    import great_expectations.expectations as gxe

    limits = settings.contract

    def named(name: str, setting: str | None = None) -> dict[str, str | None]:
        return {"name": name, "setting": setting}

    expected = [
        *(
            gxe.ExpectColumnValuesToNotBeNull(column=column, meta=named(f"{column} is present"))
            for column in ("id", "text", "target", "group")
        ),
        gxe.ExpectColumnValuesToBeUnique(column="id", meta=named("row ids are unique")),
        gxe.ExpectColumnValuesToBeUnique(column="wording", meta=named("no wording stands twice")),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="text",
            min_value=limits.min_chars,
            max_value=limits.max_chars,
            meta=named(
                f"text has {limits.min_chars} to {limits.max_chars} characters",
                "data.contract.min_chars and max_chars",
            ),
        ),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="target", min_value=1, meta=named("target is not empty")
        ),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="target",
            max_value=limits.max_chars,
            meta=named(f"target has at most {limits.max_chars} characters", "data.contract.max_chars"),
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="splits_of_group", max_value=1, meta=named("no group is in two splits")
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="splits_of_wording", max_value=1, meta=named("no wording is in two splits")
        ),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=limits.min_rows,
            meta=named(f"at least {limits.min_rows} rows", "data.contract.min_rows"),
        ),
    ]
    if tokens:
        fits = named(f"prompt and answer fit {limits.max_tokens} tokens", "data.contract.max_tokens")
        expected.append(
            gxe.ExpectColumnValuesToBeBetween(column="tokens", max_value=limits.max_tokens, meta=fits)
        )
        expected += [
            gxe.ExpectColumnValuesToBeNull(
                column=control_column(column), meta=named(f"no {control_column(column)}")
            )
            for column in ("text", "target")
        ]
    if settings.task == "labels":
        expected.append(
            gxe.ExpectColumnValuesToBeInSet(
                column="target",
                value_set=list(settings.labels),
                meta=named("target is a known label", "data.labels"),
            )
        )
    if not limits.allow_pii:
        expected += [
            gxe.ExpectColumnValuesToBeNull(column=name, meta=named(f"no {name}", IDENTIFIERS_SETTING))
            for name in identifier_columns()
        ]
    return expected


def control_column(column: str) -> str:
    """Return the name of the column with the control token that `column` holds, else None."""
    return f"control token in {column}"


def identifier_columns() -> dict[str, tuple[str, str]]:
    """Return the columns in which identifiers are shown, each with its kind and the column searched."""
    return {f"{kind} in {column}": (kind, column) for column in ("text", "target") for kind in KINDS}
