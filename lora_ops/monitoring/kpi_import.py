"""Import a file of KPIs: read, hold against the contract, join to versions, keep."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.folders import make_folder
from lora_ops.monitoring.kpi_contract import check_rows
from lora_ops.monitoring.kpi_files import ROW, read_kpi_file
from lora_ops.monitoring.kpi_join import join, read_answers
from lora_ops.monitoring.kpi_store import KpiStore, repeated
from lora_ops.processes import locked
from lora_ops.records.kpi import FOLDER, KpiImport, Rejection
from lora_ops.settings.kpis import KpiSettings
from lora_ops.small_files import write_new

SHOWN = 5
"""Rows of each reason that the record names; the kept table has all of them."""
LOCK_SECONDS = 60
"""For which an import of the same file waits: a million rows take less."""


def import_kpis(
    path: Path,
    folder: Path,
    versions: Mapping[str, str],
    settings: KpiSettings,
    now: datetime,
    zone: str | None = None,
) -> KpiImport:
    """Import a file, or join more rows of one that was imported before.

    Rows that counted stay as they are. An event that came late, or an event log that was swept since, takes
    nothing away.

    Args:
        path: of the file.
        folder: `.serving` of the gateway, with its events and the imports.
        versions: of the registry, to their content digest.
        settings: `kpis` of params.yaml.
        now: the time.
        zone: of times that name none, such as Europe/Berlin.

    Raises:
        LoraOpsError: the file can't be read, is no file of KPIs, or the zone is none; nothing is kept then.
    """
    found = zone_of(zone)
    given = read_kpi_file(path)
    checked = check_rows(given.table, settings, now, found)
    joined = join(checked.good, read_answers(folder / "events", checked.good, settings), versions, settings)
    store = KpiStore(folder / FOLDER)
    try:
        if not store.folder.is_dir():
            make_folder(store.folder)
            store.folder.chmod(0o700)  # who did what, as the event log
        with locked(store.folder / ".lock", seconds=LOCK_SECONDS):
            before = store.find(given.sha256)
            rows = joined.rows
            if before is not None:
                kept = store.kept_rows(given.sha256)
                rows = pd.concat([kept, rows[~rows[ROW].isin(kept[ROW])]], ignore_index=True)
            rejected = pd.concat([checked.rejected, joined.rejected], ignore_index=True)
            rejected = rejected[~rejected[ROW].isin(rows[ROW])].sort_values(ROW)
            at = before.imported_at if before else now
            others = store.earlier_rows(at, given.sha256)
            made = KpiImport(
                name=given.name,
                sha256=given.sha256,
                bytes=given.bytes,
                imported_at=at,
                zone=zone,
                rows=len(given.table),
                joined=len(rows),
                by_request=int(rows["request_id"].notna().sum()),
                repeated=repeated(others, rows),
                rejected=tuple(_rejections(rejected)),
                left_out=given.left_out,
                rows_sha256="0" * 64,
                contract=checked.contract,
            )
            return store.keep(made, rows, rejected)
    except BlockingIOError as error:
        raise Unavailable("Another import is at work: try again when it has ended.") from error
    except OSError as error:
        raise Unavailable(f"The KPIs can't be kept ({disk_reason(error)}): nothing was imported.") from error


def write_rejected(store: KpiStore, made: KpiImport, path: Path) -> None:
    """Write every row of an import that does not count into a new CSV file: its row and the reason.

    Raises:
        LoraOpsError: there is such a file already, or it can't be written.
    """
    try:
        write_new(path, store.rejected(made.sha256).to_csv(index=False))
    except FileExistsError as error:
        raise LoraOpsError(f"{path} exists already: name a new file.") from error
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({disk_reason(error)}).") from error


def zone_of(name: str | None) -> ZoneInfo | None:
    """Return a time zone by its name.

    Raises:
        LoraOpsError: there is none of that name.
    """
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise LoraOpsError(f"There is no time zone '{name}': write one such as Europe/Berlin.") from error


def _rejections(rejected: pd.DataFrame) -> list[Rejection]:
    """Return the reasons, the most frequent first."""
    found = [
        Rejection(reason=str(reason), rows=len(rows), first=tuple(map(int, rows[ROW].head(SHOWN))))
        for reason, rows in rejected.groupby("reason")
    ]
    return sorted(found, key=lambda one: (-one.rows, one.reason))
