"""Statistics over seeds against numpy and scipy, and verdicts that follow from them."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from experiments import claims
from experiments.claims import Verdict

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
samples = st.lists(numbers, min_size=2, max_size=8)


def judge(a, b):
    return claims.lower('a is lower than b', a, b, paper='-').verdict


@given(samples)
def test_an_estimate_is_that_of_numpy_and_scipy(values):
    of = claims.estimate(values)
    np.testing.assert_allclose(of.mean, np.mean(values), atol=1e-9)
    np.testing.assert_allclose(of.std, np.std(values, ddof=1), atol=1e-9)
    assume(of.std > 1e-6)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    np.testing.assert_allclose((of.mean - of.half_width, of.mean + of.half_width), (low, high))


@given(samples, samples)
def test_a_difference_is_that_of_welch(a, b):
    assume(np.std(a) > 1e-3 and np.std(b) > 1e-3)
    gap = claims.difference(a, b)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose((gap.mean - gap.half_width, gap.mean + gap.half_width), interval,
                               rtol=1e-6, atol=1e-9)


@given(samples, samples)
def test_the_verdict_turns_around_with_the_claim(a, b):
    opposite = {Verdict.HELD: Verdict.FAILED, Verdict.FAILED: Verdict.HELD,
                Verdict.WITHIN_SPREAD: Verdict.WITHIN_SPREAD}
    assert judge(b, a) == opposite[judge(a, b)]


@given(samples)
def test_a_difference_within_the_spread_is_called_that_and_one_beyond_it_is_not(values):
    assert judge(values, values) == Verdict.WITHIN_SPREAD
    half = claims.difference(values, values).half_width
    for shift, within in ((0.9 * half, True), (1.1 * half + 0.1, False)):
        above = [value + shift for value in values]
        verdicts = judge(values, above), judge(above, values)
        if not within:
            assert verdicts == (Verdict.HELD, Verdict.FAILED)
        elif half > 1e-3:
            assert verdicts == (Verdict.WITHIN_SPREAD, Verdict.WITHIN_SPREAD)


def test_welch_by_hand():
    finding = claims.lower('a is lower than b', [1.0, 2.0, 3.0], [3.0, 5.0, 7.0], paper='1 and 2',
                           unit=' %')
    # Standard error sqrt(1/3 + 4/3); 2.94 degrees of freedom, t 3.219.
    assert finding.measured == ('2.00 ± 2.48 (3 seeds) % against 5.00 ± 4.97 (3 seeds) %, '
                                'difference -3.00 ± 4.16')
    assert finding.verdict == Verdict.WITHIN_SPREAD
    assert finding.text() == ('a is lower than b: within the spread of the seeds.\n'
                              f'    paper: 1 and 2\n    measured: {finding.measured}')


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=8))
def test_a_geometric_mean_has_the_interval_of_the_logarithms(values):
    of, logarithms = claims.geometric_estimate(values), np.log(values)
    np.testing.assert_allclose(of.mean, stats.gmean(values))
    assume(np.std(logarithms) > 1e-3)
    expected = stats.t.interval(0.95, len(values) - 1, logarithms.mean(), stats.sem(logarithms))
    np.testing.assert_allclose(np.log(of.interval), expected, atol=1e-9)


def test_means_that_differ_by_a_factor_are_told_apart_where_the_largest_value_hides_it():
    a, b = [0.1, 1.0, 10.0], [40.0, 500.0, 4000.0]
    assert judge(a, b) == Verdict.WITHIN_SPREAD  # 1513 ± 5393
    finding = claims.lower_by_factor('a is lower than b', a, b, paper='-')
    # Means of the logarithms to the base 10: 0 and 2.634; standard errors 0.577 and 0.578; t 2.776.
    assert finding.measured == ('1.00 (0.00328 to 305, 3 seeds) against 430.89 '
                                '(1.4 to 1.33e+05, 3 seeds), difference -429.89, '
                                'ratio 0.00232 (1.25e-05 to 0.431)')
    assert finding.verdict == Verdict.HELD
    alone = claims.lower_by_factor('a is lower than b', a[:1], b[:1], paper='-')
    assert alone.measured == '0.10 (1 seed) against 40.00 (1 seed), difference -39.90'
    assert alone.verdict == Verdict.UNDECIDED


@pytest.mark.parametrize(('a', 'b', 'verdict'), [
    ([], [1.0], Verdict.NOT_RUN), ([1.0], [], Verdict.NOT_RUN),
    ([1.0], [9.0], Verdict.UNDECIDED), ([1.0, 1.1], [9.0], Verdict.UNDECIDED),
    ([1.0, 1.0], [9.0, 9.0], Verdict.HELD), ([1.0, 1.0], [1.0, 1.0], Verdict.WITHIN_SPREAD),
])
def test_few_seeds(a, b, verdict):
    assert judge(a, b) == verdict


def test_in_every_seed():
    def judged(a, b):
        return claims.lower_in_every_seed('a', a, b, paper='-')

    assert judged({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0, 2: 0.0}).verdict == Verdict.HELD
    finding = judged({0: 1.0, 1: 2.0}, {0: 2.0, 1: 2.0})
    assert finding.verdict == Verdict.FAILED and finding.measured.startswith('in 1 of 2 seeds')
    assert judged({0: 1.0}, {1: 2.0}).verdict == Verdict.NOT_RUN
