"""What a tenant's data must be before anything is trained on it, as great-expectations expectations."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lora_ops.datasets.files import shorten
from lora_ops.datasets.own_patterns import require_fast
from lora_ops.datasets.suites import OWN_SUITES, check_name, default_suite, identifier_columns, load_suite
from lora_ops.detectors.identifiers import find_identifiers, redact
from lora_ops.errors import LoraOpsError
from lora_ops.records.data import Check, ContractRecord
from lora_ops.settings.data import DataSettings

NAMED_ROWS = 20
ROW = "number of the row"
RESULT_FORMAT = {"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]}
NUMERIC = frozenset(
    f"expect_column_{what}_to_be_{how}"
    for what, how in (
        *(("values", how) for how in ("between", "of_type", "in_type_list", "increasing", "decreasing")),
        *((what, "between") for what in ("min", "max", "mean", "median", "sum", "stdev", "quantile_values")),
    )
) | {"expect_column_value_z_scores_to_be_less_than"}
_NUMBER = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?"


def check_contract(
    frame: pd.DataFrame,
    tenant: str,
    settings: DataSettings,
    source: pd.DataFrame | None = None,
    own: dict[str, Any] | None = None,
) -> ContractRecord:
    """Hold `frame` against the tenant's contract.

    Args:
        frame: one row for each example with columns id, text, target, group, split and, where the
            prompts are rendered, what `with_prompts` adds; every row that may be used, whether its split
            uses it or not.
        source: the rows of the source, which `own` is about.
        own: the tenant's own suite.

    Returns:
        Each check with the ids and values of the rows that fail it; `require` turns a failure into an error.

    Raises:
        LoraOpsError: an expectation of `own` can't be used, or its regular expressions take too long.
    """
    if own is not None and source is not None:
        require_fast(own, source, f"{OWN_SUITES}/{tenant}.json")
    checks = []
    for suite, table in suites_with_tables(frame, tenant, settings, source, own):
        checks += [_check(each) for each in validated(suite, table)]
    return ContractRecord.of(tenant, len(frame), checks)


def validated(suite: Any, table: pd.DataFrame) -> list[Any]:
    """Return great-expectations' result of each expectation of a suite, with the numbers of the failing rows.

    Args:
        suite: as `load_suite` gives it.
        table: what it is about; the column `ROW` numbers or names its rows.
    """
    batch = _asset(open_context(), suite.name).get_batch({"dataframe": table})
    return list(batch.validate(suite, result_format=RESULT_FORMAT).results)


def suites_with_tables(
    frame: pd.DataFrame,
    tenant: str,
    settings: DataSettings,
    source: pd.DataFrame | None = None,
    own: dict[str, Any] | None = None,
) -> list[tuple[Any, pd.DataFrame]]:
    """Return each suite of a contract, as great-expectations loads it, with the table that it is about.

    An own expectation about numbers sees a column of numbers as such, any other one as text.
    """
    tokens = "tokens" in frame
    generated = load_suite(default_suite(tenant, settings, tokens=tokens), "the generated suite")
    found = [(generated, _facts(frame, settings))]
    if own is None or source is None:
        return found
    numbered = source.assign(**{ROW: [str(number) for number in range(1, len(source) + 1)]})
    for name, numeric in (("source", False), ("source numbers", True)):
        of_kind = [each for each in own["expectations"] if (each["type"] in NUMERIC) == numeric]
        if of_kind:
            suite = load_suite({**own, "name": f"{tenant} {name}", "expectations": of_kind}, OWN_SUITES)
            found.append((suite, numbers_typed(numbered) if numeric else numbered))
    return found


def numbers_typed(source: pd.DataFrame) -> pd.DataFrame:
    """Return `source` with columns of nothing but numbers, as JSON writes them, as such: 007 is a code."""
    typed = {}
    for name in source.columns:
        cells = source[name].dropna().astype(str)
        is_number = name != ROW and len(cells) and cells.str.fullmatch(_NUMBER).all()
        typed[name] = pd.to_numeric(source[name]) if is_number else source[name]
    return pd.DataFrame(typed)


def _facts(frame: pd.DataFrame, settings: DataSettings) -> pd.DataFrame:
    # Whether a group or a wording crosses splits is a property of the table; as a column it is row by row.
    wording = frame["text"].astype("str").str.lower().str.split().str.join(" ")
    facts = frame.assign(
        **{ROW: frame["id"]},
        wording=wording,
        splits_of_group=frame.groupby("group")["split"].transform("nunique"),
        splits_of_wording=frame.groupby(wording)["split"].transform("nunique"),
    )
    if settings.contract.allow_pii:
        return facts
    return pd.concat([facts, _identifiers(frame)], axis=1)


def open_context() -> Any:
    """Return a context of great-expectations that keeps nothing and draws no progress bars."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _asset(context: Any, name: str) -> Any:
    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    return asset.add_batch_definition_whole_dataframe("all")


def require(contract: ContractRecord, remedies: Mapping[str, str] | None = None) -> None:
    """Stop unless the contract holds.

    Args:
        remedies: by setting, what to do instead of changing it in params.yaml: an entry that is not written
            yet has no settings.

    Raises:
        LoraOpsError: a check failed; the text names the first checks and the first rows of each.
    """
    failed = [check for check in contract.checks if not check.success]
    if not failed:
        return
    parts = []
    for check in failed[:3]:
        rows = "; ".join(check.failed_rows[:3])
        more = f" and {check.failed_count - 3} more" if check.failed_count > 3 else ""
        parts.append(f"{check.name} ({rows}{more})" if rows else check.name)
    if len(failed) > 3:
        parts.append(f"and {len(failed) - 3} more checks")
    settings = dict.fromkeys(check.setting for check in failed if check.setting)
    or_else = f" or, where they are right, {', '.join(settings)} in params.yaml" if settings else ""
    if remedies is not None:
        or_else = "".join(f" or {remedies[setting]}" for setting in settings if setting in remedies)
    raise LoraOpsError(
        f"The data of '{contract.tenant}' breaks its contract: {', '.join(parts)}. Mend the rows{or_else}."
    )


def checks_table(contract: ContractRecord) -> pd.DataFrame:
    """Return one row for each check: its name, whether it holds, how many rows it found."""
    return pd.DataFrame(
        [(check.name, "ok" if check.success else "FAILED", check.failed_count) for check in contract.checks],
        columns=["check", "result", "rows found"],
    )


def failed_rows(contract: ContractRecord, most: int = 5) -> pd.DataFrame:
    """Return the first rows that break each check, at most `most` of each, their values cut."""
    found = [
        (check.name, *row.partition(": ")[::2])
        for check in contract.checks
        if not check.success
        for row in check.failed_rows[:most]
    ]
    return pd.DataFrame(found, columns=["check", "row", "value"])


def _identifiers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a column for each kind and place: the text where it was found, else None.

    The text is redacted: who reads the contract's page needs the row, not the number.
    """
    columns: dict[str, list[str | None]] = {}
    found = {
        column: [{one.kind for one in find_identifiers(str(cell))} for cell in frame[column]]
        for column in ("text", "target")
    }
    for name, (kind, column) in identifier_columns().items():
        columns[name] = [
            redact(str(cell))[0] if kind in kinds else None
            for cell, kinds in zip(frame[column], found[column], strict=True)
        ]
    return pd.DataFrame(columns, index=frame.index, dtype=object)


def _named(row_id: str, value: Any) -> str:
    if isinstance(value, str):
        # The page of the contract is read by more people than the data.
        return f"row {row_id}: {shorten(redact(value[:10_000])[0])}"
    return f"row {row_id}: {shorten(value if value is None else float(value))}".removesuffix(".0")


def _check(result: Any) -> Check:
    config, details = result.expectation_config, result.result
    column = config.kwargs.get("column")
    rows = [_named(row[ROW], row.get(column)) for row in details.get("unexpected_index_list") or []]
    if "observed_value" in details and not result.success:
        rows = [f"there are {details['observed_value']}"]
    raised = _raised(result.exception_info or {})
    if raised:
        rows = [shorten(raised, 200)]
    meta = config.meta or {}
    return Check(
        name=check_name(config.type, config.kwargs, meta),
        success=bool(result.success),
        failed_rows=[] if result.success else rows[:NAMED_ROWS],
        setting=meta.get("setting"),
        failed_count=details.get("unexpected_count") or (0 if result.success else 1),
    )


def _raised(info: Mapping[str, Any]) -> str | None:
    """Return what great-expectations raised: for the expectation, or for one of the metrics that it needs."""
    for each in (info, *(value for value in info.values() if isinstance(value, Mapping))):
        if each.get("exception_message"):
            return str(each["exception_message"])
    return None
