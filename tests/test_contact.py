from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="pip install 'agrikd[train]'")
pytest.importorskip("PIL", reason="pip install 'agrikd[check]'")

from agrikd import contact, image, plots
from agrikd.cli import app
from agrikd.contact import Photo, Shown
from agrikd.data.looks import Look
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row, save
from agrikd.data.synthetic import SyntheticConfig, write_dataset
from agrikd.errors import InputError

NASTY = "<script>alert(1)</script> & \"rust\" '锈病'"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would make of the file; raises where a tag is closed that is not open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source, self.open, self.tags, self.words = path.read_text(encoding="utf-8"), [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == [], "tags were left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(path: Path) -> Page:
    """The page, held to what every page must keep."""
    page = Page(path)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', page.source):
        assert reference in ids
    assert "http:" not in page.source and "https:" not in page.source
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    for attributes in page.named("img"):
        assert attributes["alt"] and attributes["src"].startswith("data:image/jpeg;base64,")
    for attributes in page.named("svg"):
        assert attributes["role"] == "img" and attributes["aria-label"]
    return page


def shown(data: Path, out: Path, per_class: int = 12, seed: int = 0) -> tuple[Shown, Page]:
    made = contact.run(data, None, out / "show.html", per_class, seed)
    return made, page_of(made.page)


def photo(path: Path, level: int = 90, size: tuple[int, int] = (60, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.write_jpeg(path, np.full((*size, 3), level, np.uint8))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 drawn pictures: two classes, rows without a label, and pictures of no plant."""
    folder = tmp_path_factory.mktemp("drawn") / "leaves"
    counts = {"train_per_class": 4, "unlabelled": 7, "val_per_class": 2, "test_per_class": 5, "non_plant": 4}
    write_dataset(folder, SyntheticConfig(size=64, classes=("healthy", "rust"), seasons=("2025", "2026"), **counts))
    return folder


def test_a_drawn_dataset(leaves: Path, tmp_path: Path) -> None:
    made, page = shown(leaves, tmp_path, per_class=3)
    assert made.rows == [
        ("healthy", "4", "2", "5"),
        ("rust", "4", "2", "5"),
        (NOT_A_PLANT, "0", "4", "4"),
        ("no label", "7", "0", "0"),
    ]
    text = page.text
    assert "37 photos: 22 of 2 classes, 7 without a label, 8 of no plant." in text
    assert "Synthetic pictures. All 37 pictures were drawn by a program." in text
    assert text.count("3 of 4 shown") == 4 and text.count("2 of 2 shown") == 2
    assert text.count("3 of 5 shown") == 2 and text.count("3 of 7 shown") == 1
    assert len(page.named("img")) == 3 * 7 + 2 * 2
    order = (
        "How many",
        "Are the splits alike?",
        "healthy train",
        "rust train",
        "Not a plant val",
        "Without a label train",
    )
    places = [text.rindex(words) for words in order]
    assert places == sorted(places)
    said = [attributes["aria-label"] for attributes in page.named("svg")]
    assert said[0] == "Photos of each class: healthy train 4, val 2, test 5; rust train 4, val 2, test 5"
    assert len(said) == 2 and said[1].startswith("Brightness, 0 to 255: train, median ")
    assert "Season 2025" in text and "Season 2026" in text and "Broken" not in text
    splits = made.contents.splits
    assert all(
        sum(split.seasons.values()) == split.photos == split.grouped >= split.groups for split in splits.values()
    )


def test_the_same_seed_draws_the_same_page_whatever_the_order(leaves: Path, tmp_path: Path) -> None:
    first = shown(leaves, tmp_path / "a", 3, seed=1)[1]
    assert shown(leaves, tmp_path / "b", 3, seed=1)[1].source == first.source
    rows = [*contact.open_data(leaves).rows]
    random.Random(0).shuffle(rows)
    save(Manifest(tuple(rows), leaves), tmp_path / "shuffled.csv")
    again = contact.run(tmp_path / "shuffled.csv", leaves, tmp_path / "c.html", 3, seed=1)
    assert [one["alt"] for one in page_of(again.page).named("img")] == [one["alt"] for one in first.named("img")]
    other = shown(leaves, tmp_path / "d", 3, seed=2)[1]
    assert [one["alt"] for one in other.named("img")] != [one["alt"] for one in first.named("img")]


def test_a_larger_sheet_keeps_the_smaller_ones_photos() -> None:
    photos = [Photo(Row(f"{n}.jpg", "rust", "train"), Look(f"{n}.jpg", f"{n:064}", 1, 8, 8)) for n in range(50)]
    few, many = contact.draw(photos, 5, 0), contact.draw(photos, 20, 0)
    assert few == many[:5] and [one.row.path for one in few] != [f"{n}.jpg" for n in range(5)]
    renamed = [Photo(replace(row, path=f"new/{row.path}"), look) for row, look in photos]
    assert [one.look for one in contact.draw(renamed, 5, 0)] == [one.look for one in few]


def test_broken_photos_are_counted_and_named(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / "rust" / f"{number}.jpg", 40 * number)
    whole = (tmp_path / "rust" / "0.jpg").read_bytes()
    (tmp_path / "rust" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rust" / "empty.jpg").write_bytes(b"")
    (tmp_path / "phoma").mkdir()
    (tmp_path / "phoma" / "text.jpg").write_text("no picture")
    (tmp_path / "phoma" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    made, page = shown(tmp_path, tmp_path)
    assert sorted(made.contents.broken) == ["phoma/gone.jpg", "phoma/text.jpg", "rust/cut.jpg", "rust/empty.jpg"]
    assert made.contents.splits["train"].broken == 4 and len(page.named("img")) == 3
    for words in (
        "Broken photos. 4 of 7 cannot be read: which . agrikd data check says what to do.",
        "0 of 2 shown, 2 broken",
        "3 of 5 shown, 2 broken",
        "rust/cut.jpg is cut short",
        "rust/empty.jpg is empty",
        "phoma/text.jpg cannot be decoded",
        "phoma/gone.jpg is not there",
    ):
        assert words in page.text
    assert json.loads(json.dumps(made.to_json()))["broken"][0] == {"path": "phoma/gone.jpg", "said": "is not there"}


def test_a_dataset_of_broken_photos_alone(tmp_path: Path) -> None:
    (tmp_path / "rust").mkdir()
    for number in range(50):
        (tmp_path / "rust" / f"{number:02}.jpg").write_bytes(b"x" * (number + 1))
    made, page = shown(tmp_path, tmp_path)
    assert made.contents.splits["train"].spreads == {} and len(made.contents.broken) == 50
    assert page.named("img") == [] and "0 of 50 shown, 50 broken" in page.text
    assert "… and 10 more" in page.text and "39.jpg cannot" in page.text and "40.jpg cannot" not in page.text


def test_a_photo_that_went_after_it_was_looked_at_is_a_tile_with_words(tmp_path: Path) -> None:
    photo(tmp_path / "here.jpg")
    rows = tuple(Row(name, "rust", "train") for name in ("here.jpg", "gone.jpg"))
    photos = [Photo(row, Look(row.path, "", 1, 60, 80, 90.0)) for row in rows]
    manifest = Manifest(rows, tmp_path)
    contact.write_page(tmp_path / "p.html", contact.count(manifest, photos), photos, "Coffee")
    page = page_of(tmp_path / "p.html")
    assert "No picture: there is no such file gone.jpg" in page.text and len(page.named("img")) == 1


def test_photos_without_any_label(tmp_path: Path) -> None:
    for number in range(14):
        photo(tmp_path / f"{number:02}.jpg", 10 * number)
    made, page = shown(tmp_path, tmp_path)
    assert made.rows == [("no label", "14")] and made.columns == ("class", "train")
    assert "14 photos without a label." in page.text and "12 of 14 shown" in page.text
    assert "What the photos are like" in page.text and "splits alike" not in page.text
    assert len(page.named("svg")) == 1  # no classes to count, sizes all alike


def test_one_photo(tmp_path: Path) -> None:
    photo(tmp_path / "rust" / "only.jpg")
    made, page = shown(tmp_path, tmp_path)
    assert made.rows == [("rust", "1")] and "1 photo of 1 class." in page.text
    assert len(page.named("img")) == 1 and "80 × 60" in page.text


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    names = [f"{n} {NASTY.replace('/', '')}.jpg" for n in range(2)]
    for name in names:
        photo(tmp_path / "photos" / name)
    rows = [Row(names[0], NASTY, "train", NASTY, NASTY), Row(names[1], "$\\frac{1}$", "test", source=NASTY)]
    save(Manifest(tuple(rows), tmp_path), tmp_path / "photos" / "manifest.csv")
    (tmp_path / "photos" / "broken <i>.jpg").write_bytes(b"no")
    made, page = shown(tmp_path / "photos", tmp_path / NASTY.replace("/", ""))
    assert made.contents.classes == ("$\\frac{1}$", NASTY)
    for words in (*names, NASTY, f"Season {NASTY}", f"group {NASTY}", "$\\frac{1}$"):
        assert words in page.text
    assert not page.named("i") and page.named("title")


def test_times_groups_and_seasons_are_counted(tmp_path: Path) -> None:
    taken = {"train": ("20250601_080000", "20250603_181500"), "test": ("20260702_070000",)}
    rows = []
    for split, times in taken.items():
        for time in times:
            photo(tmp_path / f"IMG_{time}.jpg", size=(100, 100) if split == "train" else (1000, 1500))
            rows.append(Row(f"IMG_{time}.jpg", "rust", split, f"plant {split}", time[:4]))
    photo(tmp_path / "timeless.jpg", 200)
    rows.append(Row("timeless.jpg", "rust", "test"))
    save(Manifest(tuple(rows), tmp_path), tmp_path / "manifest.csv")
    made, page = shown(tmp_path, tmp_path)
    train, test = made.contents.splits["train"], made.contents.splits["test"]
    assert (train.first, train.last, train.timed) == ("2025-06-01T08:00:00", "2025-06-03T18:15:00", 2)
    assert (test.first, test.last, test.timed) == ("2026-07-02T07:00:00", "2026-07-02T07:00:00", 1)
    assert (train.seasons, test.seasons) == ({"2025": 2}, {"2026": 1})
    assert (train.groups, train.grouped, test.groups, test.grouped) == (1, 2, 1, 1)
    assert train.spreads["shorter_side"] == contact.Spread(100, 100, 100)
    assert test.spreads["megapixels"].median == pytest.approx((1.5 + 0.0048) / 2)
    assert "First taken by EXIF or name 2025-06-01 08:00 2026-07-02 07:00" in page.text
    assert "Photos in a group 2 1" in page.text and "Season 2026 0 1" in page.text
    assert [one["aria-label"].partition(":")[0] for one in page.named("svg")] == [
        "Photos of each class",
        "Shorter side in pixels",
        "Megapixels",
        "Brightness, 0 to 255",
    ]


def test_some_pictures_drawn_and_some_taken(leaves: Path, tmp_path: Path) -> None:
    photo(tmp_path / "real.jpg")
    drawn = next(row for row in contact.open_data(leaves).rows if row.target == "rust" and row.split == "train")
    shutil.copy(leaves / drawn.path, tmp_path / "drawn.jpg")
    rows = Row("real.jpg", "rust", "train"), replace(drawn, path="drawn.jpg", group="")
    save(Manifest(rows, tmp_path), tmp_path / "manifest.csv")
    made, page = shown(tmp_path, tmp_path)
    assert made.contents.synthetic == 1 and "1 of 2 pictures were drawn by a program" in page.text
    assert page.text.count("· synthetic") == 1


def test_real_photos(datasets: Path, tmp_path: Path) -> None:
    folder = datasets / "cls-coffee-leaf"
    made, page = shown(folder, tmp_path, per_class=4)
    assert made.contents.photos == 544 and made.contents.broken == {} and made.contents.synthetic == 0
    assert len(page.named("img")) == 5 * 2 * 4
    assert page.text.count("4 of 80 shown") == 5 and "Synthetic" not in page.text
    assert not (folder / contact.PAGE).exists()
    assert len(page.source) < 600_000


def test_classes_that_read_alike_are_counted_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("leaf_rust", "leaf rust", "leaf rust")):
        photo(tmp_path / name / f"{number}.jpg")
    made, page = shown(tmp_path, tmp_path)
    assert made.rows == [("leaf rust", "2"), ("leaf_rust", "1")]
    assert page.named("svg")[0]["aria-label"] == "Photos of each class: leaf rust train 2; leaf_rust train 1"


def test_forty_classes_and_measures_far_apart_are_drawn() -> None:
    with plots.drawing():
        many = plots.counts({f"Tomato yellow leaf curl virus {n}": {"train": 12_345, "test": n} for n in range(40)})
        steep = plots.spreads("shorter side in pixels", {"train": [200, 4000], "test": [3000]}, (200, 4000))
    assert many.count("Tomato yellow leaf curl virus 39") == 2 and "12,345" in many
    assert "mathdefault" not in steep and "2,000" in steep


def test_the_verb(leaves: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["data", "show", str(leaves), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["page"] == str(out) and told["photos"] == told["synthetic"] == 37
    assert told["splits"]["test"]["labels"] == {"healthy": 5, "rust": 5} and page_of(out)
    assert CliRunner().invoke(app, ["data", "show", str(leaves), "--per-class", "0"]).exit_code == 2


def test_the_page_stands_beside_the_data(leaves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    assert contact.run(folder, None, None).page == folder / "show.html"
    assert contact.run(folder / "manifest.csv", None, None).page == folder / "show.html"


def test_mistakes_come_all_at_once(leaves: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as found:
        contact.run(tmp_path / "nothing.csv", None, leaves / "manifest.csv")
    assert [problem.wrong for problem in found.value.problems] == ["is no name of a page", "there is no such file"]
    with pytest.raises(InputError, match=r"is a folder\n.*show.html"):
        contact.run(leaves, None, tmp_path)
    with pytest.raises(ValueError, match="per_class is 0"):
        contact.run(leaves, None, None, per_class=0)
    assert list(tmp_path.iterdir()) == []
