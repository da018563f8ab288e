"""Promotion against a real SQLite MLflow, with real (untrained) networks and made-up confusion matrices."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aws_stacks import Roles, beyond_jobs
from s3_recorder import Asked, artefacts
from tiny_model import random_joint

from dakter import storage
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.pipeline import open_model, save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.errors import ConflictError, DataError, GateError, IntegrityError
from dakter.promotion import PromotionRules
from dakter.registry import Registry
from dakter.schema import SOS
from dakter.students.models import StudentConfig, build
from dakter.students.store import load_student, save_student
from dakter.tracking import Tracker, TrackingConfig
from jobs import promote
from jobs._candidate import read_candidate
from jobs._cli import Stop, execute, main
from jobs._packages import open_joint_model
from jobs.promote import PromoteSettings

NAMES = list(SOS.names)
TILES: dict[str, Any] = {"digest": "a" * 64, "bands": ["VV"], "value_range": [0.0, 255.0]}
GROUPS = np.repeat(np.arange(12), 2)


def confusion(hits: float) -> np.ndarray:
    """24 images of 1000 pixels, a fifth oil, of which the share ``hits`` is found; a little noise an image."""
    rng = np.random.default_rng(3)
    oil = rng.integers(150, 250, len(GROUPS))
    found = (oil * hits).astype(np.int64)
    return np.stack([np.stack([1000 - oil, 0 * oil], 1), np.stack([oil - found, found], 1)], 1).astype(np.int64)


def stages(out: Path, uri: str, *, hits: float, seed: int = 0, test: str = "t" * 64) -> PromoteSettings:
    """What prepare, distill and evaluate leave, for one candidate."""
    torch.manual_seed(seed)
    student = StudentConfig(architecture="Linknet", encoder="resnet18")
    digest = save_student(f"{out}/sweep/students/real-seed{seed}", build(student, 1, 2), student, 1, 2, {})
    storage.put_json(f"{out}/tiles/manifest.json", TILES)
    storage.put_json(f"{out}/sweep/sweep.json", {"tiles_digest": "a" * 64, "corpus_digest": "c" * 64})
    name = f"real-seed{seed}"
    record = {"id": name, "path": f"students/{name}", "seed": seed, "temperature": 1.5, "miou": hits, "nll": 0.2}
    with (storage.local_path(str(out)) / "tmp.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, groups=GROUPS, **{name: confusion(hits)})
    storage.put(f"{out}/evaluation/confusion.npz", (out / "tmp.npz").read_bytes())
    evaluation = {
        "tiles_digest": "a" * 64,
        "class_names": NAMES,
        "test": {"digest": test, "num_images": 24, "num_groups": 12, "uses": 3},
        "students": {name: digest},
        "arms": {"real": {"students": [record]}},
        "candidate": {"arm": "real", "id": name, "why": "highest val mIoU"},
    }
    storage.put_json(f"{out}/evaluation/evaluation.json", evaluation)
    rules = PromotionRules(num_resamples=200, max_class_drop=0.1)
    return PromoteSettings(out=str(out), tracking=TrackingConfig(uri=uri, lock_wait_s=60), promotion=rules)


def put_joint_model(out: Path, width: int = 8) -> str:
    """A joint model of those tiles, with random weights; returns the digest by which an evaluation knows it."""
    pipeline = random_joint(
        NetworkConfig(widths=(width, 16), blocks=(1, 1)),
        DiffusionConfig(),
        SOS,
        dihedral=True,
        size_px=16,
        bands=("VV",),
        value_range=(0.0, 255.0),
    )
    save_model(pipeline, f"{out}/model", {"identity": {"tiles_digest": TILES["digest"]}})
    joint = open_joint_model(f"{out}/model", TILES, NAMES, evaluations=2, seed=4)
    assert joint is not None
    return joint.digest


def with_joint_model(settings: PromoteSettings, *, hits: float, val_miou: tuple[float, float]) -> PromoteSettings:
    """The same stages with a joint model that was trained, and scored beside the student; mIoU on val of both."""
    out = Path(settings.out)
    digest = put_joint_model(out)
    evaluation = storage.read_json(f"{out}/evaluation/evaluation.json")
    (student,) = evaluation["arms"]["real"]["students"]
    student["val_miou"] = val_miou[0]
    record = {"id": "joint-model", "temperature": 1.5, "miou": hits, "nll": 0.2, "val_miou": val_miou[1]}
    record |= {"architecture": "JointUNet", "evaluations": 2, "noise_seed": 4, "digest": digest}
    evaluation["arms"]["joint-model"] = {"students": [record]}
    evaluation["students"]["joint-model"] = digest
    storage.put_json(f"{out}/evaluation/evaluation.json", evaluation)
    with np.load(out / "evaluation" / "confusion.npz") as found:
        arrays = dict(found)
    np.savez(out / "evaluation" / "confusion.npz", allow_pickle=False, **arrays, **{"joint-model": confusion(hits)})
    told = {"hardware": "2 cores", "size_px": 64, "runs": 7}
    models = {"joint-model": {"digest": digest, "ms": 12.5}, student["id"]: {"digest": "of another", "ms": 1.0}}
    storage.put_json(f"{out}/evaluation/latency.json", {**told, "models": models})
    return settings


def choosing(settings: PromoteSettings, **rules: Any) -> PromoteSettings:
    return settings.model_copy(update={"promotion": settings.promotion.model_copy(update=rules)})


def never(*_: Any, **__: Any) -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("the champion's logged result is enough")


def numbers(settings: PromoteSettings) -> dict[str, str | None]:
    shown = promote.status(settings, Stop())
    return {name: shown[name] and shown[name]["version"] for name in ("champion", "previous", "challenger")}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/db/mlflow.db"


def test_life_of_a_model(tmp_path: Path, uri: str) -> None:
    first = stages(tmp_path / "first", uri, hits=0.6)
    decision = promote.promote(first, Stop(), never)
    assert decision["promoted"]
    assert decision["champion"] is None
    assert numbers(first) == {"champion": "1", "previous": None, "challenger": "1"}
    assert storage.read_json(f"{first.out}/promotion/decision.json") == decision
    again = promote.promote(first, Stop(), never)
    assert again == {**decision, "already_done": True}

    raw = np.random.default_rng(0).uniform(-10, 300, (3, 1, 45, 77)).astype(np.float32)
    with torch.no_grad():
        expected = read_candidate(first).package(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(champion_elsewhere(uri, raw, tmp_path), expected, atol=1e-5)

    better = stages(tmp_path / "better", uri, hits=0.9, seed=1)
    figures = promote.run(better, Stop())
    assert figures["promoted"]
    assert numbers(better) == {"champion": "2", "previous": "1", "challenger": "2"}

    # The loser of a gate keeps everything as it is, now and when asked again.
    assert main(promote.JOB, _arguments(first)) == 3
    refused = storage.read_json(f"{first.out}/promotion/decision.json")
    assert not refused["promoted"]
    assert refused["champion"]["version"] == "2"
    with pytest.raises(GateError, match=r"decided before: version 1 .*lower bound must lie above"):
        promote.run(first, Stop())
    assert numbers(first)["champion"] == "2"

    assert promote.rollback(better, Stop())["champion"]["version"] == "1"
    assert numbers(better)["previous"] == "2"
    with pytest.raises(GateError, match="rolled back on 20"):
        promote.run(better, Stop())
    assert numbers(better)["champion"] == "1"

    # Another test set: the champion has no result on it, so it is run, from raw values.
    seen: list[Any] = []

    def score(predict: Any, settings: Any, *, model: str) -> tuple[np.ndarray, np.ndarray]:
        seen.append((predict(raw), model))
        return confusion(0.6), GROUPS

    fresh = stages(tmp_path / "fresh", uri, hits=0.8, seed=2, test="u" * 64)
    assert promote.promote(fresh, Stop(), score)["promoted"]
    np.testing.assert_allclose(seen[0][0], expected, atol=1e-5)
    assert seen[0][1] == read_candidate(first).digest
    assert len(seen) == 1


def champion_elsewhere(uri: str, raw: np.ndarray, folder: Path) -> np.ndarray:
    """What the champion says in anyone's process, with nothing of this project but the address."""
    np.save(folder / "raw.npy", raw)
    code = (
        "import mlflow, numpy as np, torch, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "m = mlflow.pytorch.load_model('models:/dakter-segmenter@champion');"
        "np.save(sys.argv[3], m(torch.from_numpy(np.load(sys.argv[2]))).detach().numpy());"
        "assert 'dakter' not in sys.modules"
    )
    command = [sys.executable, "-c", code, uri, str(folder / "raw.npy"), str(folder / "p.npy")]
    subprocess.run(command, check=True, cwd=folder, env={"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
    return np.asarray(np.load(folder / "p.npy"))


def test_the_joint_model_is_promoted_where_it_is_asked_for(tmp_path: Path, uri: str) -> None:
    made = with_joint_model(stages(tmp_path / "run", uri, hits=0.6), hits=0.7, val_miou=(0.5, 0.6))
    asked = choosing(made, candidate="joint-model")
    with pytest.raises(GateError, match="at most 10 are allowed"):
        promote.run(choosing(asked, max_parameters=10), Stop())
    decision = promote.promote(asked, Stop(), never)
    assert decision["promoted"]
    told = decision["candidate"]
    assert (told["id"], told["arm"], told["student"], told["arm"]) == (*["joint-model"] * 4,)
    opened = open_model(f"{made.out}/model")
    num_parameters = sum(value.numel() for value in opened.pipeline.unet.parameters())
    on = "2 cores; one image of 64 px squared"
    cost = {"num_parameters": num_parameters, "evaluations": 2, "latency_ms": 12.5, "latency_on": on}
    assert told["cost"] == cost
    assert told["made_from"] == {"tiles_digest": "a" * 64, "model_digest": opened.digest}

    # What is registered is the read-out with the temperature that val gave, from raw images of any size.
    raw = np.random.default_rng(0).uniform(-10, 300, (3, 1, 45, 77)).astype(np.float32)
    with torch.no_grad():
        expected = opened.pipeline.packaged(2, 4, 1.5)(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(champion_elsewhere(uri, raw, tmp_path), expected, atol=1e-5)
    tracker = Tracker.open(made.tracking, made.out)
    (version,) = tracker.registry.versions()
    assert {key: version.tags[f"dakter.{key}"] for key in cost} == {key: str(value) for key, value in cost.items()}
    (found,) = (tmp_path / "db" / "mlartifacts").rglob("MLmodel")
    kept = sorted((found.parent / "joint-model").rglob("*.safetensors"))
    assert [path.relative_to(found.parent).as_posix() for path in kept] == [
        "joint-model/unet/diffusion_pytorch_model.safetensors"
    ]

    # A student is held against it as against any champion, and the other way round.
    better = stages(tmp_path / "better", uri, hits=0.9, seed=1)
    assert promote.promote(better, Stop(), never)["promoted"]
    assert numbers(better) == {"champion": "2", "previous": "1", "challenger": "2"}
    with pytest.raises(GateError, match="lower bound must lie above"):
        promote.run(asked, Stop())


def test_who_stands_is_chosen_on_val(tmp_path: Path, uri: str) -> None:
    alone = stages(tmp_path / "run", uri, hits=0.6)
    for choice in ("joint-model", "best"):
        with pytest.raises(DataError, match=rf"scored no joint model, and promotion\.candidate is {choice}"):
            promote.run(choosing(alone, candidate=choice), Stop())
    # on test the joint model is worse by far, and that must not matter
    made = with_joint_model(alone, hits=0.1, val_miou=(0.5, 0.6))
    assert read_candidate(made).record["id"] == "real-seed0", "as before there was another"
    assert read_candidate(made, "best").record["id"] == "joint-model"
    assert read_candidate(made).cost == {
        "num_parameters": read_candidate(made).package.num_parameters,
        "evaluations": 1,
    }
    for val_miou in ((0.6, 0.5), (0.6, 0.6)):
        again = with_joint_model(stages(tmp_path / "run", uri, hits=0.6), hits=0.9, val_miou=val_miou)
        assert read_candidate(again, "best").record["id"] == "real-seed0"
        assert read_candidate(again, "joint-model").record["id"] == "joint-model"


def test_another_joint_model_than_the_scored_one_is_refused(tmp_path: Path, uri: str) -> None:
    made = with_joint_model(stages(tmp_path / "run", uri, hits=0.6), hits=0.7, val_miou=(0.5, 0.6))
    storage.remove_folder(f"{made.out}/model")
    put_joint_model(Path(made.out), width=16)
    with pytest.raises(IntegrityError, match="not the model that the evaluation scored as joint-model"):
        promote.run(choosing(made, candidate="joint-model"), Stop())
    assert not (tmp_path / "run" / "promotion").exists()


def _arguments(settings: PromoteSettings) -> list[str]:
    assert settings.tracking.uri is not None
    rules = ["--promotion.num_resamples", "200", "--promotion.max_class_drop", "0.1"]
    return ["--out", settings.out, "--tracking.uri", settings.tracking.uri, *rules]


def test_crash_between_the_moves_is_completed(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stages(tmp_path / "first", uri, hits=0.6)
    promote.promote(first, Stop(), never)
    better = stages(tmp_path / "better", uri, hits=0.9, seed=1)
    move = Registry.set_alias

    def crash(self: Registry, alias: str, version: Any) -> None:
        if alias == "champion":
            raise OSError("power cut")
        move(self, alias, version)

    monkeypatch.setattr(Registry, "set_alias", crash)
    with pytest.raises(OSError, match="power cut"):
        promote.promote(better, Stop(), never)
    monkeypatch.undo()
    assert numbers(better) == {"champion": "1", "previous": "1", "challenger": "2"}
    with pytest.raises(ConflictError, match="nothing to roll back"):
        promote.rollback(better, Stop())
    decision = promote.promote(better, Stop(), never)
    assert decision["promoted"]
    assert "already_done" not in decision
    assert numbers(better) == {"champion": "2", "previous": "1", "challenger": "2"}
    assert len(Tracker.open(better.tracking, better.out).registry.versions()) == 2  # nothing was registered twice


def test_of_two_promoters_at_once_one_wins(tmp_path: Path, uri: str) -> None:
    both = [stages(tmp_path / str(seed), uri, hits=0.7, seed=seed) for seed in (0, 1)]
    Tracker.open(both[0].tracking, both[0].out)
    outcomes: list[bool] = []
    threads = [
        threading.Thread(target=lambda s=settings: outcomes.append(promote.promote(s, Stop(), never)["promoted"]))
        for settings in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, True]
    shown = numbers(both[0])
    assert shown["champion"] == "1"
    assert shown["previous"] is None


def test_other_students_or_classes_are_refused(tmp_path: Path, uri: str) -> None:
    settings = stages(tmp_path / "run", uri, hits=0.7)
    student = load_student(f"{settings.out}/sweep/students/real-seed0")
    with torch.no_grad():
        next(student.model.parameters()).add_(1.0)
    save_student(f"{settings.out}/sweep/students/real-seed0", student.model, student.config, 1, 2, {})
    assert main(promote.JOB, ["--out", settings.out, "--tracking.uri", uri]) == 1
    assert not (tmp_path / "run" / "promotion").exists()
    storage.put_json(f"{settings.out}/tiles/manifest.json", {"digest": "b" * 64})
    with pytest.raises(ConflictError, match="mend paths"):
        promote.promote(settings, Stop(), never)


def test_decision_document_is_logged_with_its_reasons(tmp_path: Path, uri: str) -> None:
    settings = stages(tmp_path / "run", uri, hits=0.0)
    with pytest.raises(GateError, match="best constant prediction"):
        promote.run(settings, Stop())
    tracker = Tracker.open(settings.tracking, settings.out)
    (version,) = tracker.registry.versions()
    logged = tracker.attach(version.run_id).read(version.tags["dakter.decision"])
    assert logged is not None
    assert json.loads(logged) == storage.read_json(f"{settings.out}/promotion/decision.json")
    assert tracker.registry.alias("champion") is None
    texts = [reason["text"] for reason in json.loads(logged)["reasons"] if not reason["passed"]]
    assert any("'sea surface' everywhere" in text for text in texts)


def test_a_promotion_from_s3_asks_for_what_jobs_may(
    roles: Roles, tmp_path: Path, uri: str, s3_bucket: str, s3_requests: Asked
) -> None:
    out = f"{s3_bucket}/runs/a"
    local = stages(tmp_path / "a", uri, hits=0.6)
    storage.upload_folder(tmp_path / "a", out)
    before = len(s3_requests())
    execute(promote.JOB, local.model_copy(update={"out": out}), Stop())
    asked = s3_requests()[before:]
    assert artefacts(asked, "runs/a/") == {"tiles", "sweep", "evaluation", "promotion", "stages", "run.json"}
    assert beyond_jobs(asked, roles, s3_bucket) == set()
