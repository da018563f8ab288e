"""The cost table of infra/README.md: it is what the script prints, over work that is recounted here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dakter.diffusion.network import JointUNet
from dakter.students.models import StudentConfig, build
from infra import costs
from jobs import _cli, distill, generate, train
from jobs.suites import scaling

PRESET = "sos-256-gpu"


def gigaflop(network: torch.nn.Module, *inputs: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*inputs)
    return counter.get_total_flops() / 1e9


def test_the_work_is_that_of_the_preset() -> None:
    training = _cli.resolve(train.TrainSettings, preset=PRESET)
    corpus = _cli.resolve(generate.GenerateSettings, preset=PRESET)
    sweep = _cli.resolve(distill.DistillSettings, preset=PRESET)
    assert (training.train.steps, training.train.batch_size) == (costs.TRAIN_STEPS, costs.TRAIN_BATCH)
    assert corpus.corpus.num_samples == costs.SAMPLES
    assert corpus.sampler.steps + corpus.soft_label.evaluations == costs.EVALUATIONS
    assert (sweep.students.steps, sweep.students.batch_size) == (costs.STUDENT_STEPS, costs.STUDENT_BATCH)
    assert 2 * (sweep.sweep.num_trials + sweep.students.num_seeds) == costs.STUDENTS
    with torch.device("meta"):  # shapes alone: nothing is computed
        image, label, level = torch.empty(1, 1, 256, 256), torch.empty(1, 2, 256, 256), torch.empty(1)
        network = JointUNet.build(training.network, bands=1, num_classes=2)
    assert gigaflop(network, image, label, level, level) == pytest.approx(costs.GFLOP_GENERATOR, abs=0.01)
    student = build(StudentConfig(architecture="Unet", encoder="resnet34"), 1, 2).to("meta")
    assert gigaflop(student, image) == pytest.approx(costs.GFLOP_STUDENT, abs=0.01)


def test_the_readme_shows_what_the_script_prints() -> None:
    readme = (Path(costs.__file__).parent / "README.md").read_text()
    assert costs.table() in readme
    assert costs.paper_table() in readme


def test_the_pace_of_the_scaling_suite_is_reckoned_alike() -> None:
    pace = costs.samples_per_gpu_second(costs.EVALUATIONS) * 989.0 / costs.PEAK_TFLOPS
    assert pytest.approx(pace, rel=0.001) == scaling.H100_PER_SECOND


def test_the_paper_s_corpus_is_counted_as_the_run_is() -> None:
    twenty_four = costs.SAMPLES / costs.samples_per_gpu_second(costs.EVALUATIONS) / 3600 * costs.REDONE
    assert twenty_four == pytest.approx(costs.stages()[1].gpu_hours)
    assert costs.samples_per_gpu_second(4) == pytest.approx(5 * costs.samples_per_gpu_second(20))
