"""jobs/label.py on a real Ray, with a real model and real tiles: every unlabelled tile, unchanged, with its label."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation import in_process, own_ray
from killed_once import KilledOnce
from tiny_datasets import CLASSES, half, make_folder, save, texture
from tiny_model import put_model_for, put_tiny_model, random_joint

from dakter import storage
from dakter.corpus import ledger
from dakter.corpus.layout import Layout
from dakter.corpus.reader import CorpusReader
from dakter.data.build import prepare
from dakter.data.source import DataConfig
from dakter.data.tiles import TileCorpus, TilesConfig
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.pipeline import open_model, save_model
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.schedule import DiffusionConfig
from dakter.errors import ConfigError, ConflictError, DataError, Stopped
from dakter.schema import soft_to_stored, to_model
from jobs import _cli, _generation, generate, label
from jobs._cli import Stop
from jobs._tile_labeller import TileLabeller

__all__ = ["own_ray"]  # a fixture

NUM, SHARD, MICRO, EVALUATIONS, SEED = 16, 6, 3, 2, 5


@pytest.fixture(scope="module")
def model(tiny_tiles: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved joint model for the tiles, untrained."""
    return put_model_for(tmp_path_factory.mktemp("model") / "model", tiny_tiles)


def arguments(out: Path, tiles: str, model: str, *more: str) -> list[str]:
    places = ["--out", str(out), "--paths.tiles", tiles, "--paths.model", model]
    sizes = ["--corpus.samples_per_shard", str(SHARD), "--sampler.micro_batch", str(MICRO), "--corpus.seed", str(SEED)]
    return [*places, *sizes, "--soft_label.evaluations", str(EVALUATIONS), "--sampler.precision", "fp32", *more]


def settings(out: Path, tiles: str, model: str, **changes: Any) -> label.LabelSettings:
    over = {
        "out": str(out),
        "paths.tiles": tiles,
        "paths.model": model,
        "corpus.samples_per_shard": SHARD,
        "corpus.seed": SEED,
        "corpus.num_samples": 1000,  # of no account: there are as many samples as tiles
        "sampler.micro_batch": MICRO,
        "sampler.precision": "fp32",
        "soft_label.evaluations": EVALUATIONS,
        "soft_label.mode": "last_step",  # of generated pairs
        "ray.generate_cpus": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return _cli.resolve(label.LabelSettings, overrides=over)


@pytest.fixture(scope="module")
def made(own_ray: Any, tiny_tiles: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> label.LabelSettings:
    """Settings of a run by two actors that is done."""
    ours = settings(tmp_path_factory.mktemp("made"), tiny_tiles, model, ray__generate_workers=2)
    record = _cli.execute(label.JOB, ours, Stop())
    assert record["figures"]["num_samples"] == record["figures"]["num_samples_made"] == NUM
    return ours


def test_it_holds_exactly_the_unlabelled_tiles_with_the_label_of_each(
    made: label.LabelSettings, tiny_tiles: str, model: str
) -> None:
    reader, tiles = CorpusReader(made.place("labelled")), TileCorpus.open(tiny_tiles)
    unlabelled = tiles.read("unlabelled").images
    assert reader.num_samples == len(unlabelled) == NUM
    images, soft = reader.sample(range(NUM))
    assert (images == unlabelled).all()
    pipeline, sampler = open_model(model).pipeline, SamplerConfig(micro_batch=MICRO, precision="fp32")
    for i in range(NUM):
        alone = pipeline.label(to_model(unlabelled[i : i + 1]), EVALUATIONS, SEED, indices=[i], sampler=sampler)
        assert (soft[i] == soft_to_stored(alone.numpy())[0]).all()
    other = pipeline.label(to_model(unlabelled[:1]), EVALUATIONS, SEED, indices=[1], sampler=sampler)
    assert (soft[0] != soft_to_stored(other.numpy())[0]).any(), "the noise counts"


def test_it_says_what_it_is(made: label.LabelSettings, tiny_tiles: str, model: str) -> None:
    layout, manifest = Layout.open(made.url), TileCorpus.open(tiny_tiles).manifest
    assert made.url == str(Path(made.out) / "labelled")
    assert layout.identity["num_samples"] == NUM
    assert layout.identity["seed"] == SEED
    assert layout.identity["sampler"] == {
        "content": "unlabelled",
        "tiles_digest": manifest.digest,
        "model_digest": open_model(model).digest,
        "evaluations": EVALUATIONS,
        "micro_batch": MICRO,
        "precision": "fp32",
        "threads": 1,
    }
    assert layout.attributes()["provenance"]["source"] == manifest.source, "of the images, not of the model"
    assert layout.read_json("croissant.json")["description"].startswith("16 machine-labelled pairs")


def test_the_verbs_work_on_it(made: label.LabelSettings, tiny_tiles: str, model: str, capsys: Any) -> None:
    own = ["--out", made.out, "--paths.tiles", tiny_tiles, "--paths.model", model]

    def told(*words: str) -> dict[str, Any]:
        assert _cli.main(label.JOB, [*words, *own, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    shown = told("status")
    assert (shown["num_samples"], shown["num_samples_planned"], shown["finalised"]) == (NUM, NUM, True)
    assert told("verify", "--deep")["num_samples"] == NUM
    assert (Path(made.out) / "stages/verify-label.json").is_file(), "beside that of the generated corpus"
    drawn = told("regenerate", "--sample", "15")
    assert drawn["equal"], "with the settings that the corpus records, whatever this command says"
    assert drawn["micro_batch"] == [15, 15]
    assert storage.exists(told("gallery")["gallery"])
    assert told("finalise")["num_samples"] == NUM


def test_the_same_command_again_makes_what_is_missing_and_nothing_else(
    own_ray: Any, made: label.LabelSettings, tiny_tiles: str, model: str, tmp_path: Path
) -> None:
    ours = settings(tmp_path, tiny_tiles, model, budget__max_hours=1e-9)
    with pytest.raises(Stopped, match="max_hours"):
        label.run(ours, Stop())
    assert not Layout.open(ours.url).committed()
    with pytest.MonkeyPatch.context() as patch:  # one process, no actors: another worker count, the same bytes
        patch.setattr(_generation, "fan_out", in_process)
        free = settings(tmp_path, tiny_tiles, model)
        digest = label.run(free, Stop())["corpus_digest"]
        assert digest == CorpusReader(made.url).digest
        layout = Layout.open(ours.url)
        storage.delete(layout.place(layout.commit_key(2)))
        again = label.run(free, Stop())
        assert (again["num_samples_made"], again["corpus_digest"]) == (4, digest)
    assert label.run(free, Stop())["already_done"]
    with pytest.raises(ConflictError, match=r"(?s)seed: stands 5, asked for 6.*paths\.labelled"):
        label.run(settings(tmp_path, tiny_tiles, model, corpus__seed=6), Stop())


def test_a_killed_actor_changes_no_byte(
    own_ray: Any, made: label.LabelSettings, tiny_tiles: str, model: str, tmp_path: Path
) -> None:
    ours, mark = settings(tmp_path, tiny_tiles, model, ray__generate_workers=1), tmp_path / "killed"
    labeller = ours.factory()
    assert isinstance(labeller, functools.partial)
    factory = functools.partial(KilledOnce, *labeller.args, at=SHARD, mark=str(mark))
    figures = _generation.run_with(ours, Stop(), factory)
    assert mark.exists()
    assert figures["corpus_digest"] == CorpusReader(made.url).digest
    assert [run["outcome"] for run in ledger.runs(Layout.open(ours.url))] == ["done"]


def test_what_cannot_be_labelled_is_refused_before_any_work(
    sources: dict[str, str], tiny_tiles: str, model: str, tmp_path: Path
) -> None:
    joint = put_model_for(tmp_path / "joint", tiny_tiles, mode="joint")
    other = put_model_for(tmp_path / "other", tiny_tiles, size_px=16)
    put_tiny_model(str(tmp_path / "sos"))
    cases = [
        (DataError, r"holds no unlabelled tile.*data\.num_unlabelled", sources["tiles"], model),
        (ConfigError, r"diffusion\.mode joint; expected independent", tiny_tiles, joint),
        (ConflictError, "do not fit: rows 16 and 32; columns 16 and 32", tiny_tiles, other),
        (ConflictError, "do not fit: classes", tiny_tiles, str(tmp_path / "sos")),
    ]
    for kind, text, tiles, of in cases:
        with pytest.raises(kind, match=text):
            label.run(settings(tmp_path / "out", tiles, of), Stop())
    assert not (tmp_path / "out").exists()


def test_tiles_of_16_bits_are_rounded_to_the_8_of_a_corpus_and_labelled_so(tmp_path: Path) -> None:
    decibels = CLASSES.replace("bands: [VV]", "bands: [VV]\nvalue_range: [-35, 0]")
    root, loose = make_folder(tmp_path / "set", count=0, classes=decibels), tmp_path / "loose"
    for k in range(15):
        pixels = texture(k).astype(np.float32) / 255 * -35
        if k < 10:
            save(root / f"images/{k}.tif", pixels)
            save(root / f"masks/{k}.png", half(value=1))
        else:
            save(loose / f"{k}.tif", pixels)
    found = {"source": "folder", "root": str(root), "unlabelled_root": str(loose), "num_unlabelled": None}
    tiles, model, numbers = str(tmp_path / "tiles"), str(tmp_path / "model"), np.array([3, 1, 4])
    prepare(DataConfig.model_validate(found), TilesConfig(size_px=32), tiles, should_stop=lambda: False)
    fine, manifest = TileCorpus.open(tiles).read("unlabelled").images, TileCorpus.open(tiles).manifest
    assert fine.dtype == np.uint16
    about = {"dihedral": True, "size_px": 32, "bands": manifest.bands, "value_range": manifest.value_range}
    network = NetworkConfig(widths=(8, 8), blocks=(1, 1))
    save_model(random_joint(network, DiffusionConfig(), manifest.class_table, **about), model, {"source": "none"})
    images, soft = TileLabeller(model, tiles, EVALUATIONS, MICRO, "fp32", SEED, 1, "cpu")(numbers)
    assert images.dtype == np.uint8
    assert np.abs(images / 255 - fine[numbers] / 65535).max() <= 0.5 / 255 + 1e-6
    pipeline, sampler = open_model(model).pipeline, SamplerConfig(micro_batch=MICRO, precision="fp32")
    wanted = pipeline.label(to_model(images), EVALUATIONS, SEED, indices=numbers, sampler=sampler)
    assert (soft == soft_to_stored(wanted.numpy())).all()


def test_neither_corpus_is_taken_for_the_other(
    own_ray: Any, made: label.LabelSettings, tiny_tiles: str, model: str, tmp_path: Path
) -> None:
    swapped = settings(tmp_path, tiny_tiles, model, paths__corpus=made.url).dump()
    with pytest.raises(ConflictError, match=r"(?s)made with other settings.*sampler\.content"):
        generate.run(_cli.resolve(generate.GenerateSettings, overrides=swapped), Stop())
    command = [*arguments(tmp_path, tiny_tiles, model), "--paths.corpus", made.url]
    assert _cli.main(generate.JOB, ["verify", *command]) == 1
    assert not (tmp_path / "stages").exists()
