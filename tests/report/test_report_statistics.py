"""Statistics over seeds against figures worked out by hand and by scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from evomerge.report.statistics import holm, mean_over_seeds, rank_tests, smallest_p


def seeds(*values: float) -> dict[str, float]:
    return {str(seed): value for seed, value in enumerate(values)}


def test_interval_of_a_mean() -> None:
    """Of 1, 2, 3: the standard error is 1 / sqrt(3), the t quantile for 2 degrees 4.3027."""
    mean = mean_over_seeds([1.0, None, 2.0, 3.0])
    assert (mean.value, mean.seeds) == (2.0, 3)
    assert mean.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert mean.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    expected = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval()
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    one, none = mean_over_seeds([0.5]), mean_over_seeds([None])
    assert (one.value, one.low, one.high, one.seeds) == (0.5, None, None, 1)
    assert (none.value, none.low, none.high, none.seeds) == (None, None, None, 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_u_test_of_two_groups() -> None:
    """Five values all above five others: p = 2 / C(10, 5)."""
    found = rank_tests({"a": seeds(6, 7, 8, 9, 10), "b": seeds(1, 2, 3, 4, 5)})
    (pair,) = found.pairs
    assert pair.p == pair.adjusted == pytest.approx(2 / math.comb(10, 5))
    assert (pair.significant, pair.difference) == (True, 5)
    assert found.method == "Mann-Whitney U test"
    assert found.friedman is None
    assert found.warnings == ()


def test_signed_rank_test_over_six_common_seeds() -> None:
    a, b = (3.0, 4.1, 5.3, 6.2, 7.5, 8.9), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    found = rank_tests({"a": seeds(*a), "b": seeds(*b)})
    assert found.method.startswith("Wilcoxon")
    assert found.pairs[0].p == pytest.approx(2 / 2**6)
    assert found.pairs[0].p == pytest.approx(float(stats.wilcoxon(a, b).pvalue))
    assert found.pairs[0].difference == pytest.approx(2.25)


def test_other_seeds_are_not_paired() -> None:
    shifted = {str(seed + 1): float(seed) for seed in range(6)}
    found = rank_tests({"a": seeds(*range(6)), "b": shifted})
    assert found.method == "Mann-Whitney U test"
    assert found.seeds == 5


def test_friedman_over_common_seeds() -> None:
    columns = [(1.0, 2.0, 3.0, 4.0), (2.0, 3.0, 4.0, 5.0), (3.0, 4.0, 5.0, 6.0)]
    groups = {name: seeds(*column) for name, column in zip("abc", columns, strict=True)}
    found = rank_tests(groups)
    # every seed ranks the groups alike: chi2 = 12 / (n k (k + 1)) sum R^2 - 3 n (k + 1) = 8
    assert found.friedman == pytest.approx(math.exp(-8 / 2))
    assert [(p.first, p.second) for p in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(p.adjusted >= p.p for p in found.pairs)


def test_ties_everywhere_are_no_difference() -> None:
    same = {name: seeds(*[0.5] * 6) for name in "abc"}
    found = rank_tests(same)
    assert found.friedman == 1.0
    assert [p.adjusted for p in found.pairs] == [1.0, 1.0, 1.0]
    few = rank_tests({name: seeds(0.5, 0.5, 0.5) for name in "ab"})
    assert few.pairs[0].p == 1.0


def test_too_few_seeds_are_said() -> None:
    three = rank_tests({"a": seeds(4, 5, 6), "b": seeds(1, 2, 3)})
    assert three.pairs[0].p == pytest.approx(smallest_p(3, 3, paired=False)) == 0.1
    assert "smallest p-value that this test can give is 0.1." in three.warnings[0]
    two = rank_tests({"a": seeds(4, 5), "b": seeds(1, 2, 3)})
    assert two.pairs == ()
    assert "only 2 seeds" in two.warnings[0]
    six = rank_tests({name: seeds(*range(6)) for name in "abcd"})
    assert "after the correction" in six.warnings[0]  # 0.031 in each of six pairs


def test_one_group_is_not_tested() -> None:
    found = rank_tests({"a": seeds(1, 2, 3)})
    assert (found.pairs, found.warnings, found.friedman) == ((), (), None)
