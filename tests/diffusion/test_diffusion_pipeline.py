from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils import logging as diffusers_logging
from diffusion_toys import random_pipeline

from dakter import storage
from dakter.diffusion.pipeline import JointDiffusionPipeline, open_model, save_model
from dakter.errors import ConflictError, IntegrityError
from dakter.schema import SOS


def test_three_lines_in_a_fresh_process_give_the_same_samples(tmp_path: Path) -> None:
    pipe = random_pipeline()
    pipe.save_pretrained(tmp_path / "m")
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from dakter.diffusion.pipeline import JointDiffusionPipeline\n"
        f"pipe = JointDiffusionPipeline.from_pretrained({str(tmp_path / 'm')!r})\n"
        "out = pipe(batch_size=2, num_inference_steps=3, seed=4)\n"
        "print(repr(float(out.images.double().sum())), repr(float(out.soft_labels.double().square().sum())))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    out = pipe(batch_size=2, num_inference_steps=3, seed=4)
    expected = [float(out.images.double().sum()), float(out.soft_labels.double().square().sum())]
    assert [float(number) for number in done.stdout.split()[-2:]] == expected
    suffixes = {path.suffix for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_everything_about_the_model_travels_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = random_pipeline()
    digest = save_model(pipe, str(tmp_path / "m"), {"steps": 3})
    model = open_model(str(tmp_path / "m"))
    assert capsys.readouterr().err == "", "no bar of components in the log of a job"
    assert diffusers_logging.is_progress_bar_enabled(), "and elsewhere as the user has it"
    assert (model.digest, model.record) == (digest, {"steps": 3})
    config = model.pipeline.config
    assert (config.b, config.size_px, config.mode, config.objective) == (0.4, 16, "independent", "v")
    assert (list(config.bands), list(config.value_range)) == (["vv"], [0.0, 255.0])
    assert model.pipeline.class_table == SOS
    for a, b in zip(pipe.unet.parameters(), model.pipeline.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_schedulers_can_be_put_in() -> None:
    pipe = random_pipeline()
    before = pipe(batch_size=1, num_inference_steps=5).images
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert float(pipe.scheduler.alphas_cumprod[-1]) == 0.0
    assert pipe.scheduler.config.clip_sample is False
    after = pipe(batch_size=1, num_inference_steps=5).images
    assert bool(torch.isfinite(after).all())
    assert not torch.equal(before, after)


def test_changed_weights_are_seen_by_the_next_call() -> None:
    pipe = random_pipeline()
    before = pipe(batch_size=1, num_inference_steps=2, precision="bf16").images
    with torch.no_grad():
        pipe.unet.out.weight.mul_(0.5)
    assert not torch.equal(before, pipe(batch_size=1, num_inference_steps=2, precision="bf16").images)


def test_saving_again_is_silent_and_over_another_model_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "m")
    digest = save_model(random_pipeline(), url, {})
    (tmp_path / "m" / "model.json").rename(tmp_path / "kept.json")  # as if killed before the last write
    with pytest.raises(IntegrityError, match=r"no model\.json"):
        open_model(url)
    assert save_model(random_pipeline(), url, {}) == digest
    assert save_model(random_pipeline(), url, {"told": "later"}) == digest
    assert open_model(url).record == {}
    with pytest.raises(ConflictError, match="another model stands there"):
        save_model(random_pipeline("joint"), url, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"thesis\.txt"):
        save_model(random_pipeline(), str(tmp_path / "other"), {})


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    save_model(random_pipeline(), str(tmp_path / "m"), {})
    path = tmp_path / "m" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=name):
        open_model(str(tmp_path / "m"))
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_model(str(tmp_path / "m"))


def test_foreign_records_are_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "m")
    save_model(random_pipeline(), url, {})
    record = storage.read_json(f"{url}/model.json")
    storage.put_json(f"{url}/model.json", {**record, "format": "another"})
    with pytest.raises(IntegrityError, match="format"):
        open_model(url)
    storage.put_json(f"{url}/model.json", {**record, "files": {}})
    with pytest.raises(IntegrityError, match="digest"):
        open_model(url)


def test_a_model_lives_in_a_bucket_as_well(s3_bucket: str) -> None:
    pipe, url = random_pipeline(), f"{s3_bucket}/runs/model"
    digest = save_model(pipe, url, {"where": "bucket"})
    model = open_model(url)
    assert (model.digest, model.record) == (digest, {"where": "bucket"})
    assert isinstance(model.pipeline, JointDiffusionPipeline)
    with pytest.raises(ConflictError, match="another model"):
        save_model(random_pipeline("joint"), url, {})
    storage.put(f"{url}/unet/config.json", b"{}")
    with pytest.raises(IntegrityError, match=r"unet/config\.json"):
        open_model(url)
