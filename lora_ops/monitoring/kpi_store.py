"""Imports of KPIs in `.serving/kpis`: one folder for each file, named by the digest of its bytes.

A folder appears whole or not at all. Nothing is decided when a file is imported that another import could
change: which of two rows counts is decided when rows are read. So imports may come in any order, at the same
time and again, and to undo one its folder is removed.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_ops.errors import Damaged, LoraOpsError, Unavailable, disk_reason
from lora_ops.folders import replacing
from lora_ops.hashing import sha256_file
from lora_ops.monitoring.kpi_files import ROW
from lora_ops.monitoring.kpi_join import once
from lora_ops.records.kpi import KpiImport
from lora_ops.settings.files import first_problem
from lora_ops.small_files import read_text

if TYPE_CHECKING:
    import pandas as pd

ROWS, REJECTED, IMPORT = "rows.parquet", "rejected.parquet", "import.json"
TYPES = {
    ROW: "BIGINT",
    "time": "TIMESTAMPTZ",
    "until": "TIMESTAMPTZ",
    "kind": "VARCHAR",
    "value": "DOUBLE",
    "count": "BIGINT",
    "request_id": "VARCHAR",
    "tenant": "VARCHAR",
    "adapter": "VARCHAR",
    "digest": "VARCHAR",
    "unit": "VARCHAR",
    "arm": "VARCHAR",
    "answered_at": "TIMESTAMPTZ",
    "share": "DOUBLE",
}
"""Columns of the kept rows; see `kpi_join.Joined`."""


class KpiStore:
    """The imports in one folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder, `.serving/kpis`; it may be missing."""
        self.folder = folder

    def imports(self) -> list[KpiImport]:
        """Return every import, the oldest first.

        Raises:
            LoraOpsError: one can't be read, or was changed.
        """
        found = [self._record(path) for path in sorted(self.folder.glob(f"*/{IMPORT}")) if _is_ours(path)]
        return sorted(found, key=lambda one: (one.imported_at, one.sha256))

    def find(self, digest: str) -> KpiImport | None:
        """Return the import of a file by the digest of its bytes, or None.

        Raises:
            LoraOpsError: it can't be read, or was changed.
        """
        path = self.folder / digest / IMPORT
        return self._record(path) if path.is_file() else None

    def kept_rows(self, digest: str) -> "pd.DataFrame":
        """Return the rows of one import.

        Raises:
            LoraOpsError: they can't be read, or were changed.
        """
        one = self.find(digest)
        return self._read([one] if one else [])

    def rows(self, tenant: str | None = None) -> "pd.DataFrame":
        """Return the rows that count, of one tenant or of all, oldest answer first.

        Of rows of several imports about one request and kind, that of the earliest import counts. Simulated
        rows count where nobody measured that KPI of the tenant.

        Raises:
            LoraOpsError: they can't be read, or were changed.
        """
        return self._read(self.imports(), tenant)

    def earlier_rows(self, at: datetime, digest: str) -> "pd.DataFrame":
        """Return the rows of the imports that came before one: of two rows theirs count.

        Args:
            at: when it was imported.
            digest: of its file.

        Raises:
            LoraOpsError: they can't be read, or were changed.
        """
        return self._read([one for one in self.imports() if (one.imported_at, one.sha256) < (at, digest)])

    def rejected(self, digest: str) -> "pd.DataFrame":
        """Return the rows of one import that don't count: row and reason, in their order.

        Raises:
            LoraOpsError: they can't be read.
        """
        import duckdb

        path = self.folder / digest / REJECTED
        try:
            with duckdb.connect() as db:
                return db.read_parquet(str(path)).order(ROW).df()
        except (duckdb.Error, OSError) as error:
            raise _damaged(path, str(error)) from error

    def keep(self, made: KpiImport, rows: "pd.DataFrame", rejected: "pd.DataFrame") -> KpiImport:
        """Keep an import in the place of an earlier one of the same file; return it with the rows' digest.

        Raises:
            Unavailable: the disk takes nothing; nothing has changed then.
        """
        try:
            with replacing(self.folder / made.sha256) as folder:
                _write(rows, TYPES, folder / ROWS)
                _write(rejected, {ROW: "BIGINT", "reason": "VARCHAR"}, folder / REJECTED)
                made = made.model_copy(update={"rows_sha256": sha256_file(folder / ROWS)})
                (folder / IMPORT).write_text(made.to_json(), encoding="utf-8")
        except OSError as error:
            raise Unavailable(
                f"The KPIs can't be kept in {self.folder} ({disk_reason(error)}): nothing was imported."
            ) from error
        return made

    def _record(self, path: Path) -> KpiImport:
        try:
            found = KpiImport.model_validate_json(read_text(path))
        except ValidationError as error:
            raise _damaged(path, first_problem(error)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error
        if found.sha256 != path.parent.name:
            raise _damaged(path, "it is of another file than its folder")
        return found

    def _read(self, imports: list[KpiImport], tenant: str | None = None) -> "pd.DataFrame":
        import pandas as pd

        found = [self._rows_of(one) for one in imports]
        if tenant is not None:
            found = [one[one["tenant"] == tenant] for one in found]
        if not found:
            return pd.DataFrame({name: [] for name in (*TYPES, "simulated")})
        # The order of the imports decides, and `row` within one; what was measured comes before all else.
        table = pd.concat(found, ignore_index=True).sort_values("simulated", kind="stable", ignore_index=True)
        table = table[~once(table).duplicated()]
        kinds = pd.MultiIndex.from_frame(table[["tenant", "kind"]])
        simulated = table["simulated"].to_numpy(bool)
        table = table[~simulated | ~kinds.isin(kinds[~simulated])]
        return table.sort_values(["answered_at", "request_id", ROW], ignore_index=True)

    def _rows_of(self, one: KpiImport) -> "pd.DataFrame":
        import duckdb

        path = self.folder / one.sha256 / ROWS
        try:
            if sha256_file(path) != one.rows_sha256:
                raise _damaged(path, "its digest is another one than when it was imported")
            with duckdb.connect() as db:
                table = db.read_parquet(str(path)).order(ROW).df()
        except (duckdb.Error, OSError) as error:
            raise _damaged(path, str(error)) from error
        # DuckDB answers in the machine's time zone.
        times = {name: table[name].dt.tz_convert("UTC") for name in ("time", "until", "answered_at")}
        return table.assign(**times, simulated=one.is_simulated)


def repeated(earlier: "pd.DataFrame", rows: "pd.DataFrame") -> int:
    """Return how many rows are about a request and kind, or a time, that earlier ones are about, too."""
    import pandas as pd

    both = pd.concat([once(earlier), once(rows)], ignore_index=True)
    return int(both.duplicated()[len(earlier) :].sum())


def _write(table: "pd.DataFrame", types: dict[str, str], path: Path) -> None:
    import duckdb

    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        columns = [duckdb.ColumnExpression(name).cast(kind).alias(name) for name, kind in types.items()]
        try:
            db.from_df(table).select(*columns).write_parquet(str(path), compression="zstd")
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
    path.chmod(0o600)


def _is_ours(path: Path) -> bool:
    """Whether a folder is an import, and not one that a process is at, or that a kill has left."""
    return not path.parent.name.startswith(".")


def _damaged(path: Path, why: str) -> LoraOpsError:
    reason = " ".join(why.split())[:200]
    return Damaged(f"{path} can't be read ({reason}): remove {path.parent}, and import that file again.")
