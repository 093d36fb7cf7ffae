"""Bounds of rates that are told from counts: of false alarms, of copies found, of copies left.

All bounds are exact, of the binomial distribution: none leans on a normal approximation, which
fails where next to nothing is counted. They are computed by scipy.special, since scipy.stats takes
half a second to load.
"""

from dataclasses import dataclass

from scipy.special import bdtr, betainccinv, betaincinv

_HALF_ERROR = 0.025  # half of the 5 % by which a bound of 95 % may be wrong


@dataclass(frozen=True, slots=True)
class FalseDiscovery:
    """Among the flagged images of one run, how many were flagged in error.

    expected_false_alarms: a number of images, at most; it counts all judged images as non-copies
    rate:                  its share of the flagged, in [0, 1]; 0 when nothing was flagged
    upper:                 upper 95 % bound of the share that was flagged in error, in [0, 1]
    """

    expected_false_alarms: float
    rate: float
    upper: float


def clopper_pearson(count: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a rate of which `count` of `total` were seen, in [0, 1].

    Counts may be fractions, as those of an effective sample size are. Of nothing, nothing is
    known: (0, 1). One side alone has the confidence (1 + confidence) / 2.

    Raises ValueError for a count outside of [0, total], or a confidence outside of (0, 1).
    Source: Clopper and Pearson (1934), by quantiles of the beta distribution.
    """
    if not 0 <= count <= total or not 0 < confidence < 1:
        raise ValueError(f"count ({count}) must be in [0, {total}], confidence in (0, 1)")
    error = (1 - confidence) / 2
    low = float(betaincinv(count, total - count + 1, error)) if count > 0 else 0.0
    high = float(betainccinv(count + 1, total - count, error)) if count < total else 1.0
    return low, high


def binomial_quantile(share: float, count: int, rate: float) -> int:
    """Return the least number that a binomial count does not exceed with a probability of `share`.

    The count is of `count` trials that succeed at `rate`, in [0, 1].
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtr(middle, count, rate) >= share else (middle + 1, high)
    return low


def false_discovery(flagged: int, judged: int, rate: float, upper_rate: float) -> FalseDiscovery:
    """Tell how many of the `flagged` images, of `judged`, were flagged in error.

    `rate` is the false-alarm rate that was asked for, `upper_rate` an upper bound of the true one.
    The false alarms are at most the 97.5 % quantile of a binomial distribution at `upper_rate`.
    So `upper` holds with 95 % where `upper_rate` holds with 97.5 %.

    Raises ValueError for more flagged than judged images, or a rate outside of [0, 1].
    """
    _check(flagged, judged, "flagged")
    if not 0 <= rate <= 1 or not 0 <= upper_rate <= 1:
        raise ValueError(f"rate ({rate}) and upper_rate ({upper_rate}) must be in [0, 1]")
    expected = rate * judged
    if flagged == 0:
        return FalseDiscovery(expected, 0.0, 0.0)
    most = binomial_quantile(1 - _HALF_ERROR, judged, upper_rate)
    return FalseDiscovery(expected, min(1.0, expected / flagged), min(1.0, most / flagged))


def most_copies(
    flagged: int, judged: int, found: int, planted: int, confidence: float = 0.95
) -> float:
    """Return an upper bound of the share of copies among the `judged` images, in [0, 1].

    `found` of `planted` canaries were flagged. Half of the error goes to the recall, of which the
    lower bound is taken. The other half goes to the number of copies that were found: the bound is
    the greatest number of copies of which so few as `flagged` may have been found. It counts every
    flagged image as a copy, so false alarms only raise it. It holds for copies that are as hard to
    find as the canaries. It is 1 when no canary was found.

    Raises ValueError for more flagged than judged images, or more found than planted canaries.
    """
    _check(flagged, judged, "flagged")
    _check(found, planted, "found")
    if judged == 0:
        return 0.0
    recall = clopper_pearson(found, planted, confidence)[0]
    plausible, too_many = flagged, judged + 1
    while too_many - plausible > 1:
        copies = (plausible + too_many) // 2
        if bdtr(flagged, copies, recall) >= (1 - confidence) / 2:
            plausible = copies
        else:
            too_many = copies
    return plausible / judged


def _check(part: int, whole: int, name: str) -> None:
    if not 0 <= part <= whole:
        raise ValueError(f"{name} ({part}) must be in [0, {whole}]")
