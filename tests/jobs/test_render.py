"""A corpus of which stated shares are drawn for chosen label maps: on a real Ray, with a real model and real tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation import in_process, own_ray
from tiny_model import put_model_for

from dakter.corpus.layout import Layout
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import TileCorpus
from dakter.diffusion.label_maps import kinds_of
from dakter.diffusion.pipeline import open_model
from dakter.errors import ConfigError, ConflictError, DataError
from dakter.evaluate.speckle import damping_db, to_gray
from dakter.schema import soft_to_stored, to_stored
from jobs import _cli, _generation, generate, label
from jobs._cli import Stop
from jobs._label_maps import MapSource, outcome

__all__ = ["own_ray"]  # a fixture

NUM, SHARD, MICRO, SEED = 24, 8, 4, 5
QUOTAS, OTHERS = {"sea surface": 0.15, "oil spill": 0.35}, 0.25


@pytest.fixture(scope="module")
def model(tiny_tiles: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return put_model_for(tmp_path_factory.mktemp("model") / "model", tiny_tiles, dihedral=True)


def settings(out: Path, tiles: str, model: str, job: Any = generate.GenerateSettings, **changes: Any) -> Any:
    over = {
        "out": str(out),
        "paths.tiles": tiles,
        "paths.model": model,
        "corpus.num_samples": NUM,
        "corpus.samples_per_shard": SHARD,
        "corpus.seed": SEED,
        "sampler.micro_batch": MICRO,
        "sampler.steps": 3,
        "sampler.precision": "fp32",
        "soft_label.evaluations": 1,
        "ray.generate_cpus": 1,
        "ray.generate_workers": 2,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return _cli.resolve(job, overrides=over)


STEERED = {"render__quotas": QUOTAS, "render__others": OTHERS, "render__maps": "both", "render__contains_px": 4}


@pytest.fixture(scope="module")
def made(own_ray: Any, tiny_tiles: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings of a steered generation that is done, after the labelling whose maps it takes."""
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation, "fan_out", in_process)  # another test has labelling by actors
        _cli.execute(label.JOB, settings(out, tiny_tiles, model, label.LabelSettings, **STEERED), Stop())
    ours = settings(out, tiny_tiles, model, **STEERED)
    _cli.execute(generate.JOB, ours, Stop())
    return ours


def test_stated_shares_are_drawn_for_maps_with_the_class_whoever_draws_them(
    made: Any, tiny_tiles: str, model: str
) -> None:
    reader, pipeline = CorpusReader(made.url), open_model(model).pipeline
    pool, _ = MapSource(made.render, tiny_tiles, made.place("labelled")).open(
        reader.content, seed=SEED, told=False, turned=True
    )
    given = pool.give(np.arange(NUM))
    train, oil = TileCorpus.open(tiny_tiles).read("train"), reader.content.class_table.index("oil spill")
    drawn_for_oil = ((given.maps_BHW == oil).sum(axis=(1, 2)) >= 4).sum()  # of other kinds some hold it too
    assert drawn_for_oil >= NUM * QUOTAS["oil spill"] - 2
    assert NUM * 0.75 - 2 <= given.have_map_B.sum() <= NUM * 0.75 + 2
    assert len(pool.maps) > len(train.labels), "masks, and likeliest classes of labelled tiles"
    assert pool.descriptors is None, "of a network that is told none"
    images, soft = reader.sample(range(NUM))
    alone = pipeline.sample(range(NUM), SEED, made.sampler, made.soft_label, given)
    assert np.array_equal(images, to_stored(alone.images))
    assert np.array_equal(soft, soft_to_stored(alone.soft_labels.numpy()))
    free = pipeline.sample(range(NUM), SEED, made.sampler, made.soft_label)
    same = (to_stored(free.images) == images).all(axis=(1, 2, 3))
    assert same.tolist() == (~given.have_map_B).tolist()


def test_it_says_what_it_is_and_what_came_of_it(made: Any, tiny_tiles: str, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout.open(made.url)
    said = layout.identity["sampler"]["render"]
    assert said["tiles_digest"] == TileCorpus.open(tiny_tiles).manifest.digest
    assert said["labelled_digest"] == CorpusReader(made.place("labelled")).digest
    assert said["quotas"] == QUOTAS
    assert list(QUOTAS) != list(said["quotas"]), "in the order of names, whatever the command's"
    assert "the image for a label map that was chosen" in layout.attributes()["summary"]
    assert "the image is sampled for a label map" in json.dumps(layout.read_json("croissant.json"))
    figures = json.loads((Path(made.out) / "stages/generate.json").read_text())["figures"]["rendered"]
    oil = figures["classes"]["oil spill"]
    own = kinds_of((0.35, 0.15, OTHERS), SEED, range(NUM)) == 0
    images, soft = CorpusReader(made.url).sample(np.flatnonzero(own))
    classes = soft.argmax(axis=1)
    assert figures["looked_at"] == NUM
    train = TileCorpus.open(tiny_tiles).read("train")
    here = damping_db(to_gray(images), classes, 1)
    assert oil == {
        "share": 0.35,
        "drawn_for": own.sum(),
        "damping_db": pytest.approx(np.median(here)),
        "damping_images": len(here),
        "damping_db_train": pytest.approx(np.median(damping_db(to_gray(train.images), train.labels, 1))),
    }
    assert len(here) < own.sum(), "some hold too few pixels of it to measure"
    assert figures["classes"]["sea surface"]["damping_db"] is None, "the background is around others"
    # What stands there says how it was steered; the command need not.
    places = ["--paths.tiles", tiny_tiles, "--paths.model", made.paths.model]
    assert _cli.main(generate.JOB, ["regenerate", "--sample", "21", "--out", made.out, *places, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"]


def test_labels_of_the_image_and_guidance_make_another_corpus_and_what_holds_the_class_is_counted(
    made: Any, tiny_tiles: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_generation, "fan_out", in_process)
    more = {"render__label": "image", "render__guidance": 3.0, "paths__labelled": made.place("labelled")}
    ours = settings(tmp_path, tiny_tiles, model, **STEERED | more)
    found = _cli.execute(generate.JOB, ours, Stop())["figures"]["rendered"]["classes"]["oil spill"]
    reader, by_map = CorpusReader(ours.url), CorpusReader(made.url)
    (images, soft), (plain, maps) = (reader.sample(range(NUM)), by_map.sample(range(NUM)))
    kinds = kinds_of((0.35, 0.15, OTHERS), SEED, range(NUM))
    assert (images != plain).any(axis=(1, 2, 3)).tolist() == (kinds < 3).tolist(), "images for maps are guided"
    assert set(np.unique(maps[kinds < 3])) == {0, 255}, "a map is sure"
    assert len(np.unique(soft[kinds < 3])) > 2
    held = ((soft[kinds == 0].argmax(axis=1) == 1).sum(axis=(1, 2)) >= 4).sum()
    assert found == {"share": 0.35, "drawn_for": (kinds == 0).sum(), "held": held}
    said = reader.identity["sampler"]["render"]
    assert outcome(ours.url, {**said, "contains_px": 10**6}, tiny_tiles)["classes"]["oil spill"]["held"] == 0


def test_labelling_takes_no_account_of_it(made: Any) -> None:
    record = json.loads((Path(made.out) / "stages/label.json").read_text())
    assert record["settings"]["render"]["quotas"]
    assert "rendered" not in record["figures"]


def test_the_same_quotas_in_another_order_are_the_same_corpus(made: Any, tiny_tiles: str, model: str) -> None:
    swapped = {**STEERED, "render__quotas": dict(sorted(QUOTAS.items()))}
    assert generate.run(settings(Path(made.out), tiny_tiles, model, **swapped), Stop())["already_done"]


def test_other_shares_are_another_corpus(made: Any, tiny_tiles: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match=r"render.*0\.25"):
        generate.run(settings(Path(made.out), tiny_tiles, model, **STEERED | {"render__others": 0.3}), Stop())
    assert "render" not in settings(tmp_path, tiny_tiles, model).factory()().identity


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"quotas": {"slick": 0.5}}, ConfigError, r"render\.quotas names slick; expected some of the classes sea"),
        ({"quotas": {"oil spill": 0.5}, "contains_px": 4096}, ConfigError, "asks for oil spill, and none of"),
        ({"others": 0.5, "maps": "labelled"}, DataError, "no corpus stands here"),
        ({"others": 0.5, "label": "image"}, ConfigError, "render.label is image with soft_label.mode last_step"),
        ({"others": 1.0}, None, ""),
    ],
)
def test_what_cannot_be_steered_is_told_at_the_start(
    tiny_tiles: str, model: str, tmp_path: Path, changes: dict[str, Any], error: Any, what: str
) -> None:
    asked = {f"render__{key}": value for key, value in changes.items()}
    ours = settings(tmp_path, tiny_tiles, model, soft_label__mode="last_step", **asked)
    if error is None:
        assert ours.factory()().pool is not None
        return
    with pytest.raises(error, match=what):
        generate.run(ours, Stop())
    assert not (tmp_path / "corpus").exists(), "nothing was begun"


def test_maps_must_fit_the_model_and_the_model_must_know_them(
    made: Any, tiny_tiles: str, model: str, tmp_path: Path
) -> None:
    joint = put_model_for(tmp_path / "joint", tiny_tiles, mode="joint")
    with pytest.raises(ConfigError, match="only a model trained so can draw images for label maps"):
        settings(tmp_path, tiny_tiles, joint, render__others=0.5).factory()()
    small, where = put_model_for(tmp_path / "small", tiny_tiles, size_px=16), made.place("labelled")
    for maps in ("masks", "labelled"):
        factory = settings(
            tmp_path, tiny_tiles, small, render__others=0.5, render__maps=maps, paths__labelled=where
        ).factory()
        with pytest.raises(ConflictError, match="does not fit the model"):
            factory()
    factory = settings(
        tmp_path, tiny_tiles, model, render__others=0.5, render__maps="labelled", paths__labelled=made.url
    ).factory()
    with pytest.raises(DataError, match="a generated corpus stands here"):
        factory()


def test_the_plan_tells_it(tiny_tiles: str, model: str, tmp_path: Path) -> None:
    plan = generate.JOB.plan(settings(tmp_path, tiny_tiles, model, **STEERED))
    assert plan.reads[1:] == [f"tiles {tiny_tiles}: masks of train", f"labelled tiles {tmp_path}/labelled"]
    assert plan.computes[1:4] == [
        "0.35 of them for label maps with oil spill",
        "0.15 of them for label maps with sea surface",
        "0.25 of them for label maps of any kind",
    ]
