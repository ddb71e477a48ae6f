"""Dataset cards: each says what it must, is found wherever the package lies, and wrong ones are refused whole."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from agrikd.data import cards
from agrikd.data.download import Plan
from agrikd.errors import InputError

PUBLIC = {"cassava", "coffee-leaf-full", "deepweeds", "global-wheat-head", "ibean", "plantdoc", "plantvillage"}
GOOD: dict[str, Any] = {
    "name": "mine",
    "task": "classification",
    "folder": "mine",
    "source": "my field",
    "licence": "CC0",
    "cite": "nobody",
    "cautions": ["few photos"],
    "start": ".",
    "downloads": [{"url": "https://example.org/a.zip", "file": "a.zip"}],
}


def write(here: Path, **changes: object) -> Path:
    (here / "mine.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return here


def test_every_card_says_what_a_person_must_know() -> None:
    seen = cards.all_cards()
    for card in seen:
        assert card.licence and card.cite and card.source and card.cautions
        assert card.manifest or card.downloads
    assert len(seen) == 11 and {card.name for card in seen if card.downloads} == PUBLIC
    assert cards.names() == [card.name for card in seen]


def test_every_download_is_bounded_to_its_folder_and_has_a_true_sum_or_none() -> None:
    seen = [item for card in cards.all_cards() for item in card.downloads]
    assert len(seen) == 10
    for item in seen:
        assert item.url.startswith("https://")
        assert item.sha256 is None or len(set(item.sha256)) > 8
    assert sum(item.sha256 is not None for item in seen) == 5
    assert sum(item.sha256 is None and item.md5 is None for item in seen) == 4


def test_archives_of_a_repository_are_of_one_commit() -> None:
    seen = [item for card in cards.all_cards() for item in card.downloads if "github.com" in item.url]
    assert len(seen) == 3
    for item in seen:
        assert re.search(r"/archive/[0-9a-f]{40}\.zip$", item.url)


def test_sizes_add_up_or_are_not_known() -> None:
    assert cards.card("ibean").size_bytes == 143_812_152 + 18_504_213 + 17_708_541
    assert cards.card("plantdoc").size_bytes is None


@pytest.mark.parametrize(("typed", "mend"), [("plantvilage", "did you mean 'plantvillage'?"), ("zzz", "there are cas")])
def test_an_unknown_name_gets_a_near_one(typed: str, mend: str) -> None:
    with pytest.raises(InputError, match="there is no such card") as error:
        cards.card(typed)
    assert mend in str(error.value)


def test_a_table_s_columns_stand_in_the_next_command() -> None:
    said = {
        name: Plan(cards.card(name), Path("my photos")).next for name in cards.names() if cards.card(name).downloads
    }
    assert said["ibean"] == "agrikd init 'my photos'"
    assert said["deepweeds"] == "agrikd init 'my photos/labels.csv' --column target=Species"
    assert said["coffee-leaf-full"].startswith("write a table (path, label) of what 'my photos/lara2018")


def test_a_folder_of_other_cards(tmp_path: Path) -> None:
    assert cards.card("mine", write(tmp_path)).cautions == ("few photos",)
    assert cards.names(tmp_path) == ["mine"]


def test_all_mistakes_of_all_cards_come_at_once(tmp_path: Path) -> None:
    raw = {key: value for key, value in GOOD.items() if key != "licence"}
    raw["downloads"] = [{"url": "ftp://example.org/a", "file": "../a", "sha256": "0" * 63, "unpak": "zip"}]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**raw, "name": "bad"}))
    write(tmp_path, name="yours")
    with pytest.raises(InputError) as error:
        cards.all_cards(tmp_path)
    said = [problem.said for problem in error.value.problems]
    assert len(said) == 6
    for key in ("licence", "downloads.0.url", "downloads.0.file", "downloads.0.sha256", "downloads.0.unpak"):
        assert sum(f"bad.yaml: {key}" in line for line in said) == 1, key
    assert "mine.yaml: name: is 'yours'" in said[-1] and "did you mean 'unpack'?" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"start": None}, "'start'"),
        ({"downloads": []}, "'start'"),
        ({"start": "../other"}, "must stay inside"),
        ({"downloads": [{**GOOD["downloads"][0], "into": "/etc"}]}, "must stay inside"),
        ({"downloads": GOOD["downloads"] * 2}, "same file name"),
        ({"cautions": []}, "cautions"),
        ({"folder": "a/b"}, "folder"),
    ],
)
def test_a_card_that_cannot_be_right(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        cards.card("mine", write(tmp_path, **changes))


def test_no_cards_says_how_to_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there are none"):
        cards.names(tmp_path)
    monkeypatch.setattr(cards, "CHECKOUT", tmp_path / "data")
    monkeypatch.setattr(metadata, "files", lambda _: [])
    with pytest.raises(InputError, match="--cards FOLDER"):
        cards.names()


def test_an_installed_package_finds_its_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed(metadata.PackagePath):
        def locate(self) -> Path:
            return tmp_path / self.name

    write(tmp_path)
    listed = [Listed(f"../../../{cards.INSTALLED}/mine.yaml"), Listed("agrikd/other.yaml")]
    monkeypatch.setattr(cards, "CHECKOUT", tmp_path / "data")
    monkeypatch.setattr(metadata, "files", lambda _: listed)
    assert cards.names() == ["mine"]


def test_a_wheel_carries_the_cards() -> None:
    project = (cards.CHECKOUT.parent / "pyproject.toml").read_text()
    assert f'[tool.setuptools.data-files]\n"{cards.INSTALLED}" = ["data/*.yaml"]' in project
