"""The state of a training run on one rank: weights, optimiser, average, losses, looks at val, and its checkpoints."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from dakter.captured import Captured
from dakter.diffusion.balance import class_weights, enter_labels
from dakter.diffusion.batch import Batch, TrainingData, assemble, count_unlabelled, described, plan
from dakter.diffusion.checkpoint import check_same, load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint
from dakter.diffusion.loss import losses
from dakter.diffusion.mean_teacher import answers, count_taught, teacher_probabilities
from dakter.diffusion.network import JointUNet, NetworkConfig, describe
from dakter.diffusion.pipeline import JointDiffusionPipeline
from dakter.diffusion.schedule import DiffusionConfig, add_noise, draws_images
from dakter.diffusion.train_config import TrainConfig, learning_rate
from dakter.diffusion.validation import Validation
from dakter.ema import Ema
from dakter.errors import ConfigError, DakterError
from dakter.rng import derive_seed

log = logging.getLogger("dakter")

Loss = TypeVar("Loss", float, torch.Tensor)


class Trainer:
    """The state of a run on one rank; ``fit`` drives it."""

    def __init__(
        self,
        network: NetworkConfig,
        diffusion: DiffusionConfig,
        train: TrainConfig,
        data: TrainingData,
        device: torch.device,
    ):
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        if train.batch_size < self.world:
            raise ConfigError(
                f"train.batch_size is {train.batch_size}; expected a row for each of {self.world} workers"
            )
        self.network_config, self.diffusion, self.train, self.data, self.device = (
            network,
            diffusion,
            train,
            data,
            device,
        )
        self.num_unlabelled = count_unlabelled(diffusion, data, train.batch_size, train.unlabelled_share)
        self.num_taught = count_taught(train.mean_teacher, self.num_unlabelled)
        if train.mean_teacher.share and not self.num_unlabelled and self.rank == 0:
            log.warning("train.mean_teacher has no unlabelled image to label, so it teaches nothing")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(train.seed, "train/weights"))
            self.unet = JointUNet.build(network, len(data.bands), len(data.class_table))
        self.unet.check_size(*data.images.shape[2:])
        if self.unet.table is not None:
            self.unet.table.copy_(
                described(data, len(self.unet.table), train.seed, with_unlabelled=self.num_unlabelled > 0)
            )
        # CPU: GroupNorm's backward in channels_last bf16 is 12-45 times slower than NCHW. GPUs want channels_last.
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        nn.Module.to(self.unet, device)
        nn.Module.to(self.unet, memory_format=layout)
        self.unet.train()
        self.names = [name for name, _ in self.unet.named_parameters()]
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(),
            lr=train.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.ema = Ema(self.unet, train.ema_decay)
        self.step, self.history = 0, list[dict[str, float]]()
        self.began, self.seconds_before = time.monotonic(), 0.0
        self.data_digest = _digest(data.images, data.labels, data.unlabelled)
        self.looks = Validation(train, diffusion, data)
        weights = class_weights(data.labels, len(data.class_table), diffusion.rare_class_power)
        self.class_weights = None if weights is None else weights.to(device)
        self.parts = ("image_loss", "label_loss", *(["consistency_loss"] if self.num_taught else []))
        self.sums = torch.zeros(len(self.parts), dtype=torch.float64)  # of parts since the last record, all ranks
        self.window_steps, self.window_start, self.timed_steps = 0, time.monotonic(), 0
        self.waited_s = 0.0  # for batches, since the last record
        self.model: nn.Module = self.unet
        if several:
            ids = [device.index or 0] if device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(self.unet, device_ids=ids)
        # DDP's exchange between workers stays outside of graphs: it may fail and has to say so.
        alone = device.type == "cuda" and not several
        self.gradients = Captured(self.differentiate, self.unet.parameters(), capture=alone)
        self.captured_answers = Captured(self._answers, (), capture=alone)

    def _told(
        self, x_BCHW: torch.Tensor, t_x_B: torch.Tensor, t_y_B: torch.Tensor, on_image_B: torch.Tensor
    ) -> torch.Tensor | None:
        """Descriptors in rows whose image is to be learned at levels where samples are drawn; zeros in the others."""
        if self.unet.table is None:
            return None
        return describe(x_BCHW) * (on_image_B * draws_images(self.diffusion, t_x_B, t_y_B))[:, None]

    def seconds(self) -> float:
        """Of training so far, over all starts."""
        return self.seconds_before + time.monotonic() - self.began

    def settings(self) -> dict[str, Any]:
        """What decides the weights: a checkpoint of other settings is not gone on from."""
        chooses = self.train.keep == "best"
        val = {"val_sha256": _digest(self.data.val_images, self.data.val_labels)} if chooses else {}
        return {
            "network": self.network_config.dump(),
            "diffusion": self.diffusion.dump(),
            "train": self.train.identity(),
            "data": {"sha256": self.data_digest, "b": self.data.b, **val},
        }

    def facts(self) -> dict[str, Any]:
        return {
            "b": self.data.b,
            "size_px": self.data.images.shape[-1],
            "class_table": self.data.class_table.to_json(),
            "bands": list(self.data.bands),
            "value_range": list(self.data.value_range),
        }

    def resume(self, folder: Path) -> None:
        checkpoint = read_checkpoint(folder)
        state = checkpoint.state
        check_same(state["settings"], self.settings(), f"the checkpoint in {folder}")
        self.unet.load_state_dict(checkpoint.tensors["network"])
        self.ema.load(checkpoint.tensors["ema"])
        self.step, self.history = int(state["step"]), list(state["history"])
        self.seconds_before = float(state["seconds"])
        load_optimizer(self.optimizer, self.names, checkpoint.tensors["optimizer"], self.step)
        if self.rank == 0:
            self.sums = torch.tensor(state["window"]["sums"], dtype=torch.float64)
        self.window_steps = int(state["window"]["steps"])
        self.looks.curve, self.looks.best = list(state.get("curve", [])), checkpoint.tensors["best"]

    def write(self, folder: Path) -> None:
        tensors = {
            "network": self.unet.state_dict(),
            "ema": self.ema.state(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
            "best": self.looks.best,
        }
        state = {
            "step": self.step,
            "settings": self.settings(),
            "facts": self.facts(),
            "history": self.history,
            "curve": self.looks.curve,
            "window": {"sums": self.sums.tolist(), "steps": self.window_steps},
            "seconds": self.seconds(),
            "world": self.world,
            "torch": torch.__version__,
        }
        write_checkpoint(folder, tensors, state)

    def batches(self) -> Iterator[Batch]:
        """This rank's rows of every step still to do, prepared ahead in threads (noise of 256 px images takes ms)."""

        def make(step: int) -> Batch:
            rows = plan(
                self.diffusion,
                self.data,
                batch_size=self.train.batch_size,
                num_unlabelled=self.num_unlabelled,
                dihedral=self.train.dihedral,
                seed=self.train.seed,
                step=step,
                num_taught=self.num_taught if step >= self.train.mean_teacher.start_step else 0,
            )
            return assemble(
                rows,
                self.data,
                seed=self.train.seed,
                step=step,
                label_views=self.train.label_views,
                rank=self.rank,
                world=self.world,
            )

        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 1
        # One thread each: a second team of OpenMP threads would spin against the one that trains (measured on two
        # cores: 97 against 72 images/s).
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead: deque[Future[Batch]] = deque()
            upcoming = iter(range(self.step, self.train.steps))
            for step in upcoming:
                ahead.append(pool.submit(make, step))
                if len(ahead) > workers:
                    yield self._awaited(ahead.popleft())
            while ahead:
                yield self._awaited(ahead.popleft())

    def _awaited(self, batch: Future[Batch]) -> Batch:
        began = time.monotonic()
        made = batch.result()
        self.waited_s += time.monotonic() - began
        return made

    def advance(self, batch: Batch) -> None:
        """One optimiser step."""
        if self.network_config.dropout:
            torch.manual_seed(derive_seed(self.train.seed, "train/dropout", self.step, self.rank))
        own = batch.to(self.device)
        counts = torch.tensor([own.num_image, own.num_label, own.num_taught], dtype=torch.float32).to(self.device)
        *found, norm = self.gradients(
            own.x_BCHW,
            own.labels_BHW,
            own.noise_x_BCHW,
            own.noise_y_BKHW,
            own.t_x_B,
            own.t_y_B,
            own.on_image_B,
            own.on_label_B,
            counts,
            *([self._teacher(own)] if self.num_taught else []),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.train, self.step)
        if not math.isfinite(float(norm)):  # after the exchange of gradients, so every rank sees it
            raise DakterError(
                f"step {self.step}: the gradient is not finite (image loss {float(found[0]):g}, label loss "
                f"{float(found[1]):g}); lower train.learning_rate, raise train.warmup_steps or use precision fp32"
            )
        self.optimizer.step()
        self.ema.update(self.unet, self.step)
        self.sums += torch.stack(found).double().cpu()
        self.step, self.window_steps, self.timed_steps = self.step + 1, self.window_steps + 1, self.timed_steps + 1

    def differentiate(
        self,
        x_BCHW: torch.Tensor,
        labels_BHW: torch.Tensor,
        noise_x_BCHW: torch.Tensor,
        noise_y_BKHW: torch.Tensor,
        t_x_B: torch.Tensor,
        t_y_B: torch.Tensor,
        on_image_B: torch.Tensor,
        on_label_B: torch.Tensor,
        counts: torch.Tensor,
        teacher_BKHW: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The losses of ``parts``, and the norm of the gradient, which is left, clipped, in the weights.

        ``counts``: rows of the whole batch that carry each of them; ``teacher``: of ``_teacher``; the rest is of a
        ``Batch``.
        """
        y = enter_labels(labels_BHW, len(self.data.class_table), self.data.b)
        noisy_x = add_noise(x_BCHW, noise_x_BCHW, t_x_B)
        noisy_y = add_noise(y, noise_y_BKHW, t_y_B)
        with self._autocast():
            out = self.model(noisy_x, noisy_y, t_x_B, t_y_B, self._told(x_BCHW, t_x_B, t_y_B, on_image_B))
        sums = losses(
            self.diffusion,
            out.image,
            out.logits,
            x_BCHW=x_BCHW,
            noise_BCHW=noise_x_BCHW,
            labels_BHW=labels_BHW,
            t_x_B=t_x_B,
            on_image_B=on_image_B,
            on_label_B=on_label_B,
            teacher_BKHW=teacher_BKHW,
            weight_K=self.class_weights,
        )
        found = [sums.image / counts[0], sums.label / counts[1]]
        if sums.consistency is not None:
            found.append(sums.consistency / counts[2])
        loss = self._total(found)
        torch.autograd.backward(loss * self.world)  # DDP averages over ranks; the loss is a sum over them
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), self.train.clip_norm, foreach=True)
        return *(value.detach() for value in found), norm

    def _total(self, found: Sequence[Loss]) -> Loss:
        """The loss that is minimised, of its ``parts``."""
        image, label, *consistency = found
        if consistency:
            label = label + self.train.mean_teacher.weight * consistency[0]
        return self.diffusion.image_weight * image + self.diffusion.label_weight * label

    def _teacher(self, batch: Batch) -> torch.Tensor:
        """Targets of the taught rows, 0 elsewhere."""
        return teacher_probabilities(lambda *rows: self.captured_answers(*rows)[0], batch)

    def _answers(self, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._autocast():
            return (answers(self.unet, self.ema.state(), *rows, temperature=self.train.mean_teacher.temperature),)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        half = self.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext()

    def any_rank(self, *flags: bool) -> list[bool]:
        """Each flag or-ed over the ranks; the same answer on all of them.

        A round of a few bytes after every step: the exchange of gradients before it has synchronised the ranks already.
        """
        if self.world == 1:
            return list(flags)
        told = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return [bool(value) for value in told.tolist()]

    def log_if_due(self, last: bool) -> dict[str, float] | None:
        """The record of the window that just ended; every rank must ask, for its losses are summed over them."""
        if self.step % self.train.log_every and not last:
            return None
        sums = self._over_ranks(self.sums)
        found = [float(value) / self.window_steps for value in sums]
        told = self.parts if self.step > self.train.mean_teacher.start_step else self.parts[:2]
        now = time.monotonic()
        seconds = max(now - self.window_start, 1e-9)
        record = {
            "step": self.step,
            "loss": self._total(found),
            **dict(zip(told, found[: len(told)], strict=True)),
            "learning_rate": learning_rate(self.train, self.step - 1),
            "samples_per_second": self.timed_steps * self.train.batch_size / seconds,
            "data_wait_share": self.waited_s / seconds,
        }
        self.history.append(record)
        self.sums.zero_()
        self.window_steps, self.window_start, self.timed_steps, self.waited_s = 0, now, 0, 0.0
        return record

    def settle(self) -> None:
        """Move the running sums of all ranks to rank 0, whose checkpoint then holds them all."""
        total = self._over_ranks(self.sums)
        self.sums = total.clone() if self.rank == 0 else torch.zeros_like(total)

    def _over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        if self.world == 1:
            return values
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def latest(self) -> dict[str, float]:
        """Of the last record, and the step of now."""
        return {**(self.history[-1] if self.history else {}), "step": float(self.step)}

    def look(self) -> dict[str, float]:
        """A look at p(y | x) on val; the time that it takes counts to no rate of training."""
        began = time.monotonic()
        pipeline = self.pipeline()
        if self.device.type == "cuda":
            pipeline.to(self.device)
        row = self.looks.look(pipeline, self.step, self.rank, self.world, self._over_ranks)
        self.window_start += time.monotonic() - began
        return row

    def pipeline(self, weights: Mapping[str, torch.Tensor] | None = None) -> JointDiffusionPipeline:
        """With these weights (None: the averaged ones of now), on the CPU in float32."""
        unet = copy.deepcopy(self.unet).cpu()
        unet.load_state_dict({name: value.cpu() for name, value in (weights or self.ema.state()).items()})
        return JointDiffusionPipeline.build(
            unet.eval(),
            self.diffusion,
            b=self.data.b,
            dihedral=self.train.dihedral,
            size_px=self.data.images.shape[-1],
            class_table=self.data.class_table,
            bands=self.data.bands,
            value_range=self.data.value_range,
        )


def _digest(*arrays: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
