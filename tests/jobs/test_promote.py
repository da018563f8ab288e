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

from dakter import storage
from dakter.errors import ConflictError, GateError
from dakter.promotion import PromotionRules
from dakter.registry import Registry
from dakter.students.models import StudentConfig, build
from dakter.students.store import load_student, save_student
from dakter.tracking import Tracker, TrackingConfig
from jobs import promote
from jobs._candidate import read_candidate
from jobs._cli import Stop, execute, main
from jobs.promote import PromoteSettings

NAMES = ["sea surface", "oil spill"]
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
    tiles = {"digest": "a" * 64, "bands": ["VV"], "value_range": [0.0, 255.0]}
    storage.put_json(f"{out}/tiles/manifest.json", tiles)
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

    # Anyone, in another process, with nothing of this project but the address.
    raw = np.random.default_rng(0).uniform(-10, 300, (3, 1, 45, 77)).astype(np.float32)
    np.save(tmp_path / "raw.npy", raw)
    code = (
        "import mlflow, numpy as np, torch, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "m = mlflow.pytorch.load_model('models:/dakter-segmenter@champion');"
        "np.save(sys.argv[3], m(torch.from_numpy(np.load(sys.argv[2]))).detach().numpy());"
        "assert 'dakter' not in sys.modules"
    )
    command = [sys.executable, "-c", code, uri, str(tmp_path / "raw.npy"), str(tmp_path / "p.npy")]
    subprocess.run(command, check=True, cwd=tmp_path, env={"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
    with torch.no_grad():
        expected = read_candidate(first).package(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, atol=1e-5)

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
