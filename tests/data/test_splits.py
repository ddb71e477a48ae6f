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
from agrikd.data.splits import by_season, folds, season_mistakes, stratified, subset
from agrikd.errors import InputError
from agrikd.jobs import stratum_folds
from agrikd.tasks.classification import Classification

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
        assert "class 'c': has 1 labelled row:" in str(caught.value)
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


Pairs = list[tuple[str, str]]
SEASONS = {"2026": "test"}


def linked(manifest: Manifest, pairs: Pairs) -> list[set[str]]:
    """The paths of every two rows that share a group or a sha256, or are a pair: by looking at all of them."""
    named = {frozenset(pair) for pair in pairs}
    return [
        {one.path, other.path}
        for at, one in enumerate(manifest.rows)
        for other in manifest.rows[:at]
        if (one.group and one.group == other.group)
        or (one.sha256 and one.sha256 == other.sha256)
        or frozenset((one.path, other.path)) in named
    ]


def assert_whole(before: Manifest, after: Manifest, pairs: Pairs) -> None:
    """No link is torn; what is left out of the result is never labelled."""
    found = placed(after)
    for link in linked(before, pairs):
        assert len({found[path][1] for path in link if path in found}) <= 1
    assert all(row.path in found for row in before.rows if row.target not in (None, NOT_A_PLANT))


def shuffled(manifest: Manifest, pairs: Pairs, shuffler: random.Random) -> tuple[Manifest, Pairs]:
    rows, turned = list(manifest.rows), [pair[::-1] for pair in pairs]
    shuffler.shuffle(rows)
    shuffler.shuffle(turned)
    return made(rows), turned


@st.composite
def paired(draw: st.DrawFn) -> tuple[Manifest, Pairs]:
    """Rows in groups and copies, and pairs among those that need not stand alone; some pairs name no row."""
    manifest = draw(grouped())
    some = st.integers(9, len(manifest.rows) + 1).map("{}.jpg".format)
    return manifest, draw(st.lists(st.tuples(some, some), max_size=12))


@st.composite
def seasonal(draw: st.DrawFn) -> tuple[Manifest, Pairs]:
    """Rows of three seasons and none. A group, a copy or a pair keeps to one season, or to 2024, 2025 and none."""
    rows = [
        Row(f"{name}{i}.jpg", name, "train", season="2024", sha256=f"own{name}{i}") for name in "abc" for i in "xyz"
    ]
    cell = st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from(["", "2024", "2025", "2026"]))
    drawn = draw(st.lists(st.tuples(cell, st.integers(0, 4), st.integers(0, 4)), max_size=30))
    for i, ((target, season), group, copy) in enumerate(drawn):
        era = "new" if season == "2026" else "old"
        names = f"{era}g{group}" if group else "", f"{era}s{copy}" if copy else f"own{i}"
        rows.append(Row(f"{i}.jpg", target, "train", names[0], season, names[1]))
    rows.append(Row("judge.jpg", "a", "train", season="2026"))
    eras = [[row.path for row in rows[9:] if (row.season == "2026") == new] for new in (True, False)]
    pairs = [
        draw(st.lists(st.tuples(st.sampled_from(paths), st.sampled_from(paths)), max_size=4)) for paths in eras if paths
    ]
    return made(rows), [pair for some in pairs for pair in some]


class TestTogether:
    def test_a_chain_of_group_copy_and_pair_stays_together(self):
        rows = rows_of({"a": 40})
        rows[0] = replace(rows[0], group="plant")
        rows[1] = replace(rows[1], group="plant", sha256="copy")
        rows[2] = replace(rows[2], sha256="copy")
        pairs = [(rows[2].path, rows[3].path), (rows[4].path, rows[3].path)]
        pairs += [("taken out.jpg", rows[4].path), ("taken out.jpg", rows[5].path)]
        for seed in range(8):
            found = placed(stratified(made(rows), SHARES, seed, pairs))
            assert len({found[row.path][1] for row in rows[:6]}) == 1

    def test_without_pairs_nothing_changes_and_a_pair_of_strangers_joins_nothing(self):
        rows = made(rows_of({"a": 40, "b": 30}))
        strangers = [("absent.jpg", rows.rows[0].path), (rows.rows[1].path, "gone.jpg")]
        assert stratified(rows, SHARES, 3, strangers).rows == stratified(rows, SHARES, 3).rows

    def test_pairs_that_leave_too_few_units_are_an_error_of_the_class(self):
        rows = rows_of({"a": 4, "b": 9})
        with pytest.raises(InputError, match="class 'a': has 4 labelled rows in 2 groups that stay together"):
            stratified(made(rows), SHARES, 0, [(rows[0].path, rows[1].path), (rows[1].path, rows[2].path)])

    @QUICK
    @given(paired(), st.integers(0, 9), st.randoms(use_true_random=False))
    def test_no_link_is_torn_and_order_does_not_matter(self, drawn, seed: int, shuffler: random.Random):
        manifest, pairs = drawn
        found = stratified(manifest, SHARES, seed, pairs)
        assert_whole(manifest, found, pairs)
        assert all(set(counts(found, split)) >= set(manifest.classes) for split in SHARES)
        again, turned = shuffled(manifest, pairs, shuffler)
        assert placed(stratified(again, SHARES, seed, turned)) == placed(found)


class TestBySeason:
    def rows(self) -> list[Row]:
        return [
            replace(row, path=f"{season}/{row.path}", sha256=season + row.sha256, season=season)
            for season in ("2024", "2025", "2026")
            for row in rows_of({"a": 10, "b": 10, None: 4})
        ]

    def test_the_named_season_judges_whole_and_the_rest_trains(self):
        found = by_season(made(self.rows()), SEASONS, 0, 0)
        assert counts(found, "test") == {"a": 10, "b": 10}
        assert counts(found, "train") == {"a": 20, "b": 20, None: 8}
        assert not counts(found, "val")
        assert {row.season for row in found.rows if row.split == "test"} == {"2026"}

    def test_a_val_share_is_drawn_from_what_does_not_judge(self):
        found = by_season(made(self.rows()), SEASONS, 0.2, 0)
        assert counts(found, "val") == {"a": 4, "b": 4}
        assert counts(found, "test") == {"a": 10, "b": 10}
        assert "2026" not in {row.season for row in found.rows if row.split != "test"}

    def test_a_season_may_be_val(self):
        found = by_season(made(self.rows()), {"2026": "test", "2025": "val"}, 0, 0)
        assert [counts(found, split)["a"] for split in manifests.SPLITS] == [10, 10, 10]

    def test_a_row_without_a_season_follows_its_group_else_it_trains(self):
        rows = [*self.rows(), Row("x", "a", "train", "g"), Row("y", "a", "train", "g", "2026"), Row("z", "a", "test")]
        found = placed(by_season(made(rows), SEASONS, 0, 0))
        assert (found["x"][1], found["y"][1], found["z"][1]) == ("test", "test", "train")

    def test_what_is_not_a_plant_never_trains(self):
        strange = [Row(f"n{season}", NOT_A_PLANT, "test", season=season) for season in ("", "2024", "2026")]
        rows = made([*self.rows(), *strange])
        found = placed(by_season(rows, SEASONS, 0, 0))
        assert (found["n"][1], found["n2026"][1], "n2024" in found) == ("test", "test", False)
        found = placed(by_season(rows, SEASONS, 0.2, 0))
        assert (found["n"][1], found["n2024"][1]) == ("test", "val")

    def test_what_the_seasons_would_tear_apart_is_named(self):
        rows = self.rows()
        rows[0] = replace(rows[0], group="plot 7")
        rows[-5] = replace(rows[-5], group="plot 7")
        rows[1] = replace(rows[1], sha256=rows[-6].sha256)
        pairs = [(rows[2].path, rows[-7].path), (rows[3].path, rows[30].path)]
        said = {(problem.where, problem.wrong) for problem in season_mistakes(made(rows), SEASONS, pairs)}
        linked = "belong together (a group, a copy or a duplicate) and stand in the seasons 2024 and 2026"
        assert said == {
            ("group 'plot 7'", f"stands in the seasons 2024 and 2026; see {rows[0].path} and {rows[-5].path}"),
            (f"{rows[1].path} and {rows[-6].path}", linked),
            (f"{rows[2].path} and {rows[-7].path}", linked),
        }
        with pytest.raises(InputError, match="let both seasons judge"):
            by_season(made(rows), SEASONS, 0, 0, pairs)

    def test_unknown_seasons_are_named_with_those_there_are(self):
        problems = season_mistakes(made(self.rows()), {"2027": "test", "26": "val"})
        assert [problem.where for problem in problems] == ["season '2027'", "season '26'"]
        assert problems[0].mend == "the seasons are 2024, 2025, 2026"
        (problem,) = season_mistakes(made(rows_of({"a": 3})), SEASONS)
        assert problem.mend == "no photo has a season: fill the column season"

    def test_empty_splits_and_classes_nobody_learns_are_named(self):
        rows = [*self.rows(), Row("c", "c", "train", season="2026"), Row("d", "d", "train", season="2026")]
        assert [p.where for p in season_mistakes(made(rows), SEASONS)] == ["class 'c'", "class 'd'"]
        every = dict.fromkeys(("2024", "2025", "2026"), "test")
        assert [p.where for p in season_mistakes(made(rows), every)] == ["split train"]
        bare = [row for row in rows if row.target is None or row.season != "2026"]
        assert [p.where for p in season_mistakes(made(bare), SEASONS)] == ["split test"]

    def test_a_season_cannot_train(self):
        with pytest.raises(ValueError, match="expected val or test"):
            by_season(made(self.rows()), {"2026": "train"}, 0, 0)

    @QUICK
    @given(seasonal(), st.sampled_from([0.0, 0.3]), st.integers(0, 9), st.randoms(use_true_random=False))
    def test_properties(self, drawn, val_share: float, seed: int, shuffler: random.Random):
        manifest, pairs = drawn
        found = by_season(manifest, SEASONS, val_share, seed, pairs)
        assert_whole(manifest, found, pairs)
        for row in found.rows:
            assert row.season != "2026" or row.split == "test"
            assert row.season not in ("2024", "2025") or row.split != "test"
            assert row.target is not None or row.split == "train"
        assert set(counts(found, "train")) >= set(manifest.classes)
        again, turned = shuffled(manifest, pairs, shuffler)
        assert placed(by_season(again, SEASONS, val_share, seed, turned)) == placed(found)


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
        with pytest.raises(ValueError, match="0 labels, expected 1 or more"):
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

    def test_and_so_it_is_by_a_task(self):
        manifest = made(rows_of({"healthy": 3, "rust": 2}))
        with pytest.raises(InputError, match="class 'rust': has 2 rows, too few for 3 folds"):
            stratum_folds(Classification(manifest.classes), manifest, range(5), 3, 0)

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
