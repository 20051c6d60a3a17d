"""Write simulated KPIs of the answers that a gateway gave, with the uplift that `KNOWN` has; nobody clicked.

python demo/simulated_kpis.py [--serving .serving] [--out simulated_kpis.csv] [--seed 7]
lora-ops monitor kpi import simulated_kpis.csv
"""

import argparse
from pathlib import Path

from lora_ops.monitoring.simulated_kpis import FILE, KNOWN, simulate
from lora_ops.serving.events import read_events


def main() -> None:
    """Write the file and print what is known of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--serving", type=Path, default=Path(".serving"), help="the gateway's folder")
    parser.add_argument("--out", type=Path, default=Path(FILE))
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    answers = read_events(given.serving / "events", "status = 200 AND unit IS NOT NULL")
    simulate(answers, given.seed).to_csv(given.out, index=False)
    known = ", ".join(f"{kind} {one.control:g} and {one.canary:g}" for kind, one in KNOWN.items())
    print(f"{given.out}: {len(answers)} answers, SIMULATED; without and with the canary: {known}")


if __name__ == "__main__":
    main()
