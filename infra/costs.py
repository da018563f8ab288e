"""What one reference run would cost on AWS: arithmetic over stated assumptions, nothing of it measured.

``python infra/costs.py`` prints the two tables of infra/README.md. The work is exact (operations counted on networks
of the preset ``sos-256-gpu``; a test recounts them); prices and the share of a GPU's peak that is reached are
assumptions: put in your own.
"""

from __future__ import annotations

from dataclasses import dataclass

# ---- the work: preset sos-256-gpu, 256 x 256 pixels, one band, two classes
GFLOP_GENERATOR = 91.04  # one evaluation of the joint network, a multiply-add being two operations
GFLOP_STUDENT = 15.44  # one evaluation of Unet on resnet34, of middle size among the students of the sweep
BACKWARD = 3  # a training step is about three evaluations: one forward, twice that backward
TRAIN_STEPS, TRAIN_BATCH = 100_000, 64
SAMPLES, EVALUATIONS = 26_000, 20 + 4  # solver steps, then four draws of the read-out
PAPER_SAMPLES, PAPER_EVALUATIONS = 1_000_000, (1000, 20, 4)  # the paper's corpus: its own DDPM, and few-step samplers
STUDENT_STEPS, STUDENT_BATCH = 20_000, 32
STUDENTS = 2 * (24 + 3)  # two arms of 24 trials and 3 final students, as if no trial were stopped early

# ---- assumptions of 2026-11-24, for us-east-1, in USD; spot prices move by the hour
PEAK_TFLOPS = 362.0  # bf16, dense, of an L40S by its data sheet
UTILISATION = 0.25  # share of the peak that is reached; the least certain number here
GPU_NODE_H = 3.00  # g6e.4xlarge on demand (one L40S)
SPOT_SHARE = 0.45  # price of spot as a share of that on demand
REDONE = 1.10  # work done twice after preemptions, and minutes of nodes that start or idle
HEAD_H = 0.20 + 0.005 + 150 * 0.08 / 730  # m7i.xlarge, its address, its disk
MLFLOW_H = 0.5 * 0.0405 + 2 * 0.00445 + 0.005 + 0.016 + 20 * 0.115 / 730  # Fargate, address, db.t4g.micro, its disk
BUCKET_GB_MONTH = 0.023
BYTES_PER_SAMPLE = 100_000  # image and soft label of 256 x 256, compressed


@dataclass(frozen=True)
class Stage:
    """A stage of the run: its operations, and how many one-GPU nodes share it."""

    name: str
    work: str
    exaflop: float
    nodes: int

    @property
    def gpu_hours(self) -> float:
        return self.exaflop * 1e18 / (PEAK_TFLOPS * 1e12 * UTILISATION) / 3600 * REDONE


def stages(samples: int = SAMPLES) -> list[Stage]:
    """The stages that need GPUs; tiles, evaluation, promotion and report need minutes of CPU."""
    return [
        Stage(
            "train",
            f"{TRAIN_STEPS:,} steps of {TRAIN_BATCH}",
            TRAIN_STEPS * TRAIN_BATCH * BACKWARD * GFLOP_GENERATOR / 1e9,
            1,
        ),
        Stage(
            "generate",
            f"{samples:,} samples, {EVALUATIONS} evaluations each",
            samples * EVALUATIONS * GFLOP_GENERATOR / 1e9,
            8,
        ),
        Stage(
            "distill",
            f"{STUDENTS} students, {STUDENT_STEPS:,} steps of {STUDENT_BATCH}",
            STUDENTS * STUDENT_STEPS * STUDENT_BATCH * BACKWARD * GFLOP_STUDENT / 1e9,
            4,
        ),
    ]


def table(samples: int = SAMPLES) -> str:
    """The run as a Markdown table."""
    rows, hours, gpu_hours = [], 0.0, 0.0
    for stage in stages(samples):
        hours += stage.gpu_hours / stage.nodes
        gpu_hours += stage.gpu_hours
        rows.append(_row(stage.name, stage.work, stage.gpu_hours, stage.nodes, stage.gpu_hours * GPU_NODE_H))
    total = gpu_hours * GPU_NODE_H
    standing = hours * (HEAD_H + MLFLOW_H)
    storage = samples * BYTES_PER_SAMPLE / 1e9 * BUCKET_GB_MONTH
    head = "| part | work | GPU hours | nodes | on demand | spot |\n|---|---|---|---|---|---|\n"
    tail = [
        f"| head, MLflow | {hours:.1f} hours | | | {standing:.2f} | {standing:.2f} |",
        f"| corpus in S3 | {samples * BYTES_PER_SAMPLE / 1e9:.1f} GB for a month | | | {storage:.2f} | {storage:.2f} |",
        f"| **all** | | {gpu_hours:.1f} | | **{total + standing + storage:.0f}** "
        f"| **{total * SPOT_SHARE + standing + storage:.0f}** |",
    ]
    return head + "\n".join([*rows, *tail]) + "\n"


def samples_per_gpu_second(evaluations: int) -> float:
    """At what pace one GPU draws samples of ``evaluations`` evaluations, losses to preemption not counted."""
    return PEAK_TFLOPS * 1e3 * UTILISATION / (evaluations * GFLOP_GENERATOR)


def paper_table() -> str:
    """Generation of the paper's corpus by evaluations a sample, as a Markdown table."""
    rows = [
        f"| {evaluations} | {samples_per_gpu_second(evaluations):.3g} | {hours:,.1f} | {hours / 8:,.2f} "
        f"| {hours / 64:,.2f} | {hours * GPU_NODE_H:,.0f} | {hours * GPU_NODE_H * SPOT_SHARE:,.0f} |"
        for evaluations in PAPER_EVALUATIONS
        for hours in [PAPER_SAMPLES / samples_per_gpu_second(evaluations) / 3600 * REDONE]
    ]
    head = "| evaluations | samples/s a GPU | GPU hours | hours on 8 | hours on 64 | on demand | spot |\n"
    return head + "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(name: str, work: str, gpu_hours: float, nodes: int, price: float) -> str:
    return f"| {name} | {work} | {gpu_hours:.1f} | {nodes} | {price:.2f} | {price * SPOT_SHARE:.2f} |"


if __name__ == "__main__":
    print(table(), paper_table(), sep="\n", end="")
