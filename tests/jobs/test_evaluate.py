"""The evaluation job on a handmade sweep: students with constant predictions, so that every score is known.

Beside them stands a joint model of random weights.
"""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aws_stacks import Roles, beyond_jobs
from fake_pairs import FakeSampler
from s3_recorder import Asked, artefacts
from tiny_model import random_joint

from dakter import storage
from dakter.config import digest_json
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.data.tiles import Split, TileCorpus, TilesManifest, arrays_of, split_digest, write_split
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.pipeline import open_model, save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.errors import ConflictError, DataError, IntegrityError, Stopped
from dakter.evaluate.calibration import fit_temperature, proper_sums
from dakter.metrics import confusion_matrix, miou
from dakter.schema import IGNORE, OSD, to_model
from dakter.students.models import StudentConfig, build
from dakter.students.store import save_student
from jobs import evaluate
from jobs._cli import Stop, execute, main
from jobs.evaluate import EvaluateSettings

SIZE, NUM_TEST = 32, 6
# Of each test tile the left quarter is oil, one row is unlabelled; classes 2 to 4 do not occur. In val half is oil.
LABEL = np.zeros((SIZE, SIZE), np.uint8)
LABEL[:, : SIZE // 4] = 1
LABEL[0] = IGNORE
VAL_LABEL = np.repeat(np.array([[0], [1]], np.uint8), SIZE // 2, axis=0) * np.ones(SIZE, np.uint8)
OIL, SEA = 31 * 8, 31 * 24


def split(name: str, count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(
        images=rng.integers(0, 255, (count, 1, SIZE, SIZE), dtype=np.uint8),
        labels=np.repeat((VAL_LABEL if name == "val" else LABEL)[None], count, axis=0),
        groups=(np.arange(count) // 2 + 100 * seed).astype(np.int32),
        sensors=np.zeros(count, np.int16),
        names=[f"{name}/sar/{i}" for i in range(count)],
    )


def make_tiles(url: str) -> TilesManifest:
    splits = {"train": split("train", 4, 1), "val": split("val", 4, 2), "test": split("test", NUM_TEST, 3)}
    splits["unlabelled"] = split("unlabelled", 0, 4)
    digests = {name: split_digest(arrays_of(part, None), part.names) for name, part in splits.items()}
    attributes = {"class_table": OSD.to_json(), "value_range": [-30.0, 0.0], "sensors": ["sar"]}
    for name, part in splits.items():
        write_split(url, name, arrays_of(part, None), attributes)
    storage.put_json(f"{url}/samples.json", {name: part.names for name, part in splits.items()})
    manifest = TilesManifest(
        digest=digest_json(digests),
        split_digests=digests,
        source="handmade",
        licence="",
        citation="",
        class_table=OSD,
        bands=("vv",),
        tile_px=SIZE,
        dtype="uint8",
        value_range=(-30.0, 0.0),
        sensors=("sar",),
        counts={name: len(part.names) for name, part in splits.items()},
        counts_by_sensor={},
        class_shares={},
        image_rms=0.5,
        image_std=0.4,
        b_rms=0.5,
        b_std=0.4,
        leakage={},
        settings={},
    )
    storage.put_json(f"{url}/manifest.json", manifest.to_json())
    return manifest


SMALL = StudentConfig(encoder="tu-mobilenetv3_small_050")


def constant_student(url: str, probabilities: list[float]) -> str:
    """A Unet that predicts the same probabilities everywhere."""
    model = build(SMALL, 1, 5)
    head = model.get_submodule("segmentation_head.0")
    assert isinstance(head, torch.nn.Conv2d)
    assert head.bias is not None
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor(probabilities).log()
    return save_student(url, model, SMALL, 1, 5, {})


def put_joint_model(url: str, tiles_digest: str, *, mode: str = "independent", width: int = 8) -> str:
    """A joint model of these tiles, with random weights; returns its digest."""
    pipeline = random_joint(
        NetworkConfig(widths=(width, 16), blocks=(1, 1)),
        DiffusionConfig.model_validate({"mode": mode}),
        OSD,
        dihedral=True,
        size_px=SIZE,
        bands=("vv",),
        value_range=(-30.0, 0.0),
    )
    return save_model(pipeline, url, {"identity": {"tiles_digest": tiles_digest}})


STUDENTS = {
    "real": ([0.9, 0.025, 0.025, 0.025, 0.025], [0.6, 0.1, 0.1, 0.1, 0.1]),  # both say sea
    "distilled": ([0.2, 0.5, 0.1, 0.1, 0.1], [0.6, 0.25, 0.05, 0.05, 0.05]),  # oil; sea, but better calibrated
}
VAL_MIOU = {"real-seed0": 0.3, "real-seed1": 0.5, "distilled-seed0": 0.4, "distilled-seed1": 0.2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    manifest = make_tiles(str(out / "tiles"))
    arms: dict[str, Any] = {}
    for arm, all_probabilities in STUDENTS.items():
        students = []
        for seed, probabilities in enumerate(all_probabilities):
            name = f"{arm}-seed{seed}"
            digest = constant_student(str(out / "sweep" / "students" / name), probabilities)
            students.append(
                {
                    "id": name,
                    "path": f"students/{name}",
                    "seed": seed,
                    "val_miou": VAL_MIOU[name],
                    "architecture": "Unet",
                    "digest": digest,
                }
            )
        arms[arm] = {"students": students}
    storage.put_json(str(out / "sweep" / "sweep.json"), {"tiles_digest": manifest.digest, "arms": arms})
    put_joint_model(str(out / "model"), manifest.digest)
    return out


SHORT = {"num_resamples": 200, "chunk": 4, "joint_evaluations": 2, "latency_runs": 1}


def settings(
    out: Path | str, evaluation: Path | str | None = None, model: Path | None = None, **changes: Any
) -> EvaluateSettings:
    places = {"evaluation": evaluation, "model": model}
    return EvaluateSettings.model_validate(
        {
            "out": str(out),
            "paths": {name: None if place is None else str(place) for name, place in places.items()},
            "evaluate": {**SHORT, **changes},
        }
    )


@pytest.fixture(scope="module")
def result(made: Path) -> dict[str, Any]:
    execute(evaluate.JOB, settings(made), Stop())
    return dict(storage.read_json(str(made / "evaluation" / "evaluation.json")))


def test_scores_are_those_of_constant_predictions(result: dict[str, Any]) -> None:
    real, distilled = (result["arms"][arm]["students"] for arm in ("real", "distilled"))
    share = OIL / (OIL + SEA)  # a quarter
    assert real[0]["iou"] == pytest.approx([1 - share, 0.0, None, None, None])
    assert real[0]["miou"] == pytest.approx((1 - share) / 2)
    assert distilled[0]["iou"][:2] == pytest.approx([0.0, share])
    assert real[0]["nll"] == pytest.approx(-share * math.log(0.025) - (1 - share) * math.log(0.9), rel=1e-5)
    assert distilled[1]["ece"][1] == pytest.approx(0.0, abs=1e-6)  # oil claimed at 0.25, and a quarter is oil
    assert real[0]["ece"][1] == pytest.approx(share - 0.025, rel=1e-4)
    assert real[0]["precision"] == pytest.approx([1 - share, None, None, None, None])
    assert result["class_names"] == list(OSD.names)
    assert result["arms"]["real"]["miou"]["mean"] == pytest.approx((1 - share) / 2)


def test_temperature_is_fitted_on_val_and_used_on_test(result: dict[str, Any]) -> None:
    overconfident = result["arms"]["real"]["students"][0]
    on_val = np.array(STUDENTS["real"][0])[None].repeat(2, axis=0)  # half of val is sea, half oil
    temperature = fit_temperature(on_val, np.array([0, 1]))
    assert overconfident["temperature"] == pytest.approx(temperature, rel=1e-3)
    sea, oil = (on_val[0] ** (1 / temperature) / (on_val[0] ** (1 / temperature)).sum())[:2]
    assert overconfident["nll_tempered"] == pytest.approx(-0.25 * math.log(oil) - 0.75 * math.log(sea), rel=1e-3)
    assert overconfident["path"] == "students/real-seed0"


def test_candidate_contrasts_and_test_set_are_told(result: dict[str, Any]) -> None:
    assert result["candidate"] == {"arm": "real", "id": "real-seed1", "why": "highest val mIoU"}
    first = result["contrasts"][0]
    assert (first["name"], first["metric"], first["primary"]) == ("distilled - real", "miou", True)
    values = {name: arm["miou"]["mean"] for name, arm in result["arms"].items()}
    assert first["difference"] == pytest.approx(values["distilled"] - values["real"])
    assert first["low"] < first["difference"] < first["high"]  # students of an arm differ: seeds make the width
    test = result["test"]
    assert (test["num_images"], test["num_groups"], test["uses"]) == (NUM_TEST, 3, 1)
    assert result["images"] is None  # no corpus stands there


def test_per_image_confusion_is_kept(made: Path, result: dict[str, Any]) -> None:
    with np.load(io.BytesIO(storage.read_bytes(str(made / "evaluation" / "confusion.npz")))) as found:
        assert set(found) == {"groups", "joint-model", *VAL_MIOU}
        confusion = found["distilled-seed0"]
        assert confusion.shape == (NUM_TEST, 5, 5)
        assert confusion.dtype == np.int64
        assert confusion[0, :2, :2].tolist() == [[0, SEA], [0, OIL]]
        assert found["groups"].tolist() == [300, 300, 301, 301, 302, 302]
        assert miou(found["real-seed1"].sum(0)) == pytest.approx(result["arms"]["real"]["students"][1]["miou"])
    with np.load(io.BytesIO(storage.read_bytes(str(made / "evaluation" / "proper_scores.npz")))) as found:
        nll, _, pixels = found["real-seed0"].sum(0)
        assert nll / pixels == pytest.approx(result["arms"]["real"]["students"][0]["nll"])


def test_the_same_again_is_done_and_counts_once(made: Path, result: dict[str, Any], tmp_path: Path) -> None:
    before = (made / "evaluation" / "evaluation.json").read_bytes()
    assert evaluate.run(settings(made, chunk=5), Stop())["already_done"] is True  # chunk changes no score
    assert (made / "evaluation" / "evaluation.json").read_bytes() == before
    # Elsewhere it is computed again, to the same numbers, yet the same students were scored: still one use.
    evaluate.run(settings(made, tmp_path / "again"), Stop())
    assert storage.read_json(str(tmp_path / "again" / "evaluation.json")) == result
    assert len(list((made / "tiles" / "test_uses").glob("*.json"))) == 1


def test_another_sweep_or_other_settings_are_refused_by_name(
    made: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConflictError, match=r"settings level: 0\.95 there, 0\.9 here"):
        evaluate.run(settings(made, level=0.9), Stop())
    sweep = storage.read_json(str(made / "sweep" / "sweep.json"))
    del sweep["arms"]["distilled"]
    storage.put_json(str(tmp_path / "sweep" / "sweep.json"), sweep)
    fewer = settings(made)
    fewer = fewer.model_copy(update={"paths": fewer.paths.model_copy(update={"sweep": str(tmp_path / "sweep")})})
    with pytest.raises(ConflictError, match=r"students distilled-seed0: [0-9a-f]{64} there, None here"):
        evaluate.run(fewer, Stop())
    sweep["tiles_digest"] = "0" * 64
    storage.put_json(str(tmp_path / "sweep" / "sweep.json"), sweep)
    with pytest.raises(ConflictError, match="learned from tiles 0000"):
        evaluate.run(fewer, Stop())


def label_of_the_pipeline(made: Path, images: np.ndarray) -> np.ndarray:
    """p(y | x) of stored images, asked twice as in SHORT, every one with the noise of sample 0."""
    pipeline = open_model(str(made / "model")).pipeline
    return pipeline.label(to_model(images), evaluations=2, seed=0, indices=[0] * len(images)).numpy()


def test_the_joint_model_is_scored_as_what_would_be_registered(made: Path, result: dict[str, Any]) -> None:
    (joint,) = result["arms"]["joint-model"]["students"]
    test, val = split("test", NUM_TEST, 3), split("val", 4, 2)
    p = label_of_the_pipeline(made, test.images)
    with np.load(io.BytesIO(storage.read_bytes(str(made / "evaluation" / "confusion.npz")))) as found:
        confusion = found["joint-model"]
    expected = np.stack([confusion_matrix(y, q.argmax(0), 5) for y, q in zip(test.labels, p, strict=True)])
    assert len(np.unique(p.argmax(1))) > 2, "a model that says one class everywhere would show little"
    assert np.abs(confusion - expected).sum() <= 4  # pixels in which two classes are as good as equal
    nll, brier, pixels = proper_sums(p, test.labels).sum(0)
    assert (joint["nll"], joint["brier"]) == pytest.approx((nll / pixels, brier / pixels), rel=1e-4)
    q = label_of_the_pipeline(made, val.images)
    on_val = sum(confusion_matrix(y, v.argmax(0), 5) for y, v in zip(val.labels, q, strict=True))
    assert joint["val_miou"] == pytest.approx(miou(np.asarray(on_val)), abs=2e-3)
    # its temperature is of val, and goes into the package as it went into the scores
    temperature = fit_temperature(q.transpose(0, 2, 3, 1).reshape(-1, 5), val.labels.reshape(-1))
    assert joint["temperature"] == pytest.approx(temperature, rel=1e-3)
    package = open_model(str(made / "model")).pipeline.packaged(2, 0, joint["temperature"])
    with torch.no_grad():
        tempered = package(torch.from_numpy(test.images.astype(np.float32) / 255 * 30 - 30)).numpy()
    nll, _, _ = proper_sums(tempered, test.labels).sum(0)
    assert joint["nll_tempered"] == pytest.approx(nll / pixels, rel=1e-4)
    assert (joint["evaluations"], joint["num_parameters"]) == (2, package.num_parameters)
    assert joint["model_digest"] == open_model(str(made / "model")).digest


def test_the_joint_model_has_intervals_and_a_contrast_and_is_no_candidate(result: dict[str, Any]) -> None:
    joint = result["arms"]["joint-model"]
    assert joint["miou"]["low"] < joint["miou"]["mean"] < joint["miou"]["high"]
    contrast = next(c for c in result["contrasts"] if (c["name"], c["metric"]) == ("joint-model - real", "miou"))
    assert contrast["difference"] == pytest.approx(joint["miou"]["mean"] - result["arms"]["real"]["miou"]["mean"])
    assert (contrast["primary"], contrast["p_holm"] is None) == (False, False)
    assert result["candidate"]["arm"] == "real"


def test_another_joint_model_is_another_evaluation(made: Path, result: dict[str, Any], tmp_path: Path) -> None:
    hexes = "[0-9a-f]{64}"
    with pytest.raises(ConflictError, match=rf"students joint-model: {hexes} there, {hexes} here"):
        evaluate.run(settings(made, joint_evaluations=3), Stop())
    put_joint_model(str(tmp_path / "model"), result["tiles_digest"], width=16)
    with pytest.raises(ConflictError, match=rf"students joint-model: {hexes} there, {hexes} here"):
        evaluate.run(settings(made, model=tmp_path / "model"), Stop())
    with pytest.raises(ConflictError, match=rf"students joint-model: {hexes} there, None here"):
        evaluate.run(settings(made, joint_model=False), Stop())


def test_what_is_done_stays_done_when_the_joint_model_is_removed(
    made: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    gone = settings(made, model=tmp_path / "removed")
    assert evaluate.run(gone, Stop())["already_done"] is True
    with pytest.raises(DataError, match="no joint model"):
        evaluate.run(settings(made, model=tmp_path / "removed", joint_evaluations=3), Stop())


def test_without_the_joint_model_it_is_the_evaluation_that_it_was_before(
    made: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    off = settings(made, tmp_path / "evaluation", tmp_path / "no-model", joint_model=False, latency_runs=0)
    evaluate.run(off, Stop())
    found = storage.read_json(str(tmp_path / "evaluation" / "evaluation.json"))
    assert set(found["students"]) == set(VAL_MIOU)
    assert set(found["settings"]) == {"num_resamples", "level", "seed", "temperature_pixels", "num_images"}
    assert found["arms"]["real"]["miou"] == result["arms"]["real"]["miou"]
    assert not (tmp_path / "evaluation" / "latency.json").exists()
    assert evaluate.run(off, Stop())["already_done"] is True
    with pytest.raises(ConflictError, match=r"joint-model: None there.*\n.*evaluate\.joint_model false"):
        evaluate.run(settings(made, tmp_path / "evaluation"), Stop())


def test_a_model_of_mode_joint_is_left_out_and_the_log_says_so(
    made: Path, result: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_joint_model(str(tmp_path / "model"), result["tiles_digest"], mode="joint")
    tiles = TileCorpus.open(str(made / "tiles"))
    with caplog.at_level(logging.INFO, "dakter.jobs.evaluate"):
        assert evaluate.joint_model(settings(made, model=tmp_path / "model"), tiles) is None
        assert "trained with diffusion.mode joint, which has no p(y | x)" in caplog.text
    with pytest.raises(ConflictError, match=r"students joint-model: [0-9a-f]{64} there, None here"):
        evaluate.run(settings(made, model=tmp_path / "model"), Stop())


def test_a_joint_model_that_is_missing_or_of_other_tiles_is_refused(made: Path, tmp_path: Path) -> None:
    asked = settings(made, tmp_path / "evaluation", tmp_path / "model")
    with pytest.raises(DataError, match=r"no joint model .*evaluate\.joint_model false"):
        evaluate.run(asked, Stop())
    put_joint_model(str(tmp_path / "model"), "f" * 64)
    with pytest.raises(ConflictError, match=r"tiles: ffffffffffffffff there, [0-9a-f]{16} here"):
        evaluate.run(asked, Stop())
    assert not (tmp_path / "evaluation").exists()


def test_latency_of_every_model_is_told_with_the_machine(made: Path, result: dict[str, Any]) -> None:
    told = storage.read_json(str(made / "evaluation" / "latency.json"))
    assert {name: row["digest"] for name, row in told["models"].items()} == result["students"]
    assert all(row["ms"] > 0 for row in told["models"].values())
    assert "cores of" in told["hardware"]
    assert (told["size_px"], told["runs"]) == (SIZE, 1)
    real = result["arms"]["real"]["students"][0]
    assert real["evaluations"] == 1
    assert real["num_parameters"] == sum(p.numel() for p in build(SMALL, 1, 5).parameters())


def test_a_replaced_student_is_refused_and_nothing_is_written(made: Path, tmp_path: Path) -> None:
    sweep = storage.read_json(str(made / "sweep" / "sweep.json"))
    digest = constant_student(str(tmp_path / "sweep" / "students" / "real-seed0"), [0.2] * 5)
    record = sweep["arms"]["real"]["students"][0]
    assert record["digest"] != digest
    sweep["arms"] = {"real": {"students": [record]}}
    storage.put_json(str(tmp_path / "sweep" / "sweep.json"), sweep)
    elsewhere = settings(made, tmp_path / "evaluation")
    paths = elsewhere.paths.model_copy(update={"sweep": str(tmp_path / "sweep")})
    with pytest.raises(IntegrityError, match="was replaced after the sweep"):
        evaluate.run(elsewhere.model_copy(update={"paths": paths}), Stop())
    assert not (tmp_path / "evaluation").exists()


def test_a_stop_keeps_nothing_half(made: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        evaluate.run(settings(made, tmp_path / "evaluation"), Stop(requested=True))
    assert not (tmp_path / "evaluation").exists()


def test_without_a_sweep_the_remedy_is_told(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run jobs/distill\.py first"):
        evaluate.run(settings(tmp_path), Stop())


def test_champion_is_fed_raw_values_and_counted_under_its_name(made: Path, tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def champion(raw: np.ndarray) -> np.ndarray:
        seen.append(raw)
        p = np.full((len(raw), 5, SIZE, SIZE), 0.1, np.float32)
        p[:, 1] = 0.6
        return p

    before = len(list((made / "tiles" / "test_uses").glob("*.json")))
    for _ in range(2):
        confusion, groups = evaluate.confusion_of(champion, settings(made), model="digest of a champion")
    raw = np.concatenate(seen[: len(seen) // 2])
    stored = split("test", NUM_TEST, 3).images
    assert raw.dtype == np.float32
    assert raw == pytest.approx(-30.0 + 30.0 * stored / 255.0, abs=1e-4)
    assert confusion[:, :2, 1].tolist() == [[SEA, OIL]] * NUM_TEST
    assert groups.tolist() == [300, 300, 301, 301, 302, 302]
    assert len(list((made / "tiles" / "test_uses").glob("*.json"))) == before + 1


def test_image_statistics_compare_the_corpus_with_train_and_val(made: Path, tmp_path: Path) -> None:
    layout = Layout.begin(str(tmp_path / "corpus"), CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(3)
    for shard in (0, 2):
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8))
    asked = settings(made, num_images=12)
    asked = asked.model_copy(update={"paths": asked.paths.model_copy(update={"corpus": str(tmp_path / "corpus")})})
    found = evaluate.image_statistics(asked, TileCorpus.open(str(made / "tiles")))
    assert found is not None
    json.dumps(found, allow_nan=False)
    assert {name: part["num_images"] for name, part in found["sets"].items()} == {
        "train": 4,
        "held_out": 4,
        "generated": 12,
    }
    assert found["distance_from_train"]["generated"]["spectrum_db"] is None  # 8 px beside 32 px
    none = asked.model_copy(update={"evaluate": asked.evaluate.model_copy(update={"num_images": 0})})
    assert evaluate.image_statistics(none, TileCorpus.open(str(made / "tiles"))) is None


def test_everything_on_s3(made: Path, result: dict[str, Any], s3_bucket: str) -> None:
    for name in ("tiles", "sweep", "model"):
        storage.upload_folder(made / name, f"{s3_bucket}/run/{name}")
    for key in storage.sizes(f"{s3_bucket}/run/tiles/test_uses"):
        storage.delete(f"{s3_bucket}/run/tiles/test_uses/{key}")
    arguments = ["--out", f"{s3_bucket}/run"]
    arguments += [word for key, value in SHORT.items() for word in (f"--evaluate.{key}", str(value))]
    assert main(evaluate.JOB, arguments) == 0
    assert storage.read_json(f"{s3_bucket}/run/evaluation/evaluation.json") == result
    assert storage.read_json(f"{s3_bucket}/run/stages/evaluate.json")["figures"]["test_uses"] == 1
    assert main(evaluate.JOB, arguments) == 0


def test_dry_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate.JOB, ["--out", str(tmp_path / "none"), "--dry-run"]) == 0
    assert "the only reader of test" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_an_evaluation_on_s3_asks_for_what_jobs_may(
    roles: Roles, made: Path, s3_bucket: str, s3_requests: Asked
) -> None:
    out = f"{s3_bucket}/runs/a"
    for part in ("tiles", "sweep", "model"):
        storage.upload_folder(made / part, f"{out}/{part}")
    before = len(s3_requests())
    execute(evaluate.JOB, settings(out), Stop())
    asked = s3_requests()[before:]
    assert artefacts(asked, "runs/a/") == {"tiles", "model", "corpus", "sweep", "evaluation", "stages", "run.json"}
    assert beyond_jobs(asked, roles, s3_bucket) == set()
