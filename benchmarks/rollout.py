"""How rollouts decide, and what they cost: false alarms, requests until a fault is found, P95 beside shadow.

    python benchmarks/rollout.py sequential [--runs 1000]  # beside fixed tests and Argo's and Flagger's rules
    python benchmarks/rollout.py bets [--runs 400]         # our bets beside the paper's, and their restarts
    python benchmarks/rollout.py switch                    # from a route's commit to the first answer by it
    python benchmarks/rollout.py mttr [--rollbacks 10]     # from `lora-ops rollback` to a client's good answer
    python benchmarks/rollout.py look [--events 200000]    # a controller's first look, and those after it
    python benchmarks/rollout.py shadow [--runs 20]        # needs models/base (`make repro`)

Each part is an entry of `PARTS` and prints its tables.
"""

import argparse
from collections.abc import Callable, Iterable

import rollout_look
import rollout_rollback
import rollout_shadow
import rollout_statistics
import rollout_switch
from rich.console import Console
from rich.table import Table

Part = Callable[[argparse.Namespace], Iterable[Table]]

PARTS: dict[str, tuple[Part, Callable[[argparse.ArgumentParser], None]]] = {
    "sequential": (rollout_statistics.sequential, rollout_statistics.sequential_options),
    "bets": (rollout_statistics.bets, rollout_statistics.bets_options),
    "switch": (rollout_switch.switch, rollout_switch.switch_options),
    "mttr": (rollout_rollback.mttr, rollout_rollback.mttr_options),
    "look": (rollout_look.look, rollout_look.look_options),
    "shadow": (rollout_shadow.shadow, rollout_shadow.shadow_options),
}


def main() -> None:
    """Run one part and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name, (_, options) in PARTS.items():
        options(parts.add_parser(name))
    given = parser.parse_args()
    for table in PARTS[given.part][0](given):
        Console().print(table)


if __name__ == "__main__":
    main()
