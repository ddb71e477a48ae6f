"""Golden values are worked out by hand here; properties are hypothesis's to break."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agrikd import intervals, metrics
from agrikd.intervals import Difference, Pair

QUICK = settings(max_examples=40, deadline=None)

TRUTH = [0, 0, 0, 1, 1, 2]
GUESS = [0, 0, 1, 1, 2, 2]
TABLE = [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
PROBABILITIES = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]
"""Tops 0.9, 0.8, 0.6, 0.7 for the classes 0, 0, 1, 1."""

logit_tables = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(2, 5)), elements=st.floats(-500, 500, width=32)
)
label_lists = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw_labels(logits: np.ndarray, seed: int) -> np.ndarray:
    """Labels drawn from softmax(logits): what a perfectly calibrated model would see."""
    shares = metrics.softmax(logits)
    below = rng(seed).random((len(shares), 1)) > np.cumsum(shares, axis=1)
    return np.minimum(below.sum(axis=1), shares.shape[1] - 1)


class TestSoftmax:
    def test_golden(self):
        np.testing.assert_allclose(metrics.softmax([[0.0, math.log(3)]]), [[0.25, 0.75]])
        np.testing.assert_allclose(metrics.softmax([[0.0, 2 * math.log(3)]], 2.0), [[0.25, 0.75]])

    def test_huge_logits_do_not_overflow(self):
        np.testing.assert_allclose(metrics.log_softmax([[1e300, 0.0]]), [[0.0, -1e300]])

    @QUICK
    @given(logit_tables, st.floats(0.05, 20), st.floats(-100, 100))
    def test_rows_sum_to_one_and_ignore_a_shift(self, logits, temperature, shift):
        shares = metrics.softmax(logits, temperature)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        np.testing.assert_allclose(metrics.softmax(logits + shift, temperature), shares, atol=1e-9)

    @QUICK
    @given(logit_tables)
    def test_log_softmax_is_its_own_log_softmax(self, logits):
        once = metrics.log_softmax(logits)
        np.testing.assert_allclose(metrics.log_softmax(once), once, atol=1e-9)

    def test_energy_golden(self):
        np.testing.assert_allclose(metrics.energy([[0.0, 0.0], [1.0, 1.0]]), [-math.log(2), -1 - math.log(2)])
        np.testing.assert_allclose(metrics.energy([[2.0, 2.0]], temperature=2.0), [-2 * (1 + math.log(2))])


class TestRightAndWrong:
    def test_confusion_has_a_row_per_true_class(self):
        assert metrics.confusion(TRUTH, GUESS, 3).tolist() == TABLE
        assert metrics.confusion(TRUTH, GUESS, 3).dtype == np.int64

    def test_accuracy(self):
        assert metrics.accuracy(TRUTH, GUESS) == pytest.approx(4 / 6)

    def test_precision_recall_f1(self):
        precision, recall, f1 = metrics.precision_recall_f1(TABLE)
        np.testing.assert_allclose(precision, [1, 1 / 2, 1 / 2])
        np.testing.assert_allclose(recall, [2 / 3, 1 / 2, 1])
        np.testing.assert_allclose(f1, [4 / 5, 1 / 2, 2 / 3])
        assert metrics.macro_f1(TABLE) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)

    def test_undefined_is_zero(self):
        # Class 1 is never guessed, class 2 never occurs but is guessed, class 3 is in neither.
        table = metrics.confusion([0, 0, 1], [0, 0, 2], 4)
        precision, recall, f1 = metrics.precision_recall_f1(table)
        assert (precision.tolist(), recall.tolist(), f1.tolist()) == ([1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])
        assert metrics.macro_f1(table) == pytest.approx(1 / 3)  # scikit-learn: 0.3333

    @QUICK
    @given(label_lists, st.randoms(use_true_random=False))
    def test_bounds_and_permutation_of_rows_and_of_classes(self, pairs, random):
        truth, guess = np.array(pairs).T
        value = metrics.macro_f1(metrics.confusion(truth, guess, 4))
        assert 0 <= value <= 1
        rows, names = list(range(len(truth))), np.arange(4)
        random.shuffle(rows)
        random.shuffle(names)
        again = metrics.confusion(names[truth[rows]], names[guess[rows]], 4)
        assert metrics.macro_f1(again) == pytest.approx(value)
        assert metrics.accuracy(truth[rows], guess[rows]) == pytest.approx(np.trace(again) / len(truth))

    @QUICK
    @given(label_lists)
    def test_a_perfect_prediction_is_one(self, pairs):
        truth = np.array(pairs)[:, 0]
        table = metrics.confusion(truth, truth, 4)
        precision, recall, f1 = metrics.precision_recall_f1(table)
        present = np.unique(truth)
        assert metrics.macro_f1(table) == metrics.accuracy(truth, truth) == 1
        assert (precision[present] == 1).all() and (recall[present] == 1).all() and (f1[present] == 1).all()

    def test_agreement(self):
        assert metrics.agreement([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75

    def test_auroc_counts_ties_half(self):
        assert metrics.auroc([1, 2], [3, 4]) == 1
        assert metrics.auroc([3, 4], [1, 2]) == 0
        assert metrics.auroc([1, 1], [1]) == 0.5
        assert metrics.auroc([1, 2, 3], [2, 4]) == pytest.approx((1.5 + 3) / 6)

    @QUICK
    @given(*[st.lists(st.integers(-5, 5), min_size=1, max_size=12)] * 2)
    def test_auroc_is_mann_whitney(self, negative, positive):
        wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
        assert metrics.auroc(negative, positive) == pytest.approx(wins / (len(negative) * len(positive)))
        assert metrics.auroc(positive, negative) == pytest.approx(1 - metrics.auroc(negative, positive))


class TestCalibration:
    def test_nll_of_logits_and_of_log_probabilities(self):
        expected = -(math.log(0.25) + math.log(0.5)) / 2
        assert metrics.nll([[0.0, math.log(3)], [7.0, 7.0]], [0, 1]) == pytest.approx(expected)
        assert metrics.nll(np.log([[0.25, 0.75], [0.5, 0.5]]), [0, 1]) == pytest.approx(expected)

    def test_brier(self):
        assert metrics.brier([[0.8, 0.2], [0.4, 0.6]], [0, 0]) == pytest.approx((0.08 + 0.72) / 2)
        assert metrics.brier([[1.0, 0.0]], [1]) == 2

    def test_ece_by_hand(self):
        # Five bins: (0.6, 0.8] holds 0.7 (wrong) and 0.8 (right), (0.8, 1] holds 0.9 (right), (0.4, 0.6] 0.6 (right).
        found = metrics.reliability(PROBABILITIES, [0, 0, 1, 0], bins=5)
        assert found.rows.tolist() == [0, 0, 1, 2, 1]
        np.testing.assert_allclose(found.confidence, [0, 0, 0.6, 0.75, 0.9])
        np.testing.assert_allclose(found.accuracy, [0, 0, 1, 0.5, 1])
        expected = (1 * 0.4 + 2 * 0.25 + 1 * 0.1) / 4
        assert metrics.ece(PROBABILITIES, [0, 0, 1, 0], bins=5) == pytest.approx(expected)

    def test_certainty_falls_into_the_last_bin(self):
        assert metrics.reliability([[1.0, 0.0]], [0]).rows.tolist() == [0] * 14 + [1]
        assert metrics.ece([[1.0, 0.0]], [0]) == 0
        assert metrics.ece([[1.0, 0.0]], [1]) == 1

    @QUICK
    @given(logit_tables, st.integers(0, 99))
    def test_bounds(self, logits, seed):
        shares, truth = metrics.softmax(logits), rng(seed).integers(0, logits.shape[1], len(logits))
        assert 0 <= metrics.ece(shares, truth) <= 1
        assert 0 <= metrics.brier(shares, truth) <= 2 + 1e-9
        assert metrics.nll(logits, truth) >= 0
        assert metrics.reliability(shares, truth).rows.sum() == len(truth)

    def test_kl_golden_and_its_direction(self):
        teacher, student = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
        assert metrics.kl(teacher, student) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
        assert metrics.kl(student, teacher) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))

    @QUICK
    @given(logit_tables, st.integers(0, 99))
    def test_kl_is_not_negative_and_zero_at_equality(self, logits, seed):
        assert metrics.kl(logits, logits + 3) == pytest.approx(0, abs=1e-9)
        assert metrics.kl(logits, rng(seed).normal(size=logits.shape)) >= -1e-12

    @pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
    def test_temperature_is_recovered(self, temperature):
        logits = rng(1).normal(size=(4000, 5)) * 2
        found = metrics.fit_temperature(logits * temperature, draw_labels(logits, 2))
        assert found == pytest.approx(temperature, rel=0.08)

    def test_temperature_is_the_best_of_a_grid(self):
        logits = rng(3).normal(size=(60, 4)) * 4
        truth = rng(4).integers(0, 4, 60)
        losses = [metrics.nll(logits / t, truth) for t in np.geomspace(0.05, 20, 200)]
        assert metrics.nll(logits / metrics.fit_temperature(logits, truth), truth) <= min(losses) + 1e-9

    @QUICK
    @given(logit_tables, st.integers(0, 99))
    def test_temperature_stays_in_its_range_and_never_hurts(self, logits, seed):
        truth = rng(seed).integers(0, logits.shape[1], len(logits))
        found = metrics.fit_temperature(logits, truth)
        assert 0.05 <= found <= 20
        assert metrics.nll(logits / found, truth) <= metrics.nll(logits, truth) + 1e-6

    def test_rows_without_a_mistake_leave_the_logits_alone(self):
        assert metrics.fit_temperature([[3.0, 0.0], [0.0, 5.0]], [0, 1]) == 1
        assert metrics.fit_temperature([[1.0, 1.0], [1.0, 1.0]], [0, 1]) == 1

    def test_always_wrong_is_the_flattest(self):
        assert metrics.fit_temperature([[9.0, 0.0], [0.0, 9.0]], [1, 0]) == pytest.approx(20)


class TestSelection:
    def test_risk_threshold_by_hand(self):
        # By confidence 0.9, 0.8, 0.7, 0.6: right, wrong, right, right. Risk so far: 0, 1/2, 1/3, 1/4.
        shares, truth = PROBABILITIES, [0, 1, 1, 1]
        assert metrics.risk_threshold(shares, truth, 0.0) == 0.9
        assert metrics.risk_threshold(shares, truth, 0.25) == 0.6
        assert metrics.coverage(shares, 0.6) == 1
        assert metrics.coverage(shares, 0.7) == 0.75

    def test_a_target_out_of_reach_answers_nothing(self):
        threshold = metrics.risk_threshold([[0.0, 1.0], [1.0, 0.0]], [0, 0], 0.1)
        assert threshold == np.nextafter(1, 2) > 1
        assert metrics.coverage([[0.0, 1.0]], threshold) == 0

    def test_equal_confidences_are_answered_together(self):
        assert metrics.risk_threshold([[0.8, 0.2], [0.8, 0.2]], [0, 1], 0.1) == metrics.NEVER

    @QUICK
    @given(logit_tables, st.integers(0, 99), st.floats(0, 1))
    def test_it_is_the_smallest_that_keeps_the_risk(self, logits, seed, target):
        shares, truth = metrics.softmax(logits), rng(seed).integers(0, logits.shape[1], len(logits))
        top, wrong = shares.max(axis=1), shares.argmax(axis=1) != truth
        keeps = [t for t in top if wrong[top >= t].mean() <= target]
        assert metrics.risk_threshold(shares, truth, target) == min(keeps, default=metrics.NEVER)

    def test_conformal_rank_by_hand(self):
        shares = [[p, 1 - p] for p in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)]
        assert metrics.conformal_quantile(shares, [0] * 9, 0.9) == pytest.approx(0.8)  # ⌈10 · 0.9⌉ = 9th of 9
        assert metrics.conformal_quantile(shares, [0] * 9, 0.5) == pytest.approx(0.4)  # 5th
        assert metrics.conformal_quantile(shares, [0] * 9, 0.91) == 1.0  # 10th of 9

    def test_conformal_sets_hold_the_truth_as_often_as_promised(self):
        held = []
        for seed in range(60):
            logits = rng(seed).normal(size=(1100, 4)) * 2
            truth, shares = draw_labels(logits, seed), metrics.softmax(logits, 0.3)  # far too sure
            quantile = metrics.conformal_quantile(shares[:100], truth[:100], 0.9)
            held.append(np.mean(1 - shares[np.arange(1100), truth][100:] <= quantile))
        assert 0.89 <= np.mean(held) <= 0.93


class TestIntervals:
    def test_wilson_golden(self):
        # By the formula with z = 1.959964, 8 of 10: (0.8 + 0.192073 ± 0.309506...) / 1.384146.
        z = 1.959963984540054
        half = z * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
        low, high = intervals.wilson(8, 10)
        assert (low, high) == pytest.approx(((0.8 + z**2 / 20 - half) / (1 + z**2 / 10),
                                             (0.8 + z**2 / 20 + half) / (1 + z**2 / 10)))  # fmt: skip
        assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)

    @QUICK
    @given(st.integers(1, 200), st.data())
    def test_wilson_holds_the_share(self, n, data):
        k = data.draw(st.integers(0, n))
        low, high = intervals.wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        wide = intervals.wilson(k, n, 0.99)
        assert wide.low <= low and high <= wide.high

    def test_bootstrap_of_a_mean_is_its_normal_interval(self):
        values = rng(0).normal(size=400)
        found = intervals.bootstrap(lambda index: float(values[index].mean()), 400, rng(1))
        error = 1.96 * values.std() / 20
        assert found.low == pytest.approx(values.mean() - error, abs=0.015)
        assert found.high == pytest.approx(values.mean() + error, abs=0.015)

    @QUICK
    @given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 99))
    def test_bootstrap_holds_the_estimate(self, right, seed):
        values = np.array(right, float)
        found = intervals.bootstrap(lambda index: float(values[index].mean()), len(values), rng(seed), 300)
        assert 0 <= found.low <= values.mean() <= found.high <= 1

    def test_the_same_seed_gives_the_same_interval(self):
        truth, guess = rng(0).integers(0, 3, (2, 50))
        one, two = (intervals.bootstrap_macro_f1(truth, guess, 3, rng(5), 200) for _ in range(2))
        assert one == two

    @pytest.mark.parametrize("grouped", [False, True])
    def test_the_fast_bootstrap_is_the_slow_one(self, grouped, monkeypatch):
        monkeypatch.setattr(intervals, "CHUNK", 70)  # several chunks, the last one short
        truth, guess = rng(0).integers(0, 4, (2, 30))
        groups = [f"plant {i // 4}" for i in range(30)] if grouped else None

        def slow(index):
            return metrics.macro_f1(metrics.confusion(truth[index], guess[index], 4))

        expected = intervals.bootstrap(slow, 30, rng(7), 101, groups=groups)
        assert intervals.bootstrap_macro_f1(truth, guess, 4, rng(7), 101, groups) == pytest.approx(expected)
        assert expected.low <= slow(np.arange(30)) <= expected.high

    def test_groups_are_drawn_whole(self):
        groups = np.array(["c", "b", "c", "a", "b", "c"])

        def whole(index):
            counts = np.bincount(index, minlength=6)
            assert counts[1] == counts[4] and counts[0] == counts[2] == counts[5]
            assert counts[[0, 1, 3]].sum() == 3
            return 0.0

        intervals.bootstrap(whole, 6, rng(0), 50, groups=groups)

    def test_groups_widen_the_interval_of_dependent_rows(self):
        right = np.repeat(rng(0).integers(0, 2, 20), 10)  # ten photos of each of twenty plants, all right or wrong
        truth, guess = np.ones(200, int), right
        alone = intervals.bootstrap_macro_f1(truth, guess, 2, rng(1))
        grouped = intervals.bootstrap_macro_f1(truth, guess, 2, rng(1), groups=np.repeat(np.arange(20), 10))
        assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def arms(share_a: float, share_b: float, seeds: int = 3, rows: int = 200, classes: int = 4, seed: int = 0) -> Pair:
    generator = rng(seed)
    truth = generator.integers(0, classes, rows)

    def runs(share: float) -> np.ndarray:
        noise = generator.integers(0, classes, (seeds, rows))
        return np.where(generator.random((seeds, rows)) < share, truth, noise)

    return Pair(truth, runs(share_a), runs(share_b), classes)


class TestStudies:
    def test_the_mean_is_the_difference_of_macro_f1(self):
        pair = arms(0.5, 0.7)
        each = [
            metrics.macro_f1(metrics.confusion(pair.truth, b, 4))
            - metrics.macro_f1(metrics.confusion(pair.truth, a, 4))
            for a, b in zip(pair.a, pair.b, strict=True)
        ]
        found = intervals.paired_bootstrap(pair, rng(1), 500)
        assert found.mean == pytest.approx(np.mean(each))
        assert found.low <= found.mean <= found.high
        assert intervals.verdict(found).startswith("helps by ")
        assert intervals.verdict(found, ways=("better by", "worse by")).startswith("better by ")

    @QUICK
    @given(st.integers(0, 99), st.integers(1, 4))
    def test_no_difference_cannot_be_told(self, seed, seeds):
        pair = arms(0.6, 0.6, seeds=seeds, rows=40, seed=seed)
        same = intervals.paired_bootstrap(pair._replace(b=pair.a), rng(seed), 50)
        assert same == Difference(0, 0, 0)
        assert intervals.verdict(same) == "can't tell: no difference on any draw of the photos"

    def test_swapping_the_arms_swaps_the_verdict(self):
        pair = arms(0.4, 0.8)
        there = intervals.paired_bootstrap(pair, rng(3), 500)
        back = intervals.paired_bootstrap(pair._replace(a=pair.b, b=pair.a), rng(3), 500)
        assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), abs=1e-9)
        assert intervals.verdict(back) == intervals.verdict(there).replace("helps", "hurts")

    def test_false_alarms_are_as_rare_as_promised(self):
        found = [intervals.paired_bootstrap(arms(0.6, 0.6, 5, 100, seed=s), rng(s), 200) for s in range(100)]
        alarms = sum(not intervals.verdict(one).startswith("can't tell") for one in found)
        assert alarms <= 10  # 5 expected of 100

    def test_seeds_that_differ_widen_the_interval(self):
        pair = arms(0.5, 0.5, seeds=4, rows=400)
        good, bad = pair.truth, np.zeros(400, int)
        steady = pair._replace(b=np.stack([np.where(np.arange(400) % 2, good, bad)] * 4))
        lucky = pair._replace(b=np.stack([good, good, bad, bad]))
        wide, narrow = (intervals.paired_bootstrap(one, rng(2), 500) for one in (lucky, steady))
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)

    def test_datasets_are_averaged(self):
        pairs = [arms(0.5, 0.7, seed=1), tuple(arms(0.5, 0.6, seeds=2, classes=3, seed=2))]
        alone = [intervals.paired_bootstrap(Pair(*pair), rng(0), 50).mean for pair in pairs]
        found = intervals.paired_bootstrap_mean(pairs, rng(0), 300)
        assert found.mean == pytest.approx(np.mean(alone))
        assert found.low <= found.mean <= found.high

    def test_a_study_is_judged_within_two_seconds(self):
        pair = arms(0.6, 0.7, seeds=5, rows=400, classes=8)
        start = time.process_time()
        intervals.paired_bootstrap(pair, rng(0), 2000)
        assert time.process_time() - start < 2

    def test_verdict_in_words(self):
        said = intervals.verdict(Difference(0.062, 0.021, 0.098))
        assert said == "helps by 6.2 points (95 % interval 2.1 to 9.8)"
        assert intervals.verdict(Difference(-0.062, -0.098, -0.021)) == said.replace("helps", "hurts")
        unclear = intervals.verdict(Difference(0.004, -0.01, 0.019, 0.9))
        assert unclear == "can't tell: 0.4 points (90 % interval −1.0 to 1.9)"
        assert intervals.verdict(Difference(0.062, 0.021, 0.098), margin=0.03).startswith("can't tell: 6.2 points")

    @pytest.mark.parametrize(
        ("found", "unit", "said"),
        [
            (Difference(0.062, 0.021, 0.098), None, "helps +6.2 (2.1 to 9.8)"),
            (Difference(-0.062, -0.098, -0.021), None, "hurts −6.2 (−9.8 to −2.1)"),
            (Difference(0.5, -1.0, 2.0), "%", "can't tell +0.500 (−1.00 to 2.00)"),
            (Difference(0.0, 0.0, 0.0), None, "no difference"),
        ],
    )
    def test_verdict_in_a_cell(self, found, unit, said):
        assert intervals.brief(found, unit).replace("\u00a0", " ") == said


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.softmax([1.0, 2.0]), "logits has shape"),
        (lambda: metrics.softmax(np.zeros((0, 3))), "none empty"),
        (lambda: metrics.softmax([[0.0, math.nan]]), "1 non-finite"),
        (lambda: metrics.softmax([[0.0, 1.0]], 0.0), "temperature is 0.0"),
        (lambda: metrics.accuracy([0, 1], [0]), "2 and 1 rows"),
        (lambda: metrics.accuracy([0.5], [0]), "expected integers"),
        (lambda: metrics.confusion([0, 3], [0, 0], 3), "truth goes from 0 to 3, expected 0 to 2"),
        (lambda: metrics.confusion([0, 1], [0, -1], 3), "predicted goes from -1"),
        (lambda: metrics.confusion([0, 1], [0], 3), "predicted has 1 rows, expected 2"),
        (lambda: metrics.macro_f1([[0, 0], [0, 0]]), "not all 0"),
        (lambda: metrics.macro_f1([[1, 0]]), "square"),
        (lambda: metrics.nll([[0.0, 1.0]], [0, 1]), "truth has 2 rows, expected 1"),
        (lambda: metrics.ece([[3.0, 1.0]], [0]), "apply softmax first"),
        (lambda: metrics.ece([[0.5, 0.5]], [0], bins=0), "bins is 0"),
        (lambda: metrics.kl([[0.0, 1.0]], [[0.0, 1.0, 2.0]]), "the student's"),
        (lambda: metrics.auroc([], [1.0]), "scores_negative"),
        (lambda: intervals.wilson(3, 2), "3 successes of 2"),
        (lambda: intervals.wilson(1, 2, 1.0), "confidence is 1.0"),
        (lambda: metrics.risk_threshold([[0.5, 0.5]], [0], 1.5), "target_risk is 1.5"),
        (lambda: metrics.conformal_quantile([[0.5, 0.5]], [0], 1.0), "coverage is 1.0"),
        (lambda: intervals.bootstrap(lambda index: math.nan, 3, rng(), 5), "non-finite"),
        (lambda: intervals.bootstrap(lambda index: 0.0, 3, rng(), 5, groups=[0, 1]), "groups has shape"),
        (lambda: intervals.bootstrap(lambda index: 0.0, 0, rng()), "n is 0"),
        (lambda: intervals.bootstrap_macro_f1([0], [0], 1, rng(), 0), "resamples is 0"),
        (lambda: intervals.paired_bootstrap(Pair([0], [[0]], [[0], [0]], 1), rng()), "seeds are paired"),
        (lambda: intervals.paired_bootstrap(Pair([0], [0], [0], 1), rng()), "a has shape"),
        (lambda: intervals.paired_bootstrap_mean([], rng()), "the number of pairs is 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
