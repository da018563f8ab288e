"""The gallery of a corpus: which pairs it shows, what it says, and that it is the same every time."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
from fake_pairs import FakeSampler
from html_page import check_readable, check_stands_alone, words

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.content import Content
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import Arrays, PairSampler, compute
from dakter.errors import DataError, IntegrityError
from dakter.report.corpus_page import build, write_gallery
from dakter.schema import SOS

PROVENANCE = {"source": "Sea of <Nowhere>", "licence": "on request", "citation": "N. N. 2020", "tiles_digest": "abc"}
SHIP = 3
SHIPS_AT, DOUBT_AT = {20: 4, 21: 1}, 37


class Sea(FakeSampler):
    """Certain sea with a speck of oil; ships in samples 20 and 21, sample 37 in doubt; never land."""

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, soft = super().__call__(indices)
        soft[:] = 0
        soft[:, 0] = 255
        soft[:, :, 0, 0] = np.array([0, 255, 0, 0, 0], np.uint8)
        for row, index in enumerate(indices):
            if int(index) in SHIPS_AT:
                soft[row, :, 4, : SHIPS_AT[int(index)]] = 255 * np.eye(5, dtype=np.uint8)[SHIP][:, None]
            if index == DOUBT_AT:
                soft[row] = np.array([85, 85, 85, 0, 0], np.uint8)[:, None, None]
        return images, soft


def make(url: str, sampler: PairSampler, shards: range, planned: int) -> Layout:
    layout = Layout.begin(url, CorpusConfig(samples_per_shard=8).identity(sampler), provenance=PROVENANCE)
    layout.grow(planned)
    for shard in shards:
        arrays: Arrays = compute(sampler, shard * 8, 8)
        write_shard(layout, shard, arrays, functools.partial(dict, committed_at=1.7e9 + shard))
    return layout


@pytest.fixture(scope="module")
def sea(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("sea"))
    manifest.finalise(make(url, Sea(), range(6), 6))
    return url


def captions(html: str, section: str) -> list[str]:
    inside = re.search(rf'<section id="{section}".*?</section>', html, flags=re.S)
    assert inside is not None
    return [words(found) for found in re.findall(r"<figcaption>(.*?)</figcaption>", inside.group(), flags=re.S)]


def test_it_says_what_the_corpus_is(sea: str) -> None:
    html = build(sea)
    text = words(html)
    digest = storage.read_json(f"{sea}/manifest.json")["digest"]
    assert "48 synthetic pairs of a SAR image and a soft label" in text
    assert "No observation is among them" in text
    assert "Sea of &lt;Nowhere&gt;" in text
    assert "on request" in text
    assert "N. N. 2020" in text
    assert f"corpus digest {digest}" in text
    assert "training tiles digest abc" in text
    assert "trainedAlgorithmicMedia" in text
    assert "finalised yes" in text
    assert "2023-11-14" in text
    assert "partial" not in text


def test_pairs_are_spread_and_the_rare_and_doubtful_are_found(sea: str) -> None:
    html = build(sea)
    spread = [int(re.findall(r"sample (\d+)", caption)[0]) for caption in captions(html, "spread")]
    assert spread == [0, 6, 13, 20, 26, 33, 40, 47]
    rare = captions(html, "rare")
    assert [caption.split(":")[0] for caption in rare] == [
        "ship, sample 20",
        "look-alike, sample 37",
        "oil spill, sample 37",
    ]  # rarest first; land never occurs
    doubt = captions(html, "doubt")
    assert doubt[0].startswith("sample 37:")
    assert doubt[0].endswith("entropy 1.10")
    assert len(doubt) == 4


def test_the_same_corpus_gives_the_same_page(sea: str, tmp_path: Path) -> None:
    twin = str(tmp_path / "twin")
    manifest.finalise(make(twin, Sea(), range(6), 6))
    assert build(sea) == build(twin)


def test_page_stands_alone_and_can_be_read_without_seeing(sea: str) -> None:
    html = build(sea)
    check_stands_alone(html)
    check_readable(html)


def test_numbers_are_those_of_the_records(sea: str) -> None:
    found = storage.read_json(f"{sea}/manifest.json")
    row = re.search(r'<th scope="row">oil spill</th>(.*?)</tr>', build(sea), flags=re.S)
    assert row is not None
    mean, low, high = (float(value) for value in re.findall(r"<td>([\d.]+)</td>", row.group(1)))
    assert mean == pytest.approx(100 * found["class_shares"][1], abs=0.005)
    assert low < mean < high


def test_a_partial_corpus_on_either_store_gets_a_page_beside_its_data(place: str) -> None:
    layout = make(place, FakeSampler(), range(2, 4), 5)
    assert write_gallery(place) == storage.join(place, "gallery.html")
    text = words(storage.read_bytes(layout.place("gallery.html")).decode())
    assert "2 of 5 shards are committed so far" in text
    assert "16 synthetic pairs" in text
    assert "finalised no" in text
    assert "sample 16" in text
    assert "sample 31" in text


def test_a_table_without_oil_shows_all_classes_mixed(tmp_path: Path) -> None:
    sampler = FakeSampler()
    names = ("sea surface", "slick", "look-alike", "ship", "land")
    sampler.content = Content(type(SOS)("other", names, ("#000000",) * 5), ("vv",), 8, 8, (0.0, 255.0))
    make(str(tmp_path), sampler, range(1), 1)
    where = str(tmp_path / "elsewhere" / "page.html")
    assert write_gallery(str(tmp_path), where) == where
    html = storage.read_bytes(where).decode()
    assert "class colours mixed by their probability" in html
    assert ">soft label</span>" in html
    assert "p(oil spill)" not in html


def test_an_empty_or_damaged_corpus_is_refused(tmp_path: Path) -> None:
    layout = make(str(tmp_path), FakeSampler(), range(0), 2)
    with pytest.raises(DataError, match="no shard is committed yet"):
        write_gallery(layout.url)
    write_shard(layout, 0, compute(FakeSampler(), 0, 8))
    storage.put(layout.place(layout.key("image", 0)), b"other bytes")
    with pytest.raises(IntegrityError, match="shard 0"):
        write_gallery(layout.url)
    assert not storage.exists(layout.place("gallery.html"))
