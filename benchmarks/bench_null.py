"""The tail of a null: how many new non-members are flagged, over how many were asked for.

Nulls are drawn of six known distributions, in subjects of several images that are independent or
correlated. Each way to continue the null above its 90 % quantile gives a threshold for a rate,
and the distribution gives the true rate at that threshold. The mean of true over asked, over all
nulls, is 1 for a calibrated way. The table shows its median, least and greatest over the six
distributions. Beside it is the share of nulls in which the upper 95 % bound is above the truth.

    python benchmarks/bench_null.py --nulls 100 --per-subject 5
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
from harness import Spread, parser, show, write
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize

from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.tail import fit_predictive

Floats = NDArray[np.float64]
SIZES, ALIKE, RATES = (200, 500, 1000, 2000), (0.0, 0.5), (0.01, 0.001)
BOUND_AT = 0.01  # rate at which the upper bound is tried
GRID = np.linspace(-16, 16, 200_001)


class Mixture:
    """A normal distribution, 1 % of which has three times its standard deviation."""

    def sf(self, x: Floats) -> Floats:
        """Return the shares above x."""
        return np.asarray(0.99 * stats.norm.sf(x) + 0.01 * stats.norm.sf(x, scale=3))

    def isf(self, share: Floats) -> Floats:
        """Return what the shares exceed."""
        return np.interp(-share, -self.sf(GRID), GRID)


DISTRIBUTIONS = {
    "normal": stats.norm(),
    "logistic": stats.logistic(),
    "gumbel": stats.gumbel_r(),
    "beta(2, 5)": stats.beta(2, 5),
    "beta(5, 2)": stats.beta(5, 2),
    "mixture": Mixture(),
}


def likeliest(excess: Floats, _: float) -> tuple[float, float]:
    """Fit shape and scale by maximum likelihood, the shape within [-0.5, 0.5]."""
    mean = excess.mean()

    def loss(values: Floats) -> float:
        found = -stats.genpareto.logpdf(excess, values[0], scale=mean * np.exp(values[1])).sum()
        return float(min(found, 1e9))

    best = minimize(loss, (0.1, 0.0), method="Nelder-Mead", bounds=((-0.5, 0.5), (-2, 2))).x
    return best[0], mean * np.exp(best[1])


def weighted_moments(excess: Floats, _: float) -> tuple[float, float]:
    """Fit by probability-weighted moments: Hosking and Wallis (1987), the shape clipped."""
    above = 1 - (np.arange(1, len(excess) + 1) - 0.35) / len(excess)
    mean, weighted = excess.mean(), (np.sort(excess) * above).mean()
    shape = float(np.clip(2 - mean / (mean - 2 * weighted), -0.5, 0.5))
    return shape, mean * (1 - shape)


WAYS: dict[str, Callable[[Floats, float], tuple[float, float]]] = {
    "likeliest": likeliest,
    "weighted moments": weighted_moments,
    "exponential": lambda excess, _: (0.0, float(excess.mean())),
    "predictive": fit_predictive,
}


def main() -> None:
    """Simulate, print and write."""
    options = parser(__doc__, {"nulls": 100, "per_subject": 5}).parse_args()
    random = np.random.default_rng(options.seed)
    cases, held = {}, {}
    for alike, n, name in itertools.product(ALIKE, SIZES, DISTRIBUTIONS):
        rates = [rate for rate in RATES if rate > 0.5 / n] + [0.5 / n]
        nulls = [draw(random, name, n, alike, options) for _ in range(options.nulls)]
        for (way, rate), value in true_over_asked(nulls, DISTRIBUTIONS[name], rates).items():
            label = f"n {n}, correlation {alike:g}, rate {rate:g}: {way}"
            cases.setdefault(label, {})[name] = value
        held.setdefault(f"upper bound held: n {n}, correlation {alike:g}", {})[name] = float(
            np.mean([bound_held(null, name, options.per_subject) for null in nulls])
        )
    measured = {key: Spread.of([*each.values()], "true / asked") for key, each in cases.items()}
    measured |= {key: Spread.of([*each.values()], "share of nulls") for key, each in held.items()}
    show("Over six distributions", measured, {})
    write("null", options, measured, {}, by_distribution=cases | held)


def draw(
    random: np.random.Generator, name: str, n: int, alike: float, options: argparse.Namespace
) -> Floats:
    """Draw n statistics of a distribution; the images of a subject follow one another."""
    subjects = random.normal(size=n // options.per_subject + 1).repeat(options.per_subject)[:n]
    normal = np.sqrt(alike) * subjects + np.sqrt(1 - alike) * random.normal(size=n)
    return np.asarray(DISTRIBUTIONS[name].isf(stats.norm.sf(normal)))


def true_over_asked(
    nulls: list[Floats], distribution: Mixture, rates: list[float]
) -> dict[tuple[str, float], float]:
    """Return the mean of the true rate over that asked, for each way and rate."""
    found = {}
    for way in ["ranks", *WAYS]:
        true = distribution.sf(np.array([thresholds(null, way, rates) for null in nulls]))
        found |= {
            (way, rate): float(mean) / rate for rate, mean in zip(rates, true.mean(0), strict=True)
        }
    return found


def thresholds(null: Floats, way: str, rates: list[float]) -> Floats:
    """Return the threshold at each rate; with ranks alone there may be none, which is infinite."""
    n, ordered, asked = len(null), np.sort(null)[::-1], np.array(rates)
    if way == "ranks":
        ranks = np.arange(1, n + 1) / (n + 1)
        return np.where(asked >= ranks[0], np.interp(asked, ranks, ordered), np.inf)
    u, share = ordered[n // 10], (n // 10 + 1) / (n + 1)
    shape, scale = WAYS[way](ordered[: n // 10] - u, 0.5 / n / share)
    return np.asarray(u + stats.genpareto.isf(asked / share, shape, scale=scale))


def bound_held(null: Floats, name: str, per_subject: int) -> bool:
    """Tell whether the upper 95 % bound at a fixed threshold is above the true rate."""
    order = np.argsort(null)
    made = NullDistribution(null[order], order // per_subject, None)
    return made.upper_bound(float(DISTRIBUTIONS[name].isf(np.array(BOUND_AT)))) >= BOUND_AT


if __name__ == "__main__":
    main()
