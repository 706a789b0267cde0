"""Statistics over seeds, and verdicts that compare measurements with the paper's claims."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a quantity over seeds.

    Attributes:
      mean: over the seeds.
      std: sample standard deviation (n - 1); None of one seed.
      n: seeds.
      half_width: of the 95 % t-interval of the mean; None of one seed.
    """

    mean: float
    std: float | None
    n: int
    half_width: float | None

    def text(self, digits: int = 2) -> str:
        """Such as '1.01 ± 0.34 (3 seeds)'."""
        if self.half_width is None:
            return f'{self.mean:.{digits}f} (1 seed)'
        return f'{self.mean:.{digits}f} ± {self.half_width:.{digits}f} ({self.n} seeds)'


@dataclasses.dataclass(frozen=True)
class GeometricEstimate:
    """The geometric mean, over seeds, of a quantity that varies by orders of magnitude.

    Attributes:
      mean: the exponential of the mean logarithm; of one seed its value itself.
      n: seeds.
      interval: exponentials of the ends of the 95 % t-interval of the mean logarithm; None of one
        seed.
    """

    mean: float
    n: int
    interval: tuple[float, float] | None

    def text(self, digits: int = 2) -> str:
        """Such as '0.0189 (0.0144 to 0.0248, 3 seeds)'."""
        if self.interval is None:
            return f'{self.mean:.{digits}f} (1 seed)'
        low, high = self.interval
        return f'{self.mean:.{digits}f} ({low:.3g} to {high:.3g}, {self.n} seeds)'


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and interval of at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean, std, n, _t(n - 1) * std / math.sqrt(n))


def geometric_estimate(values: Sequence[float]) -> GeometricEstimate:
    """Geometric mean and interval of at least one value; all are positive."""
    if len(values) == 1:
        return GeometricEstimate(values[0], 1, None)
    return _exponential(estimate(_logarithms(values)))


def _logarithms(values: Sequence[float]) -> list[float]:
    return [math.log(value) for value in values]


def _exponential(of: Estimate) -> GeometricEstimate:
    """The geometric mean and interval of what has these logarithms, of several seeds."""
    return GeometricEstimate(math.exp(of.mean), of.n, (math.exp(of.mean - of.half_width),
                                                       math.exp(of.mean + of.half_width)))


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Mean of a less mean of b, with Welch's interval.

    Returns:
      `std` is the standard error of the difference, `n` the seeds of the smaller group. With one
      seed per side there is no interval.
    """
    mean = estimate(a).mean - estimate(b).mean
    n = min(len(a), len(b))
    if n == 1:
        return Estimate(mean, None, 1, None)
    parts = [estimate(values).std ** 2 / len(values) for values in (a, b)]
    error = math.sqrt(sum(parts))
    if not error:
        return Estimate(mean, 0.0, n, 0.0)
    # Welch and Satterthwaite; scaled, so that tiny variances do not underflow.
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / sum(share**2 / (len(values) - 1)
                      for share, values in zip(shares, (a, b), strict=True))
    return Estimate(mean, error, n, _t(freedom) * error)


def _t(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


class Verdict(enum.Enum):
    """What became of a claim."""

    HELD = 'held'
    FAILED = 'did not hold'
    WITHIN_SPREAD = 'within the spread of the seeds'
    UNDECIDED = 'one seed: the spread is not known'
    NOT_RUN = 'not run'


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim and what became of it.

    Attributes:
      claim: a sentence without its full stop, which says that something is lower or higher.
      paper: the paper's numbers for it, or why there are none.
      measured: the difference, with its interval.
      verdict: whether it held.
    """

    claim: str
    paper: str
    measured: str
    verdict: Verdict

    def text(self) -> str:
        return (f'{self.claim}: {self.verdict.value}.\n'
                f'    paper: {self.paper}\n    measured: {self.measured}')

    def record(self) -> Mapping[str, str]:
        """For JSON."""
        return {**dataclasses.asdict(self), 'verdict': self.verdict.value}


def lower(claim: str, a: Sequence[float], b: Sequence[float], *, paper: str, unit: str = '',
          digits: int = 2) -> Finding:
    """Judges the claim that the mean of a lies below that of b.

    Args:
      claim: the sentence.
      a, b: one value a seed; empty where nothing was run.
      paper: see `Finding`.
      unit: of the values, with its blank in front.
      digits: behind the point.
    """
    return _compare(claim, a, b, difference, -1, paper, unit, digits)


def lower_by_factor(claim: str, a: Sequence[float], b: Sequence[float], *, paper: str,
                    digits: int = 2) -> Finding:
    """Judges the claim that the geometric mean of a lies below that of b, by their ratio.

    Args:
      claim: the sentence.
      a, b: one value a seed, at least one; all are positive.
      paper, digits: as in `lower`.
    """
    first, second = geometric_estimate(a), geometric_estimate(b)
    measured = (f'{first.text(digits)} against {second.text(digits)}, '
                f'difference {first.mean - second.mean:+.{digits}f}')
    gap = difference(_logarithms(a), _logarithms(b))
    if gap.half_width is not None:
        ratio = _exponential(gap)
        low, high = ratio.interval
        measured += f', ratio {ratio.mean:.3g} ({low:.3g} to {high:.3g})'
    return Finding(claim, paper, measured, verdict(gap))


def higher_by_seed(claim: str, a: Mapping[int, float], b: Mapping[int, float], *, paper: str,
                   unit: str = '', digits: int = 2) -> Finding:
    """Judges the claim that a lies above b in the mean of the differences seed by seed.

    Args:
      claim: the sentence.
      a, b: a value by seed; only seeds that both have count.
      paper, unit, digits: as in `lower`.
    """
    seeds = sorted(a.keys() & b.keys())
    return _compare(claim, [a[seed] for seed in seeds], [b[seed] for seed in seeds],
                    lambda a, b: estimate([x - y for x, y in zip(a, b, strict=True)]), 1, paper,
                    unit, digits)


def _compare(claim, a, b, gap_of, sign, paper, unit, digits) -> Finding:
    """The finding that the gap of a to b has this sign, -1 or 1."""
    if not a or not b:
        return Finding(claim, paper, 'not run', Verdict.NOT_RUN)
    gap = gap_of(a, b)
    measured = (f'{estimate(a).text(digits)}{unit} against {estimate(b).text(digits)}{unit}, '
                f'difference {gap.mean:+.{digits}f}')
    if gap.half_width is None:
        return Finding(claim, paper, measured, Verdict.UNDECIDED)
    measured += f' ± {gap.half_width:.{digits}f}'
    return Finding(claim, paper, measured, verdict(gap, sign))


def verdict(gap: Estimate, sign: int = -1) -> Verdict:
    """Whether a difference has the sign that it should, -1 or 1, beyond its interval."""
    if gap.half_width is None:
        return Verdict.UNDECIDED
    if abs(gap.mean) <= gap.half_width:
        return Verdict.WITHIN_SPREAD
    return Verdict.HELD if sign * gap.mean > 0 else Verdict.FAILED


def lower_in_every_seed(claim: str, a: Mapping[int, float], b: Mapping[int, float], *,
                        paper: str) -> Finding:
    """Judges the claim that a lies below b in each seed that both have.

    Args:
      claim: the sentence.
      a, b: a value by seed.
      paper: see `Finding`.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return Finding(claim, paper, 'not run', Verdict.NOT_RUN)
    wins = sum(a[seed] < b[seed] for seed in seeds)
    pairs = ', '.join(f'{a[seed]:.4f} against {b[seed]:.4f}' for seed in seeds)
    return Finding(claim, paper, f'in {wins} of {len(seeds)} seeds ({pairs})',
                   Verdict.HELD if wins == len(seeds) else Verdict.FAILED)
