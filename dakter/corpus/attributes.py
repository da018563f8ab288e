"""What the zarr group and its arrays say about themselves, so that a corpus explains itself to whoever opens it.

Names are those of the CF conventions and of ACDD (title, summary, source, references, license) where they have one.
``scale_factor`` and ``add_offset`` make xarray decode on opening: images come out in raw values, soft labels as
probabilities; ``mask_and_scale=False`` leaves the stored integers. ``units`` of the image are absent: the training
data state a range of raw values but no unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dakter
from dakter.corpus.content import Content
from dakter.corpus.wording import DIGITAL_SOURCE_TYPE, Wording, wording

NOT_STATED = "not stated"


def group_attributes(
    identity: Mapping[str, Any], identity_digest: str, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Attributes of the zarr group.

    Args:
        identity: as ``CorpusConfig.identity`` makes it.
        provenance: of the model's training data ``source``, ``licence``, ``citation``, ``tiles_digest``, and
            whatever else is known; what is absent is said to be not stated.
    """
    digest, words, software = model_digest(identity), wording(identity), f"dakter {dakter.__version__}"
    licence, citation, source = (provenance.get(key, NOT_STATED) for key in ("licence", "citation", "source"))
    return {
        "title": words.title,
        "summary": words.summary,
        **({"synthetic": True, "digital_source_type": DIGITAL_SOURCE_TYPE} if words.synthetic else {}),
        "source": words.source.format(software=software, model=digest, source=source),
        "license": f"{words.terms}: {licence}",
        "references": f"{words.terms}: {citation}",
        "comment": "A shard is whole if it has a record in ../commits; the others read as zeros. " + words.numbered,
        "generator": software,
        "identity_digest": identity_digest,
        "schema_version": identity["schema_version"],
        "seed": identity["seed"],
        "samples_per_shard": identity["samples_per_shard"],
        **identity["content"],
        "provenance": {**provenance, "model_digest": digest},
    }


def model_digest(identity: Mapping[str, Any]) -> str:
    """Digest of the model that a corpus is drawn from, or labelled by."""
    return str(identity["sampler"].get("model_digest", NOT_STATED))


def array_attributes(content: Content, words: Wording) -> dict[str, dict[str, Any]]:
    """Attributes of each array, by its name."""
    low, high = content.value_range
    return {
        "image": {
            "long_name": words.image,
            "bands": list(content.bands),
            "scale_factor": (high - low) / 255.0,
            "add_offset": low,
            "value_range": [low, high],
            "comment": "raw value = add_offset + scale_factor * stored value; value_range holds the raw values of "
            "stored 0 and 255",
        },
        "soft_label": {
            "long_name": "probability of each class",
            "units": "1",
            "class_names": list(content.class_table.names),
            "class_colours": list(content.class_table.colours),
            "scale_factor": 1.0 / 255.0,
            "add_offset": 0.0,
            "value_range": [0.0, 1.0],
            "comment": "probability = scale_factor * stored value; class_names and class_colours are in the order of "
            "the dimension class; the stored values of a pixel sum to 255, so its probabilities sum to 1; the largest "
            "of them is the class of the pixel",
        },
    }
