"""Splits, subsets and folds: who stays together, who is hidden, and that order never matters."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agrikd.data import manifest as manifests
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row
from agrikd.data.splits import folds, stratified, subset
from agrikd.errors import InputError

QUICK = settings(max_examples=60, deadline=None)
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
ROOT = Path("/nowhere")


def rows_of(per_class: dict[str | None, int], split: str = "train", prefix: str = "") -> list[Row]:
    return [
        Row(f"{prefix}{split}/{target}/{i}.jpg", target, split, sha256=f"{prefix}{split}{target}{i}")
        for target, count in per_class.items()
        for i in range(count)
    ]


def made(rows: list[Row]) -> Manifest:
    return Manifest(tuple(rows), ROOT)


def placed(manifest: Manifest) -> dict[str, tuple[str | None, str]]:
    return {row.path: (row.target, row.split) for row in manifest.rows}


def counts(manifest: Manifest, split: str) -> dict[str | None, int]:
    return dict(Counter(row.target for row in manifest.rows if row.split == split))


@st.composite
def grouped(draw: st.DrawFn) -> Manifest:
    """Rows of three classes and none, in groups and copies that may mix them all; three of each stand alone."""
    few, target = st.integers(0, 12), st.sampled_from(["a", "b", "c", None])
    drawn = [(target, 0, 0) for target in "abc" for _ in range(3)]
    drawn += draw(st.lists(st.tuples(target, few, few), max_size=30))
    rows = [
        Row(f"{i}.jpg", target, "train", group=f"g{group}" if group else "", sha256=f"s{copy}" if copy else f"own{i}")
        for i, (target, group, copy) in enumerate(drawn)
    ]
    return made(rows)


class TestStratified:
    def test_the_shares_are_exact_where_rows_are_alone(self):
        found = stratified(made(rows_of({"a": 50, "b": 20, "c": 10})), SHARES, 0)
        assert counts(found, "train") == {"a": 35, "b": 14, "c": 7}
        assert counts(found, "val") == {"a": 5, "b": 2, "c": 1}
        assert counts(found, "test") == {"a": 10, "b": 4, "c": 2}

    def test_three_rows_are_enough_for_three_splits(self):
        found = stratified(made(rows_of({"a": 3, "b": 4})), SHARES, 0)
        assert [counts(found, split) for split in ("train", "val", "test")] == [
            {"a": 1, "b": 2},
            {"a": 1, "b": 1},
            {"a": 1, "b": 1},
        ]

    def test_a_small_class_is_named_with_its_count(self):
        with pytest.raises(InputError) as caught:
            stratified(made(rows_of({"a": 2, "b": 10, "c": 1})), SHARES, 0)
        assert len(caught.value.problems) == 2
        assert "class 'a': has 2 labelled rows: too few for train, val, test" in str(caught.value)
        assert "class 'c': has 1 labelled rows" in str(caught.value)
        assert "label more photos" in str(caught.value)

    def test_a_class_in_too_few_groups_is_named(self):
        rows = [replace(row, group=f"plant {i % 2}") for i, row in enumerate(rows_of({"a": 10}))]
        with pytest.raises(InputError, match="10 labelled rows in 2 groups that stay together"):
            stratified(made(rows), SHARES, 0)

    def test_unlabelled_rows_train_unless_their_group_judges(self):
        plants = [replace(row, group=f"plant {i}") for i, row in enumerate(rows_of({"a": 10, "b": 10}))]
        beside = [replace(row, path=f"beside {row.path}", target=None, sha256="") for row in plants]
        found = stratified(made(plants + beside + rows_of({None: 5})), SHARES, 0)
        judging = {row.group for row in found.rows if row.split != "train"}
        assert counts(found, "train") == {"a": 7, "b": 7, None: 14 + 5}
        assert not judging & {row.group for row in found.rows if row.target is None}
        assert manifests.check(found, "here") == []

    def test_only_unlabelled_rows_all_train(self):
        assert counts(stratified(made(rows_of({None: 4})), SHARES, 0), "train") == {None: 4}

    def test_what_is_not_a_plant_only_judges(self):
        found = stratified(made(rows_of({"a": 20, "b": 20, NOT_A_PLANT: 9})), SHARES, 0)
        assert NOT_A_PLANT not in counts(found, "train")
        assert (counts(found, "val")[NOT_A_PLANT], counts(found, "test")[NOT_A_PLANT]) == (3, 6)
        found = stratified(made(rows_of({"a": 20, NOT_A_PLANT: 1})), {"train": 0.8, "test": 0.2}, 0)
        assert counts(found, "test")[NOT_A_PLANT] == 1
        with pytest.raises(InputError, match="no val or test to hold them"):
            stratified(made(rows_of({"a": 20, NOT_A_PLANT: 1})), {"train": 1.0}, 0)

    def test_a_plant_beside_what_is_not_a_plant_judges_with_it(self):
        rows = [*rows_of({"a": 20}), Row("x", "a", "train", group="g"), Row("y", NOT_A_PLANT, "train", group="g")]
        found = placed(stratified(made(rows), SHARES, 0))
        assert found["x"][1] == found["y"][1] != "train"

    @QUICK
    @given(grouped(), st.integers(0, 9), st.randoms(use_true_random=False))
    def test_properties(self, manifest: Manifest, seed: int, shuffler: random.Random):
        found = stratified(manifest, SHARES, seed)
        # A partition: every labelled row stands once with its label; an unlabelled one is in train or left out.
        before, after = placed(manifest), placed(found)
        assert len(after) == len(found.rows) and set(after) <= set(before)
        assert all(after[path][0] == target for path, (target, _) in before.items() if target or path in after)
        assert all(split == "train" for target, split in after.values() if target is None)
        # Nothing is torn apart, no class is missing anywhere.
        for key in ("group", "sha256"):
            splits = defaultdict(set)
            for row in found.rows:
                splits[getattr(row, key)].add(row.split)
            assert all(len(seen) == 1 for value, seen in splits.items() if value)
        assert all(set(counts(found, split)) >= set(manifest.classes) for split in SHARES)
        # The order of the rows does not matter, the result keeps it, and the seed decides.
        shuffled = list(manifest.rows)
        shuffler.shuffle(shuffled)
        assert placed(stratified(made(shuffled), SHARES, seed)) == after
        assert [row.path for row in found.rows] == [row.path for row in manifest.rows if row.path in after]

    @QUICK
    @given(st.dictionaries(st.sampled_from("abcd"), st.integers(10, 60), min_size=1), st.integers(0, 9))
    def test_label_counts_are_the_shares_rounded(self, per_class, seed):
        found = stratified(made(rows_of(per_class)), SHARES, seed)
        for split, share in SHARES.items():
            for name, total in per_class.items():
                assert abs(counts(found, split)[name] - share * total) < 1

    @QUICK
    @given(st.lists(st.integers(1, 6), min_size=3, max_size=30), st.integers(0, 9))
    def test_grouped_counts_are_near_the_shares(self, sizes, seed):
        rows = [Row(f"{g}/{i}", "a", "train", group=str(g)) for g, size in enumerate(sizes) for i in range(size)]
        found = stratified(made(rows), SHARES, seed)
        for split, share in SHARES.items():
            assert abs(counts(found, split)["a"] - share * len(rows)) < 2 * max(sizes)

    def test_another_seed_draws_others(self):
        rows = made(rows_of({"a": 40}))
        tests = {tuple(stratified(rows, SHARES, seed).indices("test")) for seed in range(5)}
        assert len(tests) == 5

    @pytest.mark.parametrize("shares", [{"train": 0.5}, {"train": 1.5, "test": -0.5}, {"trian": 1.0}, {}])
    def test_shares_must_be_shares(self, shares):
        with pytest.raises(ValueError, match="the shares are"):
            stratified(made(rows_of({"a": 9})), shares, 0)


def labels(manifest: Manifest, split: str = "train") -> dict[str, set[str]]:
    found = defaultdict(set)
    for index in manifest.indices(split, labelled=True):
        found[str(manifest.rows[index].target)].add(manifest.rows[index].path)
    return found


class TestSubset:
    full = made(
        [
            *rows_of({"a": 40, "b": 50, None: 7}),
            *rows_of({"a": 3, "b": 3, NOT_A_PLANT: 2}, "val"),
            *rows_of({"a": 9, "b": 9, NOT_A_PLANT: 2}, "test"),
        ]
    )

    def test_none_is_the_manifest_itself(self):
        assert subset(self.full, None, 0) is self.full

    @pytest.mark.parametrize("n", [5, 10, 20, 40])
    def test_n_labels_per_class_including_val(self, n):
        found = subset(self.full, n, 0)
        assert {name: len(paths) for name, paths in labels(found).items()} == {"a": n - 3, "b": n - 3}
        assert len(found.rows) == len(self.full.rows)
        assert len(found.indices("train")) == len(self.full.indices("train"))
        for split in ("val", "test"):
            assert [found.rows[i] for i in found.indices(split)] == [
                self.full.rows[i] for i in self.full.indices(split)
            ]

    def test_only_labels_are_hidden(self):
        for before, after in zip(self.full.rows, subset(self.full, 10, 0).rows, strict=True):
            assert after in (before, replace(before, target=None))

    @QUICK
    @given(st.integers(0, 99), st.randoms(use_true_random=False))
    def test_nested_and_blind_to_order_and_to_val(self, seed, shuffler):
        small = {n: labels(subset(self.full, n, seed)) for n in (5, 10, 20, 40)}
        for few, more in ((5, 10), (10, 20), (20, 40)):
            assert all(small[few][name] < small[more][name] for name in "ab")
        shuffled = list(self.full.rows)
        shuffler.shuffle(shuffled)
        assert labels(subset(made(shuffled), 10, seed)) == small[10]

    def test_the_draw_survives_a_renaming(self):
        renamed = made([replace(row, path=f"moved/{row.path}") for row in self.full.rows])
        moved = {f"moved/{path}" for path in labels(subset(self.full, 5, 0))["a"]}
        assert labels(subset(renamed, 5, 0))["a"] == moved

    def test_another_seed_draws_others(self):
        assert len({frozenset(labels(subset(self.full, 5, seed))["a"]) for seed in range(5)}) == 5

    def test_every_class_with_too_few_is_named(self):
        with pytest.raises(InputError) as caught:
            subset(made(rows_of({"a": 4, "b": 3, "c": 9})), 5, 0)
        assert [problem.where for problem in caught.value.problems] == ["class 'a'", "class 'b'"]
        assert "4 labelled rows in train and 0 in val, fewer than 5" in str(caught.value)

    @pytest.mark.parametrize("n", [2, 3])
    def test_a_val_split_that_eats_every_label_is_refused(self, n):
        with pytest.raises(InputError, match=f"3 rows in val, which count: none of {n} labels"):
            subset(self.full, n, 0)

    def test_zero_labels_is_a_mistake_of_the_caller(self):
        with pytest.raises(ValueError, match="labels_per_class is 0"):
            subset(self.full, 0, 0)


class TestFolds:
    def test_every_class_is_spread_evenly(self):
        targets = ["a"] * 11 + ["b"] * 7
        found = folds(targets, 3, seed=0)
        assert found.dtype == np.int64
        assert sorted(np.bincount(found[:11])) == [3, 4, 4]
        assert sorted(np.bincount(found[11:])) == [2, 2, 3]
        assert sorted(np.bincount(found)) == [6, 6, 6]

    @QUICK
    @given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(2, 5), st.integers(0, 9))
    def test_properties(self, targets, k, seed):
        sizes = Counter(targets)
        if min(sizes.values()) < k:
            with pytest.raises(InputError) as caught:
                folds(targets, k, seed)
            assert len(caught.value.problems) == sum(size < k for size in sizes.values())
            return
        found = folds(targets, k, seed)
        for name in sizes:
            per_fold = np.bincount(found[np.array(targets) == name], minlength=k)
            assert per_fold.max() - per_fold.min() <= 1 and len(per_fold) == k
        assert (folds(np.array(targets), k, seed) == found).all()

    @QUICK
    @given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ab")), min_size=6, max_size=30), st.integers(0, 9))
    def test_groups_stay_in_one_fold(self, plants, seed):
        assume(min(Counter(target for _, target in plants).values()) >= 3)
        assume(len({target for _, target in plants}) == 2)
        targets = [target for size, target in plants for _ in range(size)]
        groups = [f"plant {i}" for i, (size, _) in enumerate(plants) for _ in range(size)]
        found = folds(targets, 3, seed, groups)
        folds_of = defaultdict(set)
        for group, fold in zip(groups, found, strict=True):
            folds_of[group].add(fold)
        assert all(len(seen) == 1 for seen in folds_of.values())
        assert all({f for f, t in zip(found, targets, strict=True) if t == name} == {0, 1, 2} for name in "ab")

    def test_rows_without_a_group_stand_alone(self):
        found = folds(["a"] * 6, 3, 0, ["", "", "", "", "p", "p"])
        assert sorted(np.bincount(found)) == [2, 2, 2] and found[4] == found[5]

    def test_a_class_with_fewer_groups_than_folds_is_named(self):
        with pytest.raises(InputError, match="class 'b': has 2 groups, too few for 3 folds"):
            folds(["a"] * 4 + ["b"] * 4, 3, 0, ["1", "2", "3", "4", "5", "5", "6", "6"])

    def test_the_seed_decides(self):
        targets = ["a"] * 30
        assert len({tuple(folds(targets, 5, seed)) for seed in range(5)}) == 5
        assert (folds(targets, 5, 3) == folds(targets, 5, 3)).all()

    @pytest.mark.parametrize(
        ("targets", "k", "groups", "says"),
        [(["a"] * 4, 1, None, "1 folds"), ([], 2, None, "0 rows"), (["a"] * 4, 2, ["g"], "1 groups and 4 targets")],
    )
    def test_a_mistake_is_named(self, targets, k, groups, says):
        with pytest.raises(ValueError, match=says):
            folds(targets, k, 0, groups)
