"""The work of suite ``science``: what each cell computes, and the working files that cells share.

Working files (tiles, checkpoints, models, generated pairs, students) stand below one local folder and may be thrown
away: the same seed makes them again. What is to be kept is in the cells' records.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dakter import storage
from dakter.data.build import prepare
from dakter.data.tiles import TileCorpus
from dakter.diffusion.fit import fit
from dakter.diffusion.pipeline import JointDiffusionPipeline, open_model, save_model
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.errors import ConflictError, Stopped
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.scores import Predict
from dakter.progress import Progress
from dakter.schema import soft_from_stored, soft_to_stored, to_model
from dakter.students import train as students
from dakter.students.models import encode, num_parameters, predict
from dakter.students.store import load_student, read_record, save_student
from dakter.students.streams import SyntheticStream, array_stream, mixed_stream
from jobs.suites import _science_fractions as fractions
from jobs.suites import _science_pairs as pairs
from jobs.suites._paced_sampler import entropy_nats
from jobs.suites._science_alone import alone
from jobs.suites._science_arms import ALL_ARMS, GENERATORS, Arm, Labels, SoftLabel
from jobs.suites._science_checkpoints import keep_checkpoint, latest
from jobs.suites._science_identity import check_identity, identity
from jobs.suites._science_images import BOUND, measured
from jobs.suites._science_plan import Cell, Tier, data_name, generator_cell, generator_name, student_cell, student_name
from jobs.suites._science_pooled import Pool
from jobs.suites._science_scores import CHUNK, described, scored
from jobs.train import training_data

log = logging.getLogger("dakter.jobs.benchmark")


class Workshop:
    """Cells of one tier.

    Args:
        tier: its settings.
        folder: local folder of the working files.
        should_stop: asked between steps; a generator leaves a checkpoint then.
        recorded: digest of the tiles of each data cell that has a record.
    """

    def __init__(
        self, tier: Tier, folder: Path, should_stop: Callable[[], bool], recorded: Mapping[str, str] | None = None
    ):
        self.tier, self.folder, self.should_stop, self.recorded = tier, folder, should_stop, recorded or {}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._corpora: dict[str, TileCorpus] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """The figures of a cell. Raises Stopped if asked to stop: a generator goes on from its checkpoint."""
        if cell.kind == "data":
            return self._data_figures(self.corpus(cell.labels, cell.seed))
        if cell.kind == "generator":
            assert cell.generator
            return self._generator_figures(cell.generator, cell.labels, cell.seed)
        assert cell.arm
        assert cell.architecture
        if cell.kind == "images":
            assert cell.generator
            return self._images_figures(cell.generator, cell.labels, cell.architecture, cell.seed)
        return self._student_figures(cell.arm, cell.architecture, cell.seed)

    def corpus(self, labels: Labels, seed: int) -> TileCorpus:
        """Tiles with ``labels`` labelled images a sensor drawn by ``seed``; made where they are not there.

        Raises:
            ConflictError: they are of other images than those of the records.
        """
        name = data_name(labels, seed)
        if name not in self._corpora:
            url = str(self.folder / "tiles" / name)
            with alone(self.folder, name, self._check_stop):
                prepare(self.tier.data_of(labels, seed), self.tier.tiles, url, should_stop=self.should_stop)
            corpus = TileCorpus.open(url)
            if corpus.manifest.digest != self.recorded.get(name, corpus.manifest.digest):
                raise ConflictError(
                    f"{url}: tiles of other images than those of the record {name}; expected the same images, or "
                    "records of your own: choose another --results"
                )
            self._corpora[name] = corpus
        return self._corpora[name]

    def _data_figures(self, corpus: TileCorpus) -> dict[str, Any]:
        manifest = corpus.manifest
        kept = ("digest", "source", "licence", "citation", "counts_by_sensor", "class_shares", "b_rms", "tile_px")
        return {
            **{key: getattr(manifest, key) for key in kept},
            "sensors": list(manifest.sensors),
            "class_table": manifest.class_table.to_json(),
            "near_duplicates_across_splits": manifest.leakage["num_pairs"],
            "test": described(corpus) if self.tier.reads_test else None,
        }

    # Generators

    def model(self, kind: str, labels: Labels, seed: int) -> tuple[JointDiffusionPipeline, dict[str, Any]]:
        """The trained pipeline and its training record; trained, or trained on, where it is not there."""
        kind = GENERATORS[kind].weights_of or kind
        name = generator_name(kind, labels, seed)
        place = self.folder / "models" / name
        with alone(self.folder, name, self._check_stop):
            if not (place / "model.json").is_file():
                self._train(kind, labels, seed, str(place))
        opened = open_model(str(place))
        check_identity(str(place), opened.record, self._identity(generator_cell(kind, labels, seed)))
        return self._placed(opened.pipeline), opened.record

    def _placed(self, pipeline: JointDiffusionPipeline) -> JointDiffusionPipeline:
        if self.device == "cuda":
            pipeline.to(self.device)
        return pipeline

    def _train(self, kind: str, labels: Labels, seed: int, place: str) -> None:
        tier, corpus = self.tier, self.corpus(labels, seed)
        diffusion, train = tier.diffusion_of(kind), tier.train_of(kind, seed)
        data = training_data(
            corpus,
            diffusion,
            with_unlabelled=GENERATORS[kind].unlabelled,
            with_val=train.validate_every is not None,
        )
        name = generator_name(kind, labels, seed)
        checkpoints = self.folder / "checkpoints" / name
        resume = latest(checkpoints)
        done = int(storage.read_json(str(resume / "state.json"))["step"]) if resume else 0
        progress = Progress(log, name, train.steps, "steps", done=done)

        def keep(folder: Path, metrics: dict[str, float]) -> None:
            keep_checkpoint(folder, checkpoints, int(metrics["step"]))

        def on_look(row: dict[str, float]) -> None:
            log.info("%s: step %d, val mIoU %.3f, NLL %.4f", name, row["step"], row["val_miou"], row["val_nll"])

        def on_log(step: int, record: dict[str, float]) -> None:
            progress.advance(step - progress.done, f"loss {record['loss']:.4f}")

        result = fit(
            tier.network_of(kind),
            diffusion,
            train,
            data,
            resume=resume,
            on_checkpoint=keep,
            on_log=on_log,
            on_look=on_look,
            should_stop=self.should_stop,
            device=self.device,
        )
        record = {
            "identity": self._identity(generator_cell(kind, labels, seed)),
            "b": data.b,
            "steps": result.steps,
            "kept_step": result.kept_step,
            "seconds": result.seconds,
            "history": result.history,
            "curve": result.curve,
            "num_labelled": len(data.images),
            "num_unlabelled": data.num_unlabelled,
            "num_parameters": num_parameters(result.pipeline.unet),
        }
        save_model(result.pipeline, place, record)
        storage.remove_folder(str(checkpoints))

    def pairs(self, kind: str, labels: Labels, seed: int) -> dict[str, np.ndarray]:
        """Generated ``image`` uint8 ``(N, C, H, W)`` and stored soft labels ``last_step`` and, where the model knows
        p(y|x), ``readout`` of the same images and ``unlabelled`` of the real unlabelled ones, uint8 ``(N, K, H, W)``.
        """
        digest = self._identity(generator_cell(kind, labels, seed))["digest"]
        place = self.folder / "generated" / f"{generator_name(kind, labels, seed)}-{digest[:12]}.npz"
        with alone(self.folder, place.stem, self._check_stop):
            if not place.is_file():
                self._draw(kind, labels, seed, place)
        with np.load(place) as stored:
            return {key: stored[key] for key in stored.files}

    def _draw(self, kind: str, labels: Labels, seed: int, place: Path) -> None:
        """Write what ``pairs`` reads."""
        pipeline, _ = self.model(kind, labels, seed)
        pool, soft, corpus = None, None, self.corpus(labels, seed)
        if other := GENERATORS[kind].weights_of:
            soft, turned = self.pairs(other, labels, seed)["unlabelled"], self.tier.train_of(kind, seed).dihedral
            pool = pairs.label_maps(corpus, soft, GENERATORS[kind].render, seed, turned=turned)
        arrays = pairs.drawn(pipeline, self.tier, seed, pool, place.stem, self._check_stop)
        if GENERATORS[kind].labels_images:
            label = self._readout(pipeline, seed)
            arrays["readout"] = soft_to_stored(label(arrays["image"]))
            arrays["unlabelled"] = soft_to_stored(label(corpus.read("unlabelled").images)) if soft is None else soft
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial.npz")
        np.savez_compressed(partial, allow_pickle=False, **arrays)
        partial.rename(place)

    def _readout(
        self, pipeline: JointDiffusionPipeline, seed: int, how: Literal["readout", "chains"] = "readout"
    ) -> Callable[[np.ndarray], np.ndarray]:
        """p(y|x) of stored images as float32 ``(N, K, H, W)`` that sums to 1."""
        soft_label = SoftLabelConfig(mode=how, evaluations=self.tier.evaluations)

        def label(images: np.ndarray) -> np.ndarray:
            sampler = self.tier.sampler
            soft = pipeline.label(to_model(images), seed=seed, sampler=sampler, soft_label=soft_label).numpy()
            return soft / soft.sum(axis=1, keepdims=True)

        return label

    def _generator_figures(self, kind: str, labels: Labels, seed: int) -> dict[str, Any]:
        corpus = self.corpus(labels, seed)
        pipeline, record = self.model(kind, labels, seed)
        generated = self.pairs(kind, labels, seed)
        entropy = {
            key: entropy_nats(soft_from_stored(generated[key]).numpy())
            for key in ("last_step", "readout")
            if key in generated
        }
        if other := GENERATORS[kind].weights_of:
            return {"weights_of": other, "soft_label_entropy_nats": entropy, "segmenter": None}
        rate = statistics.median(row["samples_per_second"] for row in record["history"])
        knows = GENERATORS[kind].labels_images
        return {
            **{key: value for key, value in record.items() if key not in ("history", "identity")},
            "images_per_second": rate,
            "loss": [[row["step"], row["image_loss"], row["label_loss"]] for row in record["history"]],
            "soft_label_entropy_nats": entropy,
            "segmenter": self._scored(self._readout(pipeline, seed), corpus) if knows else None,
            "against_fractions": self._against_fractions(pipeline, corpus, seed) if knows else None,
        }

    def _against_fractions(
        self, pipeline: JointDiffusionPipeline, corpus: TileCorpus, seed: int
    ) -> dict[str, Any] | None:
        labellers = {"readout": self._readout(pipeline, seed), "chains": self._readout(pipeline, seed, "chains")}
        return fractions.measured(labellers, corpus.read("val"), CHUNK)

    def _images_figures(self, kind: str, labels: Labels, architecture: tuple[str, str], seed: int) -> dict[str, Any]:
        corpus, encoder = self.corpus(labels, seed), self.student("real", architecture, seed)
        found = measured(
            self.pairs(kind, labels, seed),
            corpus.read("train"),
            corpus.read("val"),
            len(corpus.manifest.class_table),
            lambda images: encode(encoder, images),
            yardstick=self.corpus(None, seed).read("train"),
            unlabelled=corpus.read("unlabelled").images if GENERATORS[kind].unlabelled else None,
            resampling=Resampling(self.tier.num_resamples, 0, BOUND),
        )
        return {"encoder": student_name("real", architecture[0], seed), **found}

    # Students

    def _student_figures(self, arm_name: str, architecture: tuple[str, str], seed: int) -> dict[str, Any]:
        arm = ALL_ARMS[arm_name]
        labels = self.tier.labels_of(arm)
        corpus, model = self.corpus(labels, seed), self.student(arm_name, architecture, seed)
        record = read_record(self._student_place(arm_name, architecture, seed))
        assert record is not None
        pool = self._pool(arm, architecture, labels, seed) if arm.pools else None
        return {
            **{key: value for key, value in record["record"].items() if key != "identity"},
            "num_parameters": record["num_parameters"],
            **self._scored(lambda images: predict(model, images), corpus),
            **({"pool": {"weights": pool.weights, **self._scored(pool, corpus)}} if pool else {}),
        }

    def _scored(self, predict: Predict, corpus: TileCorpus) -> dict[str, Any]:
        return scored(predict, corpus, reads_test=self.tier.reads_test)

    def _student_place(self, arm_name: str, architecture: tuple[str, str], seed: int) -> str:
        return str(self.folder / "students" / student_name(arm_name, architecture[0], seed))

    def student(self, arm_name: str, architecture: tuple[str, str], seed: int) -> torch.nn.Module:
        """The student of an arm; trained where it is not there."""
        place = self._student_place(arm_name, architecture, seed)
        own = self._identity(student_cell(self.tier, arm_name, architecture, seed))
        with alone(self.folder, student_name(arm_name, architecture[0], seed), self._check_stop):
            if read_record(place) is None:
                self._fit_student(arm_name, architecture, seed, own)
        student = load_student(place)
        check_identity(place, student.record, own)
        return student.model

    def _fit_student(self, arm_name: str, architecture: tuple[str, str], seed: int, own: dict[str, Any]) -> None:
        tier, arm = self.tier, ALL_ARMS[arm_name]
        labels = tier.labels_of(arm)
        corpus, settings = self.corpus(labels, seed), tier.student_of(arm, *architecture)
        num_classes = len(corpus.manifest.class_table)
        common = tier.students_of(arm)
        progress = Progress(log, student_name(arm_name, architecture[0], seed), common.steps, "steps")
        result = students.fit(
            settings,
            common,
            _labelled(corpus, "train"),
            _labelled(corpus, "val"),
            self._stream(arm, architecture, labels, seed),
            num_classes=num_classes,
            seed=seed,
            on_evaluate=lambda now: progress.advance(now.step - progress.done, f"val mIoU {now.val_miou:.3f}"),
            should_stop=self.should_stop,
            device=self.device,
        )
        record = {
            "identity": own,
            "val_miou": result.kept.val_miou,
            "best_step": result.kept.step,
            "history": [[row["step"], row["loss"], row["val_miou"]] for row in result.history],
            "train_seconds": result.seconds,
            "epochs_of_real": result.epochs,
        }
        place = self._student_place(arm_name, architecture, seed)
        save_student(place, result.model, settings, len(corpus.manifest.bands), num_classes, record)

    def _stream(self, arm: Arm, architecture: tuple[str, str], labels: Labels, seed: int) -> SyntheticStream | None:
        """What fills its batches beside real pairs, of as many sources as the arm has."""
        parts: list[tuple[SyntheticStream, float]] = []
        if arm.generated:
            assert arm.generator
            generated = self.pairs(arm.generator, labels, seed)
            soft = self._soft(arm.generated, generated, architecture, seed)
            parts.append((array_stream(generated["image"], soft, seed), 1.0))
        if arm.real_unlabelled:
            images = self.corpus(labels, seed).read("unlabelled").images
            if arm.real_unlabelled == "teacher":
                soft = self._taught(images, architecture, seed)
            elif arm.pools:
                soft = soft_to_stored(self._pool(arm, architecture, labels, seed)(images))
            else:
                assert arm.generator
                soft = self.pairs(arm.generator, labels, seed)["unlabelled"]
            parts.append((array_stream(images, soft, seed, "students/unlabelled"), 1.0))
        return mixed_stream(parts) if parts else None

    def _soft(
        self, kind: SoftLabel, generated: dict[str, np.ndarray], architecture: tuple[str, str], seed: int
    ) -> np.ndarray:
        if kind == "teacher":
            return self._taught(generated["image"], architecture, seed)
        if kind == "argmax":
            last = generated["last_step"]
            return (np.arange(last.shape[1])[:, None, None] == last.argmax(axis=1)[:, None]).astype(np.uint8) * 255
        return generated[kind]

    def _taught(self, images: np.ndarray, architecture: tuple[str, str], seed: int) -> np.ndarray:
        return soft_to_stored(predict(self.student("real", architecture, seed), images))

    def _pool(self, arm: Arm, architecture: tuple[str, str], labels: Labels, seed: int) -> Pool:
        """Labels of an arm's generator and of the teacher together."""
        assert arm.generator
        pipeline, _ = self.model(arm.generator, labels, seed)
        teacher = self.student("real", architecture, seed)
        members = (self._readout(pipeline, seed), lambda images: predict(teacher, images))
        return Pool.fit(members, self.corpus(labels, seed).read("val"))

    def _identity(self, cell: Cell) -> dict[str, Any]:
        return identity(self.tier, cell)

    def _check_stop(self) -> None:
        if self.should_stop():
            raise Stopped("stopped as asked; finished cells and checkpoints are kept; the same command goes on")


def _labelled(corpus: TileCorpus, split: str) -> students.LabelledArrays:
    arrays = corpus.read(split)
    return students.LabelledArrays(arrays.images, arrays.labels)
