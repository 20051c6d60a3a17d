"""What a tenant's data must be before anything is trained on it, as great-expectations expectations."""

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lora_ops.datasets.files import shorten
from lora_ops.errors import LoraOpsError
from lora_ops.pii import KINDS, find_pii, redact
from lora_ops.records.data import Check, ContractRecord
from lora_ops.settings.data import DataSettings

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

NAMED_ROWS = 20
IDENTIFIERS_SETTING = "data.on_pii or data.contract.allow_pii"


def check_contract(frame: pd.DataFrame, tenant: str, settings: DataSettings) -> ContractRecord:
    """Hold `frame` against the tenant's contract.

    Args:
        frame: one row for each example with columns id, text, target, group, split and, where the
            prompts are rendered, what `with_prompts` adds; every row that may be used, whether its split
            uses it or not.

    Returns:
        Each check with the ids and values of the rows that fail it; `require` turns a failure into an error.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # Whether a group or a wording crosses splits is a property of the table; as a column it is row by row.
    wording = frame["text"].astype("str").str.lower().str.split().str.join(" ")
    facts = frame.assign(
        wording=wording,
        splits_of_group=frame.groupby("group")["split"].transform("nunique"),
        splits_of_wording=frame.groupby(wording)["split"].transform("nunique"),
    )
    if not settings.contract.allow_pii:
        facts = pd.concat([facts, _identifiers(frame)], axis=1)
    suite = gx.ExpectationSuite(tenant, expectations=_expectations(settings, tokens="tokens" in frame))
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("prepared").add_dataframe_asset(tenant)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": facts})
    result = batch.validate(
        suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]}
    )
    return ContractRecord.of(tenant, len(frame), [_check(each) for each in result.results])


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
    """Return one row for each check: its name, whether it holds, how many rows break it."""
    return pd.DataFrame(
        [(check.name, "ok" if check.success else "FAILED", check.failed_count) for check in contract.checks],
        columns=["check", "result", "failed"],
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


def _expectations(settings: DataSettings, *, tokens: bool) -> list[Any]:
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
            for name in _identifier_columns()
        ]
    return expected


def control_column(column: str) -> str:
    """Return the name of the column with the control token that `column` holds, else None."""
    return f"control token in {column}"


def _identifier_columns() -> dict[str, tuple[str, str]]:
    return {f"{kind} in {column}": (kind, column) for column in ("text", "target") for kind in KINDS}


def _identifiers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a column for each kind and place: the text where it was found, else None.

    The text is redacted: who reads the contract's page needs the row, not the number.
    """
    columns: dict[str, list[str | None]] = {}
    found = {
        column: [{one.kind for one in find_pii(str(cell))} for cell in frame[column]]
        for column in ("text", "target")
    }
    for name, (kind, column) in _identifier_columns().items():
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
    rows = [_named(row["id"], row[column]) for row in details.get("unexpected_index_list") or []]
    if "observed_value" in details and not result.success:
        rows = [f"there are {details['observed_value']}"]
    raised = (result.exception_info or {}).get("exception_message")
    if raised:
        rows = [shorten(str(raised))]
    return Check(
        name=config.meta["name"],
        success=bool(result.success),
        failed_rows=rows[:NAMED_ROWS],
        setting=config.meta["setting"],
        failed_count=details.get("unexpected_count") or (0 if result.success else 1),
    )
