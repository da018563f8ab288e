"""The curate job on the tiles of the preset ``tiny``: a corpus of real images with planted faults."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import check_readable, check_stands_alone, words

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.content import Content
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.shard import compute
from dakter.data.tiles import TileCorpus
from dakter.diffusion.network import JointUNet, NetworkConfig
from dakter.diffusion.pipeline import JointDiffusionPipeline, save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.errors import ConfigError, ConflictError, DataError, Stopped
from dakter.evaluate.gates import RULES
from dakter.evaluate.measures import Gauge
from dakter.schema import SOS, ClassTable
from jobs import _cli, curate
from jobs._cli import Stop, main
from jobs.curate import JOB, CurateSettings

SHARD = 4
# Of 16 samples the first 12 are the val images; the others each break one rule, and some break more.
BRIGHT, COPY, REPEAT, EMPTY = 12, 13, 14, 15
REAL = list(range(12))


class Planted:
    """Val images with their labels, then planted faults."""

    micro_batch = SHARD

    def __init__(self, tiles: TileCorpus, size_px: int = 32):
        train, val = tiles.read("train"), tiles.read("val")
        bright = np.clip(val.images[5].astype(int) + 120, 0, 255)
        others = [
            bright,
            train.images[3][:, ::-1] // 2 + 40,
            np.rot90(val.images[6], 1, (1, 2)),  # the extreme of no measure: turning rounds a little
            val.images[0] * 0 + 90,
        ]
        self.images = np.concatenate([val.images, np.stack(others).astype(np.uint8)])
        turned = np.rot90(val.labels[[6]], 1, (1, 2))
        self.labels = np.concatenate([val.labels, val.labels[[5]], train.labels[[3]], turned, val.labels[[0]]])
        bands, value_range = tiles.manifest.bands, tiles.manifest.value_range
        self.content = Content(tiles.manifest.class_table, bands, size_px, size_px, value_range)
        self.identity: dict[str, Any] = {"model_digest": "planted"}

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        soft = (self.labels[indices][:, None] == np.arange(5)[:, None, None]).astype(np.uint8) * 255
        return self.images[indices], soft


@pytest.fixture(scope="module")
def sources(tiny_tiles: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Places of the tiles and of the planted corpus."""
    url = str(tmp_path_factory.mktemp("planted"))
    sampler = Planted(TileCorpus.open(tiny_tiles))
    layout = Layout.begin(url, CorpusConfig(samples_per_shard=SHARD).identity(sampler))
    layout.grow(4)
    for shard in range(4):
        write_shard(layout, shard, compute(sampler, shard * SHARD, SHARD))
    manifest.finalise(layout)
    return {"paths.tiles": tiny_tiles, "paths.corpus": url}


def settings(sources: dict[str, str], out: Path | str, **changes: Any) -> CurateSettings:
    rules = {f"curate.{rule}": 0.0 for rule in RULES if rule != "agreement"}
    more = {f"curate.{name}": value for name, value in changes.items()}
    return _cli.resolve(CurateSettings, overrides={"out": str(out), **sources, **rules, **more})


@pytest.fixture(scope="module")
def made(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a curation by every rule but agreement."""
    out = tmp_path_factory.mktemp("run")
    _cli.execute(JOB, settings(sources, out), Stop())
    return out / "curation"


def test_the_planted_are_turned_away_and_the_real_stay(made: Path, sources: dict[str, str]) -> None:
    document = storage.read_json(str(made / "accept.json"))
    assert document["indices"] == REAL
    counts = document["counts"]
    assert sum(row["first"] for row in counts.values()) == 4
    assert counts["mean"]["fails"] >= 1
    assert counts["copies"]["fails"] >= 1
    assert counts["duplicates"] == {"fails": 1, "alone": 1, "first": 1}
    assert document["corpus_digest"] == CorpusReader(sources["paths.corpus"]).digest
    assert document["tiles_digest"] == TileCorpus.open(sources["paths.tiles"]).manifest.digest
    assert document["limits"]["copies/"]["num_real"] == 12
    assert document["limits"]["mean/"]["num_real"] == 44
    figures = storage.read_json(str(made.parent / "stages/curate.json"))["figures"]
    assert (figures["num_samples"], figures["num_accepted"]) == (16, 12)
    assert sum(figures["rejected_first_by"].values()) == 4
    # At 0 the limits are the extremes of train and val together, so no image of val is beyond.
    assert set(document["val_share_failing"].values()) == {0.0}
    assert set(document["val_share_failing"]) == {*counts, "any"} - {"duplicates", "quotas"}


def test_a_reader_visits_the_accepted_alone(made: Path, sources: dict[str, str]) -> None:
    reader = CorpusReader(sources["paths.corpus"], accept=str(made / "accept.json"))
    assert reader.indices.tolist() == REAL
    everything = CorpusReader(sources["paths.corpus"]).sample(range(16))[0]
    seen = {
        int(np.flatnonzero((image == everything).all(axis=(1, 2, 3)))[0])
        for images, _ in islice(reader.batches(4, seed=0), 6)
        for image in images
    }
    assert seen == set(REAL)


def test_the_page_shows_what_was_turned_away_and_why(made: Path) -> None:
    html = (made / "gallery.html").read_text()
    check_stands_alone(html)
    check_readable(html)
    assert "12 of 16 synthetic pairs accepted" in words(html)

    def section(rule: str) -> str:
        inside = re.search(rf'<section id="{rule}".*?</section>', html, flags=re.S)
        assert inside is not None
        return words(inside.group())

    assert f"sample {BRIGHT}:" in section("mean")
    assert re.search(r"mean 0\.\d+, above 0\.\d+", section("mean"))
    assert f"sample {COPY}:" in section("copies")
    assert "nearest training image" in section("copies")
    assert f"sample {REPEAT}:" in section("duplicates")
    assert f"sample {EMPTY}:" in section("spread")
    assert "sample 0:" in section("kept")
    assert "It turned no sample away" in section("quotas")


def test_the_same_again_does_nothing_and_another_is_refused(made: Path, sources: dict[str, str]) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert {path.name for path in before} >= {"accept.json", "gallery.html", "00000003.npz"}
    again = curate.run(settings(sources, made.parent, pictures=3, threads=1), Stop())
    assert again["already_done"]
    assert again["num_accepted"] == 12
    with pytest.raises(ConflictError, match=r"settings\.looks: 0\.0 there, None asked for"):
        curate.run(settings(sources, made.parent, looks=None), Stop())
    with pytest.raises(ConflictError, match=r"settings\.quotas\.ship: None there, 0\.1 asked for"):
        curate.run(settings(sources, made.parent, quotas={"ship": 0.1}), Stop())
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_stopped_run_goes_on_where_it_stood_and_so_do_other_rules(
    made: Path, sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    measure = Gauge.measure

    def counted(self: Gauge, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Any:
        measured.append(len(numbers))
        return measure(self, images, labels, numbers)

    monkeypatch.setattr(Gauge, "measure", counted)
    with pytest.raises(Stopped, match="measures of 1 of 4 shards are kept"):
        curate.run(settings(sources, tmp_path, threads=1), Stop(requested=True))
    assert not (tmp_path / "curation/accept.json").exists()
    curate.run(settings(sources, tmp_path, threads=1), Stop())
    assert sorted(measured) == [SHARD] * 4 + [12, 12], "each shard once, val at each start"
    assert (tmp_path / "curation/accept.json").read_bytes() == (made / "accept.json").read_bytes()
    assert (tmp_path / "curation/gallery.html").read_bytes() == (made / "gallery.html").read_bytes()
    (tmp_path / "curation/accept.json").unlink()
    looser = dict.fromkeys(("copies", "mean", "spread", "looks", "spectrum", "damping", "shares"))
    figures = curate.run(settings(sources, tmp_path, **looser), Stop())
    assert figures["rejected_first_by"] == {"duplicates": 2, "quotas": 0}, "also the brighter one repeats an image"
    assert measured[-1] == 12
    assert len(measured) == 7, "no rule is part of what was measured"


def test_a_quota_is_reached_or_refused(sources: dict[str, str], tmp_path: Path) -> None:
    labels = Planted(TileCorpus.open(sources["paths.tiles"])).labels[REAL]
    oil = [i for i in REAL if (labels[i] == 1).sum() >= 4]
    assert 0 < len(oil) < 8, "else the quota below asks nothing"
    figures = curate.run(settings(sources, tmp_path / "a", quotas={"oil spill": 0.75}), Stop())
    chosen = storage.read_json(figures["accept"])["indices"]
    assert set(oil) <= set(chosen) <= set(REAL)
    assert len(chosen) == int(len(oil) / 0.75)
    assert figures["rejected_first_by"]["quotas"] == 12 - len(chosen)
    with pytest.raises(ConfigError, match=r"oil spill: 0\.75 asked for; 0 of 12 samples"):
        curate.run(settings(sources, tmp_path / "b", quotas={"oil spill": 0.75}, contains_px=2000), Stop())
    assert {path.name[:8] for path in (tmp_path / "b/curation").iterdir()} == {"measures"}
    figures = curate.run(settings(sources, tmp_path / "b"), Stop())
    assert figures["num_accepted"] == 12, "a refused quota leaves nothing in the way of another"
    flags = [f"--{key}={value}" for key, value in sources.items()]
    assert main(JOB, ["--out", str(tmp_path / "c"), *flags, "--curate.quotas", "{slick: 0.5}"]) == 2
    assert not (tmp_path / "c/curation").exists()


def save(url: str, table: ClassTable) -> str:
    """An untrained model of 32 px for a class table."""
    made = JointDiffusionPipeline.build(
        JointUNet.build(NetworkConfig(widths=(8, 16), blocks=(1, 1)), 1, len(table)).eval(),
        DiffusionConfig(mode="independent"),
        b=0.4,
        dihedral=False,
        size_px=32,
        class_table=table,
        bands=("vv",),
        value_range=(0.0, 255.0),
    )
    return save_model(made, url, {})


def test_agreement_is_with_the_read_out_of_a_model(sources: dict[str, str], tmp_path: Path) -> None:
    rules = {rule: None for rule in RULES if rule != "agreement"}
    asked = settings(sources, tmp_path, **rules, agreement=0.0, evaluations=1)
    table = TileCorpus.open(sources["paths.tiles"]).manifest.class_table
    digest = save(asked.place("model"), table)
    figures = curate.run(asked, Stop())
    document = storage.read_json(figures["accept"])
    assert document["label_model_digest"] == digest
    assert set(document["limits"]) == {"agreement/"}
    assert document["limits"]["agreement/"]["high"] is None
    assert set(REAL) <= set(document["indices"]), "val images under their own numbers agree as val does"
    foreign = settings(sources, tmp_path / "b", **rules, agreement=0.0)
    save(foreign.place("model"), SOS)
    with pytest.raises(ConflictError, match="its classes are sea surface, oil spill; expected those of the tiles"):
        curate.run(foreign, Stop())


def test_a_corpus_of_another_size_or_without_samples_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    tiles = TileCorpus.open(sources["paths.tiles"])
    for name, size, error, told in (
        ("larger", 64, ConflictError, "rows 64 and 32; columns 64 and 32"),
        ("empty", 32, DataError, "no committed sample"),
    ):
        url = str(tmp_path / name)
        Layout.begin(url, CorpusConfig(samples_per_shard=SHARD).identity(Planted(tiles, size)))
        with pytest.raises(error, match=told):
            curate.run(settings({**sources, "paths.corpus": url}, tmp_path), Stop())
    assert not (tmp_path / "curation").exists()


def test_everything_on_s3(made: Path, sources: dict[str, str], s3_bucket: str) -> None:
    storage.upload_folder(Path(sources["paths.tiles"]), f"{s3_bucket}/run/tiles")
    storage.upload_folder(Path(sources["paths.corpus"]), f"{s3_bucket}/run/corpus")
    rules = [f"--curate.{rule}=0" for rule in RULES if rule != "agreement"]
    assert main(JOB, ["--out", f"{s3_bucket}/run", *rules]) == 0
    assert storage.read_bytes(f"{s3_bucket}/run/curation/accept.json") == (made / "accept.json").read_bytes()


@pytest.mark.parametrize("preset", _cli.presets())
def test_a_dry_run_tells_the_rules_and_writes_nothing(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", preset, "--out", str(tmp_path / "none"), "--curate.copies", "null"]
    assert main(JOB, [*flags, "--curate.quotas", "{oil spill: 0.5}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "rules mean, spread, looks, spectrum, damping, shares, duplicates," in told
    assert "samples that contain oil spill: at least 0.5 of all" in told
    assert not (tmp_path / "none").exists()


def test_json_is_the_stage_record(made: Path, sources: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{key}={value}" for key, value in sources.items()]
    rules = [f"--curate.{rule}=0" for rule in RULES if rule != "agreement"]
    assert main(JOB, ["--out", str(made.parent), *flags, *rules, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["num_accepted"] == 12
