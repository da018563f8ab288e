"""Every preset loads in every job, and those for GPUs really step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dakter.diffusion.fit import TrainingData, fit
from dakter.schema import OSD, SOS
from dakter.students.search import rungs, startup_trials
from jobs import _cli, pipeline

# Those for 8 and 64 GPUs share the networks of the one for 1.
GPU = [name for name in _cli.presets() if name.endswith("-gpu")]
SIZES = {"sos-256-gpu": 1, "sos-256-gpu-8": 8, "sos-256-gpu-64": 64}


@pytest.mark.parametrize("name", _cli.presets())
def test_every_preset_loads_in_every_job(name: str) -> None:
    settings = _cli.resolve(pipeline.PipelineSettings, preset=name)
    assert settings.out == f"runs/{name}"
    for job in (*pipeline.STAGES, pipeline.JOB):
        assert job.plan(pipeline.stage_settings(job, settings)).writes


@pytest.mark.parametrize("name", _cli.presets())
def test_the_search_of_every_preset_is_one(name: str) -> None:
    settings = _cli.resolve(pipeline.PipelineSettings, preset=name)
    assert settings.sweep.num_trials > startup_trials(settings.sweep), "the sampler must get to propose"
    assert rungs(settings.sweep, settings.students), "a trial can be stopped early"


def test_there_are_gpu_presets() -> None:
    assert {"osd-256-gpu", "sos-256-gpu"} <= set(GPU)


@pytest.mark.parametrize(("name", "gpus"), SIZES.items())
def test_a_preset_fits_its_gpus_and_keeps_the_model(name: str, gpus: int) -> None:
    settings, one = (_cli.resolve(pipeline.PipelineSettings, preset=preset) for preset in (name, "sos-256-gpu"))
    ray = settings.ray
    assert ray.generate_workers * ray.generate_gpus == gpus, "generation uses them all"
    assert ray.train_workers * ray.train_gpus <= gpus
    assert ray.trial_workers * ray.trial_gpus <= gpus
    assert ray.train_workers <= settings.train.batch_size
    assert (settings.network, settings.students, settings.sweep) == (one.network, one.students, one.sweep)
    assert settings.train.steps * settings.train.batch_size == one.train.steps * one.train.batch_size


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_preset_takes_two_steps_on_a_cpu(name: str, tmp_path: Path) -> None:
    teaches = _cli.resolve(pipeline.PipelineSettings, preset=name).train.mean_teacher.share > 0
    assert teaches == name.startswith("sos")
    settings = _cli.resolve(
        pipeline.PipelineSettings,
        preset=name,
        overrides={
            "train.steps": 2,
            "train.batch_size": 2,
            "train.warmup_steps": 1,
            "train.log_every": 1,
            "train.validate_evaluations": 1,
            "train.mean_teacher.share": float(teaches),  # of the one unlabelled row
            "train.mean_teacher.start_step": 1,
        },
    )
    table, size = (OSD if settings.data.source == "osd" else SOS), settings.tiles.size_px
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 1, size, size), dtype=np.uint8)
    labels = rng.integers(0, len(table), (4, size, size), dtype=np.uint8)
    data = TrainingData(
        images=images,
        labels=labels,
        unlabelled=images if teaches else None,
        class_table=table,
        value_range=(0.0, 255.0),
        bands=("VV",),
        b=0.4,
        val_images=images[:1],
        val_labels=labels[:1],
    )
    result = fit(
        settings.network,
        settings.diffusion,
        settings.train,
        data,
        resume=None,
        on_checkpoint=lambda folder, metrics: None,
        on_log=lambda step, metrics: None,
        should_stop=lambda: False,
    )
    assert result.steps == 2
    assert all(np.isfinite(row["loss"]) for row in result.history)
    assert ("consistency_loss" in result.history[-1]) == teaches
