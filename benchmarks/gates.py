"""How often gates err: equal versions that fail, worse versions that pass, and what a bare threshold would say.

    python benchmarks/gates.py [--runs 400] [--slices 1 4 12] [--rows 60] [--alike 1]

Each run draws the right and wrong answers of a candidate and a baseline. They differ on a share of the rows
(`--differ`), by chance, and the candidate drops on top by so much. The peer judges as most tools do, by a
threshold on the difference of two means: more than half of the margin below is a failure. With `--alike 3` each
three rows are a group, whose answers are all alike; then few groups differ.
"""

import argparse
from collections import Counter

import numpy as np
from rich.console import Console
from rich.table import Table

from lora_ops.gates.paired import compare_rows, corrected

MARGIN = 0.15


def drawn(
    generator: np.random.Generator, rows: int, differ: float, drop: float, alike: int
) -> tuple[list[float], list[float]]:
    """Return the scores of candidate and baseline on so many rows, the candidate worse by `drop` on average."""
    rows //= alike
    gained, lost = (differ - drop) / 2, (differ + drop) / 2
    kinds = generator.choice(3, size=rows, p=[max(0.0, gained), lost, 1 - max(0.0, gained) - lost])
    both = generator.random(rows) < 0.7
    candidate = np.where(kinds == 0, 1.0, np.where(kinds == 1, 0.0, both))
    baseline = np.where(kinds == 0, 0.0, np.where(kinds == 1, 1.0, both))
    return list(np.repeat(candidate, alike)), list(np.repeat(baseline, alike))


def judged(
    generator: np.random.Generator, slices: int, rows: int, differ: float, drop: float, alike: int
) -> tuple[str, str]:
    """Return the verdict of one version over all its slices, and that of a bare threshold."""
    groups = [str(place // alike) for place in range(rows - rows % alike)]
    gates, bare = {}, "pass"
    for number in range(slices):
        candidate, baseline = drawn(generator, rows, differ, drop, alike)
        gates[str(number)] = compare_rows(candidate, baseline, groups, MARGIN)
        if np.mean(candidate) - np.mean(baseline) < -MARGIN / 2:
            bare = "fail"
    verdicts = {one.verdict for one in corrected(gates).values()}
    return next((name for name in ("fail", "undecided") if name in verdicts), "pass"), bare


def main() -> None:
    """Print for each number of slices and each drop how often versions pass, fail and stay undecided."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 4, 12])
    parser.add_argument("--rows", type=int, default=60, help="of each slice")
    parser.add_argument("--alike", type=int, default=1, help="rows of a group")
    parser.add_argument(
        "--differ", type=float, default=0.1, help="share of rows that two versions answer otherwise"
    )
    given = parser.parse_args()
    columns = ("slices", "true drop", "pass", "undecided", "fail", "a bare threshold fails")
    table = Table(
        *columns, title=f"{given.rows} rows a slice ({given.alike} alike), margin {MARGIN}, {given.runs} runs"
    )
    for slices in given.slices:
        for drop in (0.0, MARGIN / 2, MARGIN, 2 * MARGIN):
            generator = np.random.default_rng(slices)
            runs = [
                judged(generator, slices, given.rows, max(given.differ, drop), drop, given.alike)
                for _ in range(given.runs)
            ]
            mine, bare = (Counter(run[place] for run in runs) for place in (0, 1))
            shares = [f"{mine[name] / given.runs:.3f}" for name in ("pass", "undecided", "fail")]
            table.add_row(str(slices), f"{drop:.3f}", *shares, f"{bare['fail'] / given.runs:.3f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
