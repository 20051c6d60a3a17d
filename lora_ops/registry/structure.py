"""Does the database have exactly the tables, indexes and triggers of lora-ops, and do the indexes fit?"""

from collections import Counter

from lora_ops.registry import migrations
from lora_ops.registry.database import Database

KINDS = frozenset(("table", "index", "trigger", "view"))
DECIDING = ("aliases", "versions", "routes", "audit")
"""The tables whose indexes decide who answers. A manifest is compared with its digest in the log instead."""


class Structure:
    """Finds objects that somebody added to the database, changed or removed, and indexes that lie.

    Somebody who can write in the registry's folder can exchange an index and keep the SQL text that describes
    it. The table stays honest, and every query through the index gets another row, or misses one.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._sound: tuple[int, ...] | None = None
        """Opening, schema version and data version at which the indexes fitted their tables."""

    def problem(self, *, thorough: bool = False) -> str | None:
        """Return the first difference, or None.

        The objects are compared each time (0.05 ms). The whole file is read at first and after each change of
        the schema (45 ms at 10,000 versions and entries). After each other change by another connection the
        deciding tables are read with their indexes (27 ms).

        Args:
            thorough: read the whole file, whatever was found before.

        Raises:
            LoraOpsError: the database can't be read.
        """
        return self._foreign() or self._false_index(thorough)

    def _foreign(self) -> str | None:
        # Equal rows count too: two rows of one index may name different pages.
        found: Counter[tuple[object, ...]] = Counter(
            self._db.rows("SELECT type, name, tbl_name, sql FROM sqlite_master")
        )
        expected: Counter[tuple[object, ...]] = Counter(migrations.objects())
        if found == expected:
            return None
        known = {(kind, name) for kind, name, _, _ in expected}
        for kind, name, _, _ in sorted(found - expected, key=repr):
            # SQLite knows a trigger by its SQL, so `type` may be any text.
            word = str(kind).lower() if str(kind).lower() in KINDS else "object"
            if (kind, name) in known:
                return f"the {word} '{name}' of the database was changed: it is not the one that lora-ops makes"
            drops = ", and can drop what is written" if word == "trigger" else ""
            article = "an" if word[0] in "io" else "a"
            return f"the database has {article} {word} '{str(name)[:80]}' that is not of lora-ops{drops}"
        kind, name, _, _ = min(expected - found, key=repr)
        return f"the {kind} '{name}' of the database was removed"

    def _false_index(self, thorough: bool) -> str | None:
        place = (self._db.openings, *self._number("schema_version"), *self._number("data_version"))
        if place == self._sound and not thorough:
            return None
        # A connection keeps the schema that it read, even where somebody changed its text back without a
        # trace. It would go on with a partial index, and find nothing missing in it.
        self._db.rows("PRAGMA writable_schema = RESET")
        whole = thorough or self._sound is None or place[:-1] != self._sound[:-1]
        found = []
        for table in ("",) if whole else DECIDING:
            of = f"('{table}')" if table else ""
            found += [text for (text,) in self._db.rows(f"PRAGMA integrity_check{of}") if text != "ok"]
        if found:
            self._sound = None
            return f"the database is damaged or was changed: SQLite says '{found[-1].splitlines()[-1]}'"
        self._sound = place
        return None

    def _number(self, pragma: str) -> tuple[int, ...]:
        return tuple(self._db.rows(f"PRAGMA {pragma}")[0])
