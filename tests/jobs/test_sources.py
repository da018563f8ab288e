"""Real images with the model's labels beside generated pairs: in the stated share, of the same tiles, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copied_pairs import sweep_settings

from dakter import storage
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import TileCorpus
from dakter.errors import ConfigError, ConflictError, DataError
from dakter.students.mix import MixedStudentsConfig
from dakter.students.models import StudentConfig
from dakter.students.streams import array_stream
from dakter.students.train import LabelledArrays, fit
from jobs._cli import Stop
from jobs._sources import Mix, stream_of
from jobs.distill import JOB, plan

pytestmark = pytest.mark.timeout(600)

SEED, ROWS = 3, 8
QUIET: dict[str, Any] = {"on_evaluate": lambda now: None, "should_stop": lambda: False}


@pytest.fixture
def places(mixed_sources: dict[str, str]) -> dict[str, str]:
    """Tiles with 6 unlabelled ones, 16 generated pairs, a model, and the 6 labelled by it."""
    return mixed_sources


def mix_of(places: dict[str, str], **students: Any) -> Mix:
    tiles = TileCorpus.open(places["tiles"])
    return Mix.open(places["corpus"], None, places["labelled"], MixedStudentsConfig(**students), tiles)


@pytest.mark.parametrize("most_mb", [2048, 0], ids=["in memory", "shard by shard"])
@pytest.mark.parametrize(("share", "expected"), [(None, 4), (0.25, 2), (0.0, 0), (1.0, 8)])
def test_every_batch_has_the_stated_share_of_real_images_with_their_labels(
    places: dict[str, str], share: float | None, expected: int, most_mb: int
) -> None:
    images, soft = CorpusReader(places["labelled"]).sample(range(6))
    label_of = {image.tobytes(): label.tobytes() for image, label in zip(images, soft, strict=True)}
    assert len(label_of) == 6
    assert not label_of.keys() & {image.tobytes() for image in CorpusReader(places["corpus"]).sample(range(16))[0]}
    sources = mix_of(places, unlabelled_share=share).sources(most_mb)
    stream, again = stream_of(sources, SEED), stream_of(sources, SEED)
    batches = [stream(step, ROWS) for step in range(6)]
    seen: list[bytes] = []
    for drawn_images, drawn_soft in batches:
        real = [
            (i.tobytes(), s.tobytes()) for i, s in zip(drawn_images, drawn_soft, strict=True) if i.tobytes() in label_of
        ]
        assert (len(drawn_images), len(real)) == (ROWS, expected)
        assert all(label_of[image] == label for image, label in real)
        seen += [image for image, _ in real]
    if expected:
        assert set(seen) == label_of.keys(), "all of them have their turn"
    for step in (4, 1):  # a pure function of (seed, step), however one comes there
        assert all((a == b).all() for a, b in zip(again(step, ROWS), batches[step], strict=True))
    other = stream_of(sources, SEED + 1)(0, ROWS)
    assert any((a != b).any() for a, b in zip(other, batches[0], strict=True))


def test_generated_pairs_alone_come_as_they_did_before(places: dict[str, str]) -> None:
    tiles, pairs = TileCorpus.open(places["tiles"]), CorpusReader(places["corpus"]).sample(range(16))
    before = array_stream(*pairs, SEED)(5, ROWS)
    without = Mix.open(places["corpus"], None, None, MixedStudentsConfig(), tiles)
    for mix in (without, mix_of(places, unlabelled_share=0.0)):
        assert all((a == b).all() for a, b in zip(stream_of(mix.sources(99), SEED)(5, ROWS), before, strict=True))
    assert "labelled_digest" not in without.identity()
    assert without.figures() == {}


def test_real_images_alone_need_no_generated_corpus(places: dict[str, str], tmp_path: Path) -> None:
    mix = mix_of({**places, "corpus": str(tmp_path / "none")}, unlabelled_share=1.0)
    assert mix.identity()["corpus_digest"] is None
    assert [name for name, _, _ in mix.inputs()] == ["labelled"]
    with pytest.raises(DataError, match=r"no corpus stands here.*jobs/label\.py"):
        mix_of({**places, "labelled": str(tmp_path / "none")})


def test_the_control_never_sees_them(places: dict[str, str]) -> None:
    from jobs._sweep import SweepData

    nothing = LabelledArrays(np.zeros((0, 1, 32, 32), np.uint8), np.zeros((0, 32, 32), np.uint8))
    data = SweepData(nothing, nothing, 5, mix_of(places).sources(99))
    assert data.stream("real", SEED) is None
    assert data.stream("distilled", SEED) is not None


def test_what_does_not_go_together_is_refused_before_any_work(
    places: dict[str, str], sources: dict[str, str], tmp_path: Path
) -> None:
    labelled = {"paths.labelled": places["labelled"]}
    swapped = {**places, "corpus": places["labelled"]}
    rows = {"students.batch_size": 4, "sweep.synthetic_share": [0.25, 0.5]}
    cases: list[tuple[type[Exception], str, dict[str, str], dict[str, Any]]] = [
        (ConflictError, r"labels tiles of digest \w{16}; .* has \w{16}\. Label these", sources, labelled),
        (ConflictError, "holds generated pairs; expected real images", places, {"paths.labelled": places["corpus"]}),
        (ConflictError, "holds real images that jobs/label.py labelled", swapped, {}),
        (ConfigError, "unlabelled_share is 0.5 without a corpus", places, {"students.unlabelled_share": 0.5}),
        (ConfigError, "0.5 of the 1 rows .* rounds to all or none", places, labelled | rows),
        (
            ConfigError,
            "by which no generated pair is used",
            places,
            {**labelled, "students.unlabelled_share": 1.0, "paths.accept": "some.json"},
        ),
    ]
    for kind, text, of, more in cases:
        with pytest.raises(kind, match=text):
            JOB.run(sweep_settings(of, tmp_path / "out", **more), Stop())
    assert not (tmp_path / "out/sweep/tune").exists()
    assert not (tmp_path / "out/mlflow.db").exists()
    with pytest.raises(ConfigError, match=r"students\.unlabelled_share is 1\.5"):
        sweep_settings(places, tmp_path, **{"students.unlabelled_share": 1.5})


def test_the_plan_tells_of_them(places: dict[str, str], tmp_path: Path) -> None:
    labelled = {"paths.labelled": places["labelled"]}
    both = plan(sweep_settings(places, tmp_path, **labelled))
    assert any(line.startswith(places["labelled"]) for line in both.reads)
    assert any(line.startswith("0.5 of the rows") for line in both.computes)
    alone = plan(sweep_settings(places, tmp_path, **labelled, **{"students.unlabelled_share": 1.0}))
    assert not any(line.startswith(places["corpus"]) for line in alone.reads)


def test_students_of_both_sources_are_others_than_those_of_one(places: dict[str, str], tmp_path: Path) -> None:
    tiles = TileCorpus.open(places["tiles"])
    train, val = (LabelledArrays(split.images, split.labels) for split in (tiles.read("train"), tiles.read("val")))
    settings = sweep_settings(places, tmp_path, **{"students.steps": 2})
    student = StudentConfig(architecture="FPN", encoder="tu-mobilenetv3_small_100", synthetic_share=0.5)

    def weights(share: float) -> bytes:
        stream = stream_of(mix_of(places, unlabelled_share=share).sources(99), SEED)
        result = fit(student, settings.students, train, val, stream, num_classes=5, seed=SEED, **QUIET)
        return b"".join(value.numpy().tobytes() for value in result.model.state_dict().values())

    none, half, again, whole = (weights(share) for share in (0.0, 0.5, 0.5, 1.0))
    assert half == again
    assert len({none, half, whole}) == 3


def test_a_sweep_made_before_there_were_labelled_images_is_one_without(places: dict[str, str], tmp_path: Path) -> None:
    settings = sweep_settings(places, tmp_path)
    students = settings.students.dump()
    assert students.pop("unlabelled_share") is None
    reader = CorpusReader(places["corpus"])
    identity = {
        "tiles_digest": TileCorpus.open(places["tiles"]).manifest.digest,
        "corpus_digest": reader.digest,
        "model_digest": "copies",
        "accept_digest": None,
        "students": students,
        "sweep": settings.sweep.dump(),
        "sweep_id": "distill-0",
    }
    storage.put_json(f"{settings.place('sweep')}/settings.json", identity)
    storage.put_json(f"{settings.place('sweep')}/sweep.json", {"figures": {"num_train": 6}})
    assert JOB.run(settings, Stop()) == {"num_train": 6, "already_done": True}
    with pytest.raises(
        ConflictError, match=r"(?s)labelled_digest: None there.*unlabelled_share: None there, 0\.5 asked"
    ):
        JOB.run(sweep_settings(places, tmp_path, **{"paths.labelled": places["labelled"]}), Stop())
