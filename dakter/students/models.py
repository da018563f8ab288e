"""The students: architectures of segmentation-models-pytorch on its own and timm's encoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import model_validator
from torch import nn

from dakter.config import Config, setting
from dakter.errors import ConfigError, listing
from dakter.schema import to_model

Architecture = Literal["Unet", "UnetPlusPlus", "DeepLabV3Plus", "FPN", "Segformer", "PSPNet", "Linknet"]


class StudentConfig(Config):
    """One student: its network and how it learns. The sweep chooses these; everything else is common to all."""

    # Only suite science sets these so far: the sweep is to search them once measurement favours them there.
    later: ClassVar[tuple[str, ...]] = ("final_share", "confidence_gamma", "consistency_weight")

    architecture: Architecture = setting("Unet", "decoder of segmentation-models-pytorch")
    encoder: str = setting("resnet18", "encoder of segmentation-models-pytorch, or tu-NAME for timm's NAME")
    encoder_weights: str | None = setting(None, "pretrained encoder weights, e.g. imagenet (downloaded); null: none")
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", gt=0)
    weight_decay: float = setting(1e-4, "decoupled weight decay", ge=0)
    ce_weight: float = setting(1.0, "weight of the cross-entropy on real labels", ge=0)
    dice_weight: float = setting(0.5, "weight of the soft Dice loss on all labels", ge=0)
    kd_weight: float = setting(1.0, "weight of the cross-entropy on generated soft labels", ge=0)
    temperature: float = setting(1.0, "T in q^(1/T), renormalised, of generated soft labels", gt=0)
    synthetic_share: float = setting(0.0, "share of generated samples in a batch", ge=0, lt=1)
    final_share: float | None = setting(
        None, "that share at the last step, to which it falls in a straight line; null: it stays", ge=0, lt=1
    )
    confidence_gamma: float = setting(
        0.0, "exponent of the certainty by which pixels of generated soft labels are weighed; 0: all alike", ge=0
    )
    consistency_weight: float = setting(
        0.0, "weight of the distance of the predictions for two views of a generated sample; 0: one view", ge=0
    )

    @model_validator(mode="after")
    def _falls(self) -> StudentConfig:
        if self.final_share is not None and self.final_share > self.synthetic_share:
            raise ValueError(f"final_share {self.final_share} to be at most synthetic_share {self.synthetic_share}")
        return self


def build(student: StudentConfig, bands: int, num_classes: int) -> nn.Module:
    """The network: model scale float32 (B, C, H, W) to logits (B, K, H, W).

    Weights come from torch's global generator: seed it (``fit`` does).

    Raises:
        ConfigError: unknown encoder, or one that the architecture does not take.
    """
    import segmentation_models_pytorch as smp

    try:
        return smp.create_model(
            student.architecture,
            encoder_name=student.encoder,
            encoder_weights=student.encoder_weights,
            in_channels=bands,
            classes=num_classes,
        )
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        text = str(error).strip("'\"").splitlines()[0][:160]
        raise ConfigError(
            f"student {student.architecture} on encoder {student.encoder!r} with weights {student.encoder_weights!r} "
            f"cannot be built: {text}; choose another encoder (Unet and FPN take them all), or leave the pair out"
        ) from error


@cache
def _unfit(architecture: Architecture, encoder: str, weights: str | None, bands: int, size_px: int) -> str | None:
    # On torch's meta device nothing is computed; Mix Transformers read a scalar while they are built and cannot.
    where = "cpu" if weights or encoder.startswith("mit_") else "meta"
    try:
        with torch.device(where), torch.no_grad(), torch.random.fork_rng():
            model = build(
                StudentConfig(architecture=architecture, encoder=encoder, encoder_weights=weights), bands, 2
            ).train()
            shape = tuple(model(torch.zeros(2, bands, size_px, size_px)).shape)
    except ConfigError as error:
        return str(error)
    except Exception as error:  # whatever a network says of a size that it cannot take
        return f"student {architecture} on encoder {encoder!r}: {size_px} px: {str(error)[:160]}"
    expected = (2, 2, size_px, size_px)
    return None if shape == expected else f"student {architecture} on {encoder!r}: output {shape}, expected {expected}"


def check_pairs(pairs: list[tuple[Architecture, str]], *, weights: str | None, bands: int, size_px: int) -> None:
    """Refuse, before any work, networks that cannot be built or cannot take tiles of this size.

    Raises:
        ConfigError: names every offending pair of architecture and encoder.
    """
    bad = [text for pair in pairs if (text := _unfit(*pair, weights, bands, size_px)) is not None]
    if bad:
        raise ConfigError(
            f"{len(bad)} of {len(pairs)} pairs of architecture and encoder do not work:\n{listing(bad)}\n"
            'take them out of sweep.architectures or sweep.encoders, or add "Architecture/encoder" to sweep.skip_pairs'
        )


def num_parameters(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.inference_mode()
def encode(model: nn.Module, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Mean over places of the encoder's deepest feature map, float32 (N, F), of stored images (N, C, H, W).

    The model, one of ``build``, is put in eval mode.
    """
    encoder = cast(nn.Module, model.eval().encoder)
    return _in_batches(model, images, batch, lambda x: encoder(x)[-1].float().mean((2, 3)))


@torch.inference_mode()
def predict(model: nn.Module, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Class probabilities, float32 (N, K, H, W), of stored images (N, C, H, W); the model is put in eval mode."""
    return _in_batches(model.eval(), images, batch, lambda x: model(x).float().softmax(1))


def _in_batches(
    model: nn.Module, images: np.ndarray, batch: int, function: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """``function`` of stored images at model scale, where the model is."""
    device = next(model.parameters()).device
    parts = [
        function(to_model(images[start : start + batch]).to(device)).cpu().numpy()
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)
