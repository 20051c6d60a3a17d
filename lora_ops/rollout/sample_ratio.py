"""Did the assignment share the users as it should: a check that may be looked at after each user.

If canary and control hold other shares of the users than the route says, one of them loses users or gets the
wrong ones, and no difference between them means anything. The check compares the expected shares with a
Dirichlet mixture of all shares (Lindon and Malek, 2022, "Anytime-valid inference for multinomial count data",
NeurIPS 35; Optimizely's package `ssrm_test` is theirs). Units are users: requests of one user are not
independent, and a busy user would look like a broken assignment.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from lora_ops.rollout.bets import checked_alpha

Floats = npt.NDArray[np.float64]

ALPHA = 0.001
"""Error rate of the check over a whole rollout; the usual one, as it stops everything."""
CONCENTRATIONS = (10.0, 100.0, 1000.0, 10000.0)
"""How near the alternatives lie to the expected shares, as a number of users seen before; four are averaged.

`ssrm_test` takes 10,000 alone. It finds small deviations among many users, but where all users of two arms go
to one, it needs 380 of them; the average needs 23.
"""


class Phase(NamedTuple):
    """A part of a rollout in which the expected shares were the same, such as one step of a canary."""

    counts: Sequence[int]
    """Users that each arm got in this phase."""
    shares: Sequence[float]
    """Their expected shares, which sum to 1."""


class SampleRatio(NamedTuple):
    """The verdict of the check."""

    e_value: float
    broken: bool
    users: int

    def __str__(self) -> str:
        if not self.broken:
            return f"assignment as expected ({self.users} users, e-value {self.e_value:.3g})"
        return (
            f"assignment is broken: the shares of {self.users} users differ from the route's "
            f"(e-value {self.e_value:.3g}); compare the users of each arm in the events"
        )


def sample_ratio(phases: Sequence[Phase], alpha: float = ALPHA) -> SampleRatio:
    """Return whether users were shared as expected; without users nothing is broken.

    However often it is looked at, it flags a correct assignment with a probability of at most alpha. The order
    of users within a phase doesn't matter, so that counts are enough.

    Raises:
        ValueError: alpha, a count or a share is out of range.
    """
    checked_alpha(alpha)
    logarithms = [
        math.fsum(log_e_value(phase, concentration) for phase in phases) for concentration in CONCENTRATIONS
    ]
    log_mean = float(np.logaddexp.reduce(logarithms)) - math.log(len(CONCENTRATIONS))
    users = sum(sum(phase.counts) for phase in phases)
    return SampleRatio(math.exp(min(log_mean, 700.0)), log_mean >= math.log(1 / alpha), users)


def log_e_value(phase: Phase, concentration: float) -> float:
    """Return the logarithm of the evidence against a phase's shares.

    Args:
        phase: counts and shares of the same arms.
        concentration: of the Dirichlet distribution of the alternatives, whose mean is the expected shares.

    Raises:
        ValueError: a count is no whole number of 0 or more, or the shares aren't positive or don't sum to 1.
    """
    counts, shares = np.asarray(phase.counts, float), np.asarray(phase.shares, float)  # (arms,)
    if len(counts) != len(shares) or len(counts) < 2:
        raise ValueError(f"{len(counts)} counts of users don't match {len(shares)} shares of two arms or more")
    if not ((counts >= 0) & (counts == np.floor(counts)) & (counts < math.inf)).all():
        raise ValueError(f"counts of users must be whole numbers of 0 or more, got {list(phase.counts)}")
    if not (shares > 0).all() or not math.isclose(float(shares.sum()), 1, abs_tol=1e-9):
        raise ValueError(f"expected shares must be positive and sum to 1, got {list(phase.shares)}")
    prior = concentration * shares
    return float(
        (gammaln(prior + counts) - gammaln(prior)).sum()
        - gammaln(prior.sum() + counts.sum())
        + gammaln(prior.sum())
        - (counts * np.log(shares)).sum()
    )
