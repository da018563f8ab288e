"""Scores of one student: confusion an image, IoU, precision, recall, F1, calibration before and after a temperature.

Everything is kept as sums over images, so that a whole set, a bootstrap draw and one class come from the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.calibration import Reliability, fit_temperature, proper_sums, temper
from dakter.metrics import confusion_matrix, iou, miou
from dakter.rng import numpy_rng

# Images ``(B, C, H, W)`` to class probabilities ``(B, K, H, W)``, float32, summing to 1 over K.
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scores:
    """What a student did on a labelled set, as sums.

    Attributes:
        temperature: fitted on val; the fields named ``_tempered`` are those of ``q^(1/T)``.
        confusions: int64 ``(N, K, K)`` pixels an image, rows true class, columns the likeliest class.
        proper, proper_tempered: float64 ``(N, 3)``: summed NLL in nats, summed Brier score, labelled pixels.
        reliability, reliability_tempered: class-wise, over all images.
    """

    temperature: float
    confusions: np.ndarray
    proper: np.ndarray
    proper_tempered: np.ndarray
    reliability: Reliability
    reliability_tempered: Reliability

    def to_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Scores of the whole set; null where undefined (a class that does not occur, say)."""
        confusion = self.confusions.sum(axis=0)
        data: dict[str, Any] = {"temperature": self.temperature, "miou": number(miou(confusion))}
        data |= {name: numbers(score(confusion)) for name, score in CLASS_SCORES.items()}
        for suffix, sums, reliability in (
            ("", self.proper.sum(axis=0), self.reliability),
            ("_tempered", self.proper_tempered.sum(axis=0), self.reliability_tempered),
        ):
            data[f"nll{suffix}"] = number(sums[0] / sums[2] if sums[2] else math.nan)
            data[f"brier{suffix}"] = number(sums[1] / sums[2] if sums[2] else math.nan)
            data[f"ece{suffix}"] = numbers(reliability.ece())
            data[f"reliability{suffix}"] = {name: reliability.curve(k) for k, name in enumerate(class_names)}
        return data


def precision(confusion: np.ndarray) -> np.ndarray:
    """Share of the pixels called a class that are of it, ``(..., K)`` from ``(..., K, K)``; NaN if none is."""
    called = confusion.sum(axis=-2)
    return _share(np.diagonal(confusion, axis1=-2, axis2=-1), called, called > 0)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Share of a class's pixels that are found, ``(..., K)`` from ``(..., K, K)``; NaN for an absent class."""
    true = confusion.sum(axis=-1)
    return _share(np.diagonal(confusion, axis1=-2, axis2=-1), true, true > 0)


def f1(confusion: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall, ``2 TP / (true + called)``, ``(..., K)``; NaN for an absent class."""
    true, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return _share(2 * np.diagonal(confusion, axis1=-2, axis2=-1), true + called, true > 0)


# Scores a class, from counts ``(..., K, K)`` to ``(..., K)``, in the order of the tables.
CLASS_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "f1": f1,
}


def score(
    predict: Predict, images: np.ndarray, labels: np.ndarray, *, num_classes: int, temperature: float, chunk: int
) -> Scores:
    """Score a student on labelled images.

    Args:
        predict: the student.
        images: whatever ``predict`` takes, ``(N, C, H, W)``.
        labels: uint8 ``(N, H, W)``, 0..K-1 or IGNORE.
        num_classes: K.
        temperature: fitted on val by ``calibrated_on``.
        chunk: images at a time.

    Raises:
        DataError: no image, or predictions that are no probabilities of K classes for these labels.
    """
    parts = []
    for probabilities, true in predicted(predict, images, labels, num_classes, chunk):
        tempered = temper(probabilities, temperature)
        parts.append(
            (
                _confusions(probabilities, true),
                proper_sums(probabilities, true),
                proper_sums(tempered, true),
                Reliability.of(probabilities, true),
                Reliability.of(tempered, true),
            )
        )
    confusions, proper, proper_tempered, reliability, reliability_tempered = zip(*parts, strict=True)
    return Scores(
        temperature,
        np.concatenate(confusions),
        np.concatenate(proper),
        np.concatenate(proper_tempered),
        sum(reliability[1:], start=reliability[0]),
        sum(reliability_tempered[1:], start=reliability_tempered[0]),
    )


def confusions(predict: Predict, images: np.ndarray, labels: np.ndarray, *, num_classes: int, chunk: int) -> np.ndarray:
    """Per-image confusion alone, int64 ``(N, K, K)``; arguments and errors as for ``score``."""
    parts = [_confusions(p, true) for p, true in predicted(predict, images, labels, num_classes, chunk)]
    return np.concatenate(parts)


def calibrated_on(
    predict: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    chunk: int,
    num_pixels: int,
    seed: int,
) -> tuple[float, np.ndarray]:
    """The temperature that calibrates a student best on a validation set, and its confusions there.

    Args:
        num_pixels: about how many pixels to fit on; an equal share of every image, drawn by (seed, image).
        seed: of that draw. Others as for ``score``.

    Returns:
        The temperature, and int64 ``(N, K, K)`` as of ``confusions``.
    """
    pixels = int(np.prod(labels.shape[1:]))
    share = min(pixels, max(1, num_pixels // max(1, len(labels))))
    kept_p, kept_y, found, index = [], [], [], 0
    for probabilities, true in predicted(predict, images, labels, num_classes, chunk):
        found.append(_confusions(probabilities, true))
        for p_KHW, y_HW in zip(probabilities, true, strict=True):
            rng = numpy_rng(seed, "evaluate/temperature", 0, index)
            chosen = rng.choice(pixels, share, replace=False) if share < pixels else slice(None)
            kept_p.append(p_KHW.reshape(num_classes, -1).T[chosen])
            kept_y.append(y_HW.reshape(-1)[chosen])
            index += 1
    return fit_temperature(np.concatenate(kept_p), np.concatenate(kept_y)), np.concatenate(found)


def number(value: float) -> float | None:
    """For JSON: null where undefined."""
    return float(value) if math.isfinite(value) else None


def numbers(values: np.ndarray) -> list[float | None]:
    """``number`` of each."""
    return [number(value) for value in values.tolist()]


def _share(part: np.ndarray, whole: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=known)


def _confusions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    num_classes = probabilities.shape[1]
    likeliest = probabilities.argmax(axis=1)
    return np.stack([confusion_matrix(y, p, num_classes) for y, p in zip(labels, likeliest, strict=True)])


def predicted(
    predict: Predict, images: np.ndarray, labels: np.ndarray, num_classes: int, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels, ``chunk`` images at a time, checked; arguments and errors as for ``score``."""
    if not len(images) or len(images) != len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} label maps; expected as many, and at least one")
    for start in range(0, len(images), chunk):
        true = labels[start : start + chunk]
        probabilities = np.asarray(predict(images[start : start + chunk]))
        expected = (len(true), num_classes, *true.shape[1:])
        if probabilities.shape != expected or probabilities.dtype != np.float32:
            raise DataError(
                f"the model predicts {probabilities.dtype} {probabilities.shape} for these images; expected float32 "
                f"{expected}: was it trained on these classes?"
            )
        worst = float(np.abs(probabilities.sum(axis=1) - 1).max())
        if not worst <= 1e-3 or probabilities.min() < 0:  # written so that NaN fails too
            raise DataError(
                f"the model predicts no probabilities: sums off 1 by up to {worst:.3g}, minimum "
                f"{float(probabilities.min()):.3g}; expected softmax outputs"
            )
        yield probabilities, true
