"""What a corpus says about itself: one whose images were generated, and one of given images that a model labelled.

A corpus of given images says so in its identity (``content`` of its sampler). Its images are whatever their source is,
observations or simulated scenes, so nothing is claimed about that; they are not called synthetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# ``content`` of a sampler that labels given images.
UNLABELLED = "unlabelled"
# IPTC's code for media made by a model that learned from samples, and schema.org's name for the same code.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@dataclass(frozen=True)
class Wording:
    """Sentences and halves of sentences. In braces: ``software``, ``model`` (digest), ``source``, ``licence``,
    ``citation``.

    Attributes:
        synthetic: the images were generated.
        title: of the zarr group and of the description.
        pairs: what the samples are.
        origin: how image and label came about, after the list of classes; ends in a full stop.
        summary: of the zarr group. source: where the samples come from.
        terms: whose licence and citation are told.
        numbered: what sample i is.
        image: long name of the array. lead: below the headline of the gallery.
        access: conditions. keyword: what kind of data. made: past participle. activity: its noun.
        collection, collection_types, raw_data, annotation, bias, limitations: of the RAI vocabulary.
    """

    synthetic: bool
    title: str
    pairs: str
    origin: str
    summary: str
    source: str
    terms: str
    numbered: str
    image: str
    lead: str
    access: str
    keyword: str
    made: str
    activity: str
    collection: str
    collection_types: tuple[str, ...]
    raw_data: str
    annotation: str
    bias: str
    limitations: tuple[str, ...]


_ROUNDED = "Soft labels are rounded to 1/255;"
_GENERATED = Wording(
    synthetic=True,
    title="Synthetic SAR images with soft labels",
    pairs="synthetic pairs",
    origin="drawn together from one diffusion model. No observations: nothing shown was ever measured.",
    summary="Pairs of a SAR image and a soft label (the probability of each class in every pixel), drawn together from "
    "one diffusion model. They are no observations: nothing shown here was ever measured.",
    source="sampled by {software} from a joint diffusion model of image and label (digest {model}) that was trained "
    "on: {source}",
    terms="of the training data",
    numbered="Pair i was drawn from (seed, i).",
    image="synthetic SAR image, raw values as in the training data",
    lead="Drawn from a diffusion model that has learned from labelled SAR images. No observation is among them: "
    "nothing shown here was ever measured, and nothing may be proven or scored with it.",
    access="The corpus derives from its training data; their licence, as stated: {licence}",
    keyword="synthetic data",
    made="drawn",
    activity="sampling",
    collection="Synthetic: image and label are sampled together by {software} from a diffusion model (digest {model}) "
    "that was trained on labelled SAR images. Pair i depends on (seed, i) alone.",
    collection_types=("Software Collection", "Others: synthetic data, sampled from a generative model"),
    raw_data="Training data of the model: {source}. Licence: {licence}. Described in: {citation}.",
    annotation="No person labelled these images: the soft label is the model's own, drawn jointly with the image.",
    bias="The model repeats, and may strengthen, whatever is uneven in its training data.",
    limitations=(
        "Not for evaluation, and not as evidence of any event: the scenes never were.",
        f"{_ROUNDED} speckle and textures are as good as the model.",
    ),
)
# With images that were drawn for chosen label maps among them.
_RENDERED = replace(
    _GENERATED,
    origin="drawn from one diffusion model: image and label together, or the image for a label map that was chosen. No "
    "observations: nothing shown was ever measured.",
    summary="Pairs of a SAR image and a soft label (the probability of each class in every pixel), drawn from one "
    "diffusion model: both together, or, in chosen shares of the pairs, the image for a label map that was chosen. "
    "They are no observations: nothing shown here was ever measured.",
    numbered="Pair i was drawn from (seed, i), and where it has one from the label map that these choose.",
    collection="Synthetic: image and label are sampled together by {software} from a diffusion model (digest {model}) "
    "that was trained on labelled SAR images, or, in chosen shares of the pairs, the image is sampled for a label map: "
    "a mask of a labelled image, or what a model made of an unlabelled one. Pair i depends on (seed, i) and these maps "
    "alone.",
    annotation="No person labelled these images: the soft label is what the model makes of the image, or the label map "
    "that it was drawn for.",
    bias="The model repeats, and may strengthen, whatever is uneven in its training data. Classes are as frequent as "
    "the chosen label maps have them, not as at sea.",
)
# Stored pixels of 16 bits, of a source with a range of values of its own, become 8 of the same range.
_IN_8_BITS = "but for rounding to 8 bits"
_LABELLED = Wording(
    synthetic=False,
    title="SAR images with soft labels of a model",
    pairs="machine-labelled pairs",
    origin="the label p(class given image) of a diffusion model. The images are unlabelled tiles of their source, "
    f"pixels unchanged {_IN_8_BITS}; no person labelled them.",
    summary="Pairs of a SAR image, an unlabelled tile of its source, and a soft label (the probability of each "
    "class in every pixel) that a diffusion model gives it. No person labelled them.",
    source="unlabelled tiles of: {source}; labelled by {software} with p(label given image) of a joint diffusion model "
    "(digest {model})",
    terms="of the images",
    numbered="Image i is unlabelled tile i; the noise of its label was drawn from (seed, i).",
    image=f"SAR image, raw values as in its source {_IN_8_BITS}",
    lead=f"Unlabelled tiles of their source, pixels unchanged {_IN_8_BITS}, with the labels that a diffusion model "
    "gives them. No person labelled them, so nothing may be proven or scored with these labels.",
    access="The images are those of their source; its licence, as stated: {licence}",
    keyword="machine-labelled data",
    made="labelled",
    activity="labelling",
    collection=f"Images: the unlabelled tiles of their source, pixels unchanged {_IN_8_BITS}. Labels: p(label given "
    "image), by {software} from a diffusion model (digest {model}). Label i depends on (image i, seed, i) alone.",
    collection_types=("Secondary Data Analysis", "Software Collection"),
    raw_data="Source of the images: {source}. Licence: {licence}. Described in: {citation}.",
    annotation="No person labelled these images: the soft label is what the model makes of the image.",
    bias="The labels repeat, and may strengthen, whatever is uneven in what the model learned from.",
    limitations=(
        "Not for evaluation: the labels are a model's, not the truth.",
        f"{_ROUNDED} they are as good as the model.",
    ),
)


def is_labelled(identity: Mapping[str, Any]) -> bool:
    """Whether a corpus is one of given images that a model labelled, by its identity."""
    return bool(identity["sampler"].get("content") == UNLABELLED)


def wording(identity: Mapping[str, Any]) -> Wording:
    """What a corpus of this identity says."""
    if is_labelled(identity):
        return _LABELLED
    return _RENDERED if "render" in identity["sampler"] else _GENERATED
