"""A Croissant description of a corpus: ``croissant.json``, JSON-LD after version 1.1 of the MLCommons format.

It stands beside the zarr group, is written after the manifest, and names everything by relative paths, so that a
copied or moved corpus takes a true description along. Croissant cannot say how samples lie in a zarr shard: its record
set ``samples`` tells types, shapes and meaning and points at the shard objects, while any reader of the format can read
the records of ``shards`` and ``classes``. The few documents are described one by one, with their hashes; the hashes of
shard objects stand in the commit records, those of the decoded arrays in the manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import dakter
from dakter import storage
from dakter.corpus.attributes import NOT_STATED, model_digest
from dakter.corpus.content import Content
from dakter.corpus.layout import ARRAYS, GROUP_KEY, Layout
from dakter.corpus.manifest import records
from dakter.corpus.shard import sha256
from dakter.corpus.wording import DIGITAL_SOURCE_TYPE, Wording, wording
from dakter.errors import DataError, IntegrityError

KEY = "croissant.json"
# Documents of a finalised corpus that are described one by one, with their hashes: those that stay as they are until
# it is finalised again. The documents of the arrays do not: their shape grows as soon as an extension begins.
_DOCUMENTS = {
    "manifest.json": "The committed shards in order, the hashes of their decoded arrays, the digest of the corpus.",
    "identity.json": "Everything that the bytes of the corpus depend on.",
    GROUP_KEY: "Attributes of the zarr group: what it is, classes, value range, provenance.",
}
_JSON = "application/json"
# Zarr has no media type of its own; Croissant then asks for the address of a description.
_ZARR = "https://zarr-specs.readthedocs.io/en/latest/v3/core/"
_TRAINED = {"@id": "sc:TrainedAlgorithmicMediaDigitalSource", "sameAs": DIGITAL_SOURCE_TYPE}
CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
# Licences that are named by their SPDX identifier; anything else is carried along as the words it was given in.
_SPDX = re.compile(
    r"Apache-2\.0|MIT|BSD-[23]-Clause|CC0-1\.0|CC-BY(-NC)?(-SA|-ND)?-\d\.\d|ODbL-1\.0|ODC-By-1\.0|PDDL-1\.0"
)
# The context of the specification's appendix, in the form in which mlcroissant compares it, and two vocabularies more.
_TERMS = """
    annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field fileObject fileProperty
    fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path readLines recordSet references regex
    repeated replace samplingRate sdVersion separator source subField transform unArchive
"""
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS.split()},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}


def write(layout: Layout, *, url: str = "./", creator: str = "dakter") -> bool:
    """Put ``croissant.json`` of a finalised corpus, whole; False if the one that stands says the same already.

    Call it after ``manifest.finalise``: the description vouches for the manifest by its hash.

    Args:
        url, creator: see ``describe``.

    Raises:
        DataError: the corpus is not finalised, or empty.
    """
    try:
        small = {key: layout.objects.get(key)[0] for key in _DOCUMENTS}
    except FileNotFoundError as error:
        raise DataError(f"{layout.url}: not finalised ({error}); run jobs/generate.py to its end first") from error
    found = json.loads(small["manifest.json"])
    if not found["ranges"]:
        raise DataError(f"{layout.url}: no shard is committed, so there is nothing to describe; generate some samples")
    description = describe(
        layout.identity,
        found,
        json.loads(small[GROUP_KEY])["attributes"]["provenance"],
        {key: (sha256(data), len(data)) for key, data in small.items()},
        url=url,
        creator=creator,
    )
    # All but the date follows from these few documents: look at the records of all shards only if something changed.
    if _standing(layout).items() >= description.items():
        return False
    published = newest(records(layout, [row["shard"] for row in found["ranges"]]))
    if published is not None:
        description["datePublished"] = published.isoformat(timespec="seconds")
    storage.put_json(layout.place(KEY), description)
    return True


def _standing(layout: Layout) -> dict[str, Any]:
    try:
        standing = layout.read_json(KEY)
    except (FileNotFoundError, IntegrityError):
        return {}
    return standing if isinstance(standing, dict) else {}


def newest(commit_records: Iterable[Mapping[str, Any]]) -> datetime | None:
    """When the last of these shards was committed, by its record; None if no record tells."""
    times = [float(time) for record in commit_records if (time := record["facts"].get("committed_at"))]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def describe(
    identity: Mapping[str, Any],
    manifest: Mapping[str, Any],
    provenance: Mapping[str, Any],
    objects: Mapping[str, tuple[str, int]],
    *,
    url: str = "./",
    creator: str = "dakter",
) -> dict[str, Any]:
    """The description as JSON-LD, without its date; equal arguments give equal documents.

    Args:
        identity, manifest: ``identity.json`` and ``manifest.json``.
        provenance: of the group's attributes.
        objects: sha256 and size in bytes of each of the corpus' few documents, by key.
        url: where the corpus is published; relative to the description unless something better is known.
        creator: the organisation that answers for the corpus; the software's name if none is given.
    """
    content, digest = Content.from_json(identity["content"]), str(manifest["digest"])
    told = {key: str(provenance.get(key, NOT_STATED)) for key in ("source", "licence", "citation", "tiles_digest")}
    model, table, words = model_digest(identity), content.class_table, wording(identity)
    software = f"dakter {dakter.__version__}"
    return {
        "@context": dict(_CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": f"{words.title} ({table.name}, {digest[:12]})",
        "description": f"{manifest['num_samples']} {words.pairs} of a SAR image ({', '.join(content.bands)}; "
        f"{content.height_px} x {content.width_px} pixels) and a soft label over {len(table)} classes "
        f"({', '.join(table.names)}), {words.origin} Mean entropy of the labels: {manifest['entropy_nats']:.4g} nats "
        "a pixel.",
        "url": url,
        "creator": {"@type": "sc:Organization", "name": creator},
        # A corpus only grows, and what stands is never touched: more shards, a higher minor version.
        "version": f"{identity['schema_version']}.{manifest['num_shards']}.0+{digest[:12]}",
        "sdVersion": f"1.0.0+{software.replace(' ', '-').replace('.', '-')}",
        "license": _licence(told["licence"], words.terms),
        "conditionsOfAccess": words.access.format(**told),
        "keywords": [words.keyword, "synthetic aperture radar", "SAR", "oil spill", "semantic segmentation"],
        "citeAs": f"@misc{{dakter-{digest[:12]}, title = {{{words.title}}}, "
        f"note = {{{words.made} by {software}; corpus digest {digest}; model digest {model}}}}}",
        "citation": told["citation"],
        **({"digitalSourceType": _TRAINED} if words.synthetic else {}),
        "identifier": f"sha256:{digest}",
        "prov:wasDerivedFrom": {
            **_urn("tiles", told["tiles_digest"]),
            "@type": "prov:Entity",
            "prov:label": told["source"],
        },
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": f"{words.activity} by {software}",
            "prov:used": {
                **_urn("model", model),
                "@type": "prov:Entity",
                "prov:label": "joint diffusion model of image and label",
            },
        },
        **_responsible_ai(words, manifest, {**told, "software": software, "model": model}, table.names),
        "distribution": _distribution(objects),
        "recordSet": [_samples(content), _classes(content, manifest["class_shares"]), _shards()],
    }


def _responsible_ai(
    words: Wording, manifest: Mapping[str, Any], told: Mapping[str, str], names: Iterable[str]
) -> dict[str, Any]:
    shares = ", ".join(
        f"{name} {100 * share:.3g} %" for name, share in zip(names, manifest["class_shares"], strict=True)
    )
    return {
        "rai:dataCollection": words.collection.format(**told),
        "rai:dataCollectionType": list(words.collection_types),
        "rai:dataCollectionRawData": words.raw_data.format(**told),
        "rai:dataAnnotationProtocol": words.annotation,
        "rai:annotationsPerItem": "0 by people, 1 by the model",
        "rai:machineAnnotationTools": ["{software}, model digest {model}".format(**told)],
        "rai:dataBiases": [f"Mean probabilities of the classes: {shares}.", words.bias],
        "rai:dataLimitations": list(words.limitations),
        "rai:dataUseCases": ["Training of segmentation models beside real labels (distillation)."],
    }


def _licence(text: str, terms: str) -> str | dict[str, str]:
    if text.startswith(("https://", "http://")):
        return text
    if _SPDX.fullmatch(text):
        return f"https://spdx.org/licenses/{text}"
    return {"@type": "sc:CreativeWork", "name": f"As {terms}: {text}"}


def _urn(kind: str, digest: str) -> dict[str, str]:
    """The JSON-LD id of what has this digest; none for what has no known one."""
    return {} if digest == NOT_STATED else {"@id": f"urn:dakter:{kind}:{digest}"}


def _distribution(objects: Mapping[str, tuple[str, int]]) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": key,
            "name": key,
            "description": what,
            "contentUrl": key,
            "contentSize": f"{objects[key][1]} B",
            "encodingFormat": _JSON,
            "sha256": objects[key][0],
        }
        for key, what in _DOCUMENTS.items()
    ]
    shards = [f"data.zarr/{name}/c.*.0.0.0" for name in ARRAYS]
    arrays = [f"data.zarr/{name}/zarr.json" for name in ARRAYS]
    sets = (
        ("array-documents", arrays, _JSON, "Shape, codecs, class names and scale of each array."),
        ("shard-objects", shards, _ZARR, "One zarr shard an object: sharding_indexed, a zstd chunk for each sample."),
        ("commits", ["commits/*.json"], _JSON, "A record a shard, with the sha256 of its objects."),
    )
    files += [
        {"@type": "cr:FileSet", "@id": key, "name": key, "description": what, "encodingFormat": kind, "includes": which}
        for key, which, kind, what in sets
    ]
    return files


def _record_set(key: str, what: str, by: str, fields: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": key,
        "name": key,
        "description": what,
        "key": {"@id": f"{key}/{by}"},
        "field": [{**field, "@id": f"{key}/{field['name']}"} for field in fields],
        **more,
    }


def _field(name: str, kind: str | list[str], what: str, **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "name": name, "dataType": kind, "description": what, **more}


def _samples(content: Content) -> dict[str, Any]:
    low, high = content.value_range
    shapes = {name: ",".join(map(str, shape[1:])) for name, shape in content.shapes(1).items()}
    image = f"Stored image (band, y, x): raw value = {low:g} + {(high - low) / 255:.10g} * stored."
    soft = (
        "Stored soft label (class, y, x), classes in the order of the record set classes: probability = stored / 255; "
        "a pixel sums to 255."
    )
    return _record_set(
        "samples",
        "One record a pair: row i of the arrays of data.zarr, in committed shards. Open it with zarr or xarray.",
        "index",
        [
            _field("index", "cr:Int64", "Index i of the pair, from 0."),
            *(
                _field(
                    name,
                    ["cr:UInt8", *kinds],
                    what,
                    isArray=True,
                    arrayShape=shapes[name],
                    source={"fileSet": {"@id": "shard-objects"}},
                )
                for name, kinds, what in (("image", [], image), ("soft_label", ["cr:Label"], soft))
            ),
        ],
    )


def _classes(content: Content, shares: Iterable[float]) -> dict[str, Any]:
    table = content.class_table
    rows = zip(table.names, table.colours, shares, strict=True)
    return _record_set(
        "classes",
        "The classes, in the order of the soft label's class axis.",
        "index",
        [
            _field("index", "sc:Integer", "Place on the class axis, and value in a class map."),
            _field("name", "sc:Text", "Name."),
            _field("colour", "sc:Text", "Colour to draw it in, sRGB."),
            _field("share", "sc:Float", "Mean probability over all pixels of the corpus."),
        ],
        dataType="sc:Enumeration",
        data=[
            {"classes/index": k, "classes/name": name, "classes/colour": colour, "classes/share": share}
            for k, (name, colour, share) in enumerate(rows)
        ],
    )


def _shards() -> dict[str, Any]:
    columns = (
        ("shard", "sc:Integer", "shard", "Number of the shard."),
        ("first", "sc:Integer", "first", "Index of its first sample."),
        ("count", "sc:Integer", "count", "Its number of samples."),
        ("image_sha256", "sc:Text", "decoded_sha256.image", "Hash of its images, decoded, in C order."),
        ("soft_label_sha256", "sc:Text", "decoded_sha256.soft_label", "Hash of its soft labels likewise."),
    )
    manifest = {"fileObject": {"@id": "manifest.json"}}
    return _record_set(
        "shards",
        "The committed shards, as the manifest lists them; the corpus digest is over exactly these.",
        "shard",
        [
            _field(name, kind, what, source={**manifest, "extract": {"jsonPath": f"$.ranges[*].{path}"}})
            for name, kind, path, what in columns
        ],
    )
