"""Where everything of a corpus stands, and how one is begun, continued and extended.

    identity.json                what the bytes depend on; put first, create-if-absent; never changed
    data.zarr/                   arrays image and soft_label, zarr v3, one object a shard and array
    commits/<shard:08d>.json     the shard is whole: written last, create-if-absent; readers go by these alone
    failed/<shard:08d>.json      given up after its attempts, with the traceback; a later start tries again
    manifest.json                at the end: ordered ranges, hashes of their decoded arrays, digest of the corpus
    croissant.json               after the manifest: the corpus described for others; nothing here reads it
    gallery.html                 on request: a page to look at
    working/, runs/, quote.json  for operators: what is in hand, what it cost, what was foretold (ledger.py, quote.py)

The number of samples is not part of the identity. A corpus is extended by asking for more: shards are always whole
(a number of samples is rounded up to whole shards), so what stands is never touched again; only the shape in the two
``zarr.json`` grows, and it never shrinks. A corpus that labels given images is as large as they are many: its identity
holds their number, and its last shard may be short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import zarr
from zarr.storage import MemoryStore

from dakter import storage
from dakter.config import Config, digest_json, setting
from dakter.corpus import codec
from dakter.corpus.attributes import array_attributes, group_attributes
from dakter.corpus.content import Content
from dakter.corpus.objects import Objects
from dakter.corpus.shard import PairSampler
from dakter.corpus.wording import wording
from dakter.errors import ConfigError, ConflictError, DataError, IntegrityError, StorageError, listing

SCHEMA_VERSION = 2  # 1 had a folder for each axis of a chunk: four to look into for each object
ARRAYS = ("image", "soft_label")
GROUP_KEY = "data.zarr/zarr.json"
_COMMITS, _FAILED = "commits", "failed"
_NUMBERED = re.compile(r"\d{8}\.json")


class CorpusConfig(Config):
    """Size and layout of the synthetic corpus."""

    num_samples: int = setting(1024, "pairs to generate, rounded up to whole shards; more later extends", ge=1)
    samples_per_shard: int | None = setting(
        None,
        "pairs of one shard, the unit of work, a multiple of sampler.micro_batch; null: min(1024, 2^24 / tile area)",
        ge=1,
    )
    seed: int = setting(0, "seed of the corpus: pair i is drawn from (seed, i)", ge=0)
    compression_level: int = setting(3, "zstd level", ge=1, le=19)
    max_attempts: int = setting(
        3, "how often a shard is begun within one run (errors, dead workers) before it is set aside in failed/", ge=1
    )
    patience_s: float = setting(
        300,
        "how long a worker waits out a store, disk or memory that fails before it gives its place up to another",
        unit="s",
        ge=0,
    )
    stall_s: int = setting(1800, "give up when no worker gives a sign of life for so long", unit="s", ge=5)

    def shard_size(self, content: Content, micro_batch: int) -> int:
        """Samples of one shard; raises ConfigError unless it holds whole micro-batches."""
        if self.samples_per_shard is None:
            wanted = min(1024, 2**24 // (content.height_px * content.width_px))
            return max(micro_batch, wanted // micro_batch * micro_batch)
        if self.samples_per_shard % micro_batch:
            near = max(1, round(self.samples_per_shard / micro_batch)) * micro_batch
            raise ConfigError(
                f"corpus.samples_per_shard is {self.samples_per_shard}; expected a multiple of sampler.micro_batch "
                f"({micro_batch}), e.g. {near}: a shard holds whole micro-batches"
            )
        return self.samples_per_shard

    def identity(self, sampler: PairSampler) -> dict[str, Any]:
        """Everything that the bytes of a corpus depend on, as it stands in ``identity.json``."""
        fixed = getattr(sampler, "num_samples", None)
        return {
            "schema_version": SCHEMA_VERSION,
            "content": sampler.content.to_json(),
            "seed": self.seed,
            "micro_batch": sampler.micro_batch,
            "samples_per_shard": self.shard_size(sampler.content, sampler.micro_batch),
            "compression_level": self.compression_level,
            "sampler": sampler.identity,
            **({} if fixed is None else {"num_samples": fixed}),
        }


@dataclass(frozen=True)
class Layout:
    """An existing corpus: its place, its identity, and where its parts stand."""

    url: str
    identity: dict[str, Any]
    objects: Objects = field(compare=False, repr=False)

    @classmethod
    def begin(cls, url: str, identity: Mapping[str, Any], *, provenance: Mapping[str, Any] | None = None) -> Layout:
        """The corpus at ``url``, begun if nothing stands there.

        Args:
            identity: as ``CorpusConfig.identity`` makes it.
            provenance: where the model and its training data come from, for the attributes; not part of the identity.

        Raises:
            ConflictError: a corpus with another identity stands there; names each difference.
        """
        wanted = json.loads(json.dumps(identity, allow_nan=False))
        try:
            storage.put_json_new(storage.join(url, "identity.json"), wanted)
        except FileExistsError:
            stands = storage.read_json(storage.join(url, "identity.json"))
            if stands != wanted:
                raise ConflictError(
                    f"{url}: a corpus made with other settings stands here:\n"
                    + listing(differences(stands, wanted))
                    + "\nGo back to those settings, or choose another folder (paths.corpus; paths.labelled for "
                    "jobs/label.py)"
                ) from None
        layout = cls(url, wanted, Objects(url))
        layout._put_documents(provenance or {})
        return layout

    @classmethod
    def open(cls, url: str) -> Layout:
        """The corpus at ``url``; raises DataError if none stands there, IntegrityError for an unknown version."""
        try:
            identity = storage.read_json(storage.join(url, "identity.json"))
        except FileNotFoundError:
            raise DataError(
                f"{url}: no corpus stands here (no identity.json); make one with jobs/generate.py or jobs/label.py"
            ) from None
        if not isinstance(identity, dict) or identity.get("schema_version") != SCHEMA_VERSION:
            raise IntegrityError(
                f"{url}/identity.json: schema_version is {dict(identity).get('schema_version')!r}; "
                f"expected {SCHEMA_VERSION}: read it with the version of dakter that wrote it"
            )
        return cls(url, identity, Objects(url))

    @cached_property
    def digest(self) -> str:
        """sha256 of the identity: every commit record carries it."""
        return digest_json(self.identity)

    @property
    def content(self) -> Content:
        return Content.from_json(self.identity["content"])

    @property
    def samples_per_shard(self) -> int:
        return int(self.identity["samples_per_shard"])

    @property
    def micro_batch(self) -> int:
        return int(self.identity["micro_batch"])

    @property
    def fixed_samples(self) -> int | None:
        """Samples of a corpus of given images; None for one that may be extended."""
        found = self.identity.get("num_samples")
        return None if found is None else int(found)

    def num_shards(self, num_samples: int) -> int:
        """Shards that hold at least ``num_samples``; of a corpus of given images those of all of them."""
        return -(-(self.fixed_samples or num_samples) // self.samples_per_shard)

    def samples_before(self, shard: int) -> int:
        """Samples of the shards ``0 .. shard - 1``."""
        most = shard * self.samples_per_shard
        return most if self.fixed_samples is None else min(most, self.fixed_samples)

    def size(self, shard: int) -> int:
        """Samples of one shard: ``samples_per_shard``, but for the last of a corpus of given images."""
        return self.samples_before(shard + 1) - self.samples_before(shard)

    def key(self, array: str, shard: int) -> str:
        """Key of a shard object, relative to the corpus."""
        return f"data.zarr/{array}/c.{shard}.0.0.0"

    def commit_key(self, shard: int) -> str:
        return f"{_COMMITS}/{shard:08d}.json"

    def failed_key(self, shard: int) -> str:
        return f"{_FAILED}/{shard:08d}.json"

    def place(self, key: str) -> str:
        return storage.join(self.url, key)

    def read_json(self, key: str) -> Any:
        """A JSON document of the corpus, in one request; raises FileNotFoundError or IntegrityError."""
        data = self.objects.view(key)
        try:
            return json.loads(bytes(data))
        except ValueError as error:
            raise IntegrityError(
                f"{self.place(key)}: not readable as JSON ({error}); it was altered or cut short"
            ) from error

    def committed(self) -> list[int]:
        """Shards that are whole, ascending: one listing."""
        return self._numbered(_COMMITS)

    def committed_at(self) -> dict[int, float]:
        """When each whole shard was committed, by the store's clock (Unix seconds): one listing."""
        return {_number(name): at for name, at in self.objects.modified(_COMMITS).items() if _NUMBERED.fullmatch(name)}

    def failed(self) -> list[int]:
        """Shards that were given up, ascending: one listing. One that was committed later may still be among them."""
        return self._numbered(_FAILED)

    def _numbered(self, folder: str) -> list[int]:
        return sorted(_number(name) for name in self.objects.modified(folder) if _NUMBERED.fullmatch(name))

    def document(self, array: str) -> dict[str, Any]:
        """The ``zarr.json`` of an array."""
        return dict(self.read_json(f"data.zarr/{array}/zarr.json"))

    def attributes(self) -> dict[str, Any]:
        """The attributes of the zarr group: see ``attributes.group_attributes``."""
        return dict(self.read_json(GROUP_KEY)["attributes"])

    def check_documents(self) -> None:
        """Raise IntegrityError unless both arrays are laid out as ``codec.decode`` reads them."""
        for name, shape in self.content.shapes(1).items():
            codec.check_document(self.document(name), name, shape[1:], self.samples_per_shard)

    def planned_shards(self) -> int:
        """Shards that the arrays are preallocated for."""
        return -(-int(self.document(ARRAYS[0])["shape"][0]) // self.samples_per_shard)

    def grow(self, num_shards: int) -> None:
        """Let both arrays hold at least ``num_shards``. Safe to call again, and by several writers at a time.

        Raises:
            StorageError: others kept changing the document.
        """
        wanted = self.samples_before(num_shards)
        for name in ARRAYS:
            key = f"data.zarr/{name}/zarr.json"
            for _ in range(20):
                data, tag = self.objects.get(key)
                document = json.loads(data)
                if document["shape"][0] >= wanted:
                    break
                document["shape"][0] = wanted
                self.objects.replace(key, storage.to_json_bytes(document), tag)  # and look again
            else:
                raise StorageError(f"{self.place(key)}: changed by others again and again; run the same command again")

    def _put_documents(self, provenance: Mapping[str, Any]) -> None:
        """The zarr metadata of empty arrays, each put only if absent."""
        content, store = self.content, MemoryStore()
        zarr.create_group(store, attributes=group_attributes(self.identity, self.digest, provenance))
        described = array_attributes(content, wording(self.identity))
        documents = {GROUP_KEY: bytes(store._store_dict["zarr.json"].to_bytes())}
        for name, shape in content.shapes(0).items():
            documents[f"data.zarr/{name}/zarr.json"] = codec.array_document(
                name, shape, self.samples_per_shard, self.identity["compression_level"], described[name]
            )
        for key, data in documents.items():
            try:
                storage.put_new(self.place(key), data)
            except FileExistsError:
                continue  # an earlier start or another writer put the same


def _number(name: str) -> int:
    return int(name[:8])


def differences(stands: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Each entry in which two JSON documents differ, as text."""
    if isinstance(stands, dict) and isinstance(wanted, dict):
        keys = sorted(set(stands) | set(wanted))
        absent = "(absent)"
        return [
            line
            for key in keys
            for line in differences(
                stands.get(key, absent), wanted.get(key, absent), f"{prefix}.{key}" if prefix else key
            )
        ]
    return [] if stands == wanted else [f"{prefix}: stands {stands!r}, asked for {wanted!r}"]
