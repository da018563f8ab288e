"""The report as a whole: what it says, what it needs, and that it is the same every time."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from html_page import check_readable, check_stands_alone, words
from report_fixture import bare_inputs, full_inputs, not_shown_inputs, with_joint_model

from dakter.errors import DataError
from dakter.report.build import build
from dakter.report.inputs import ReportInputs


@pytest.fixture(scope="module")
def full() -> tuple[str, dict[str, Any]]:
    return build(full_inputs())


def test_equal_inputs_give_equal_bytes(full: tuple[str, dict[str, Any]]) -> None:
    assert build(full_inputs()) == full


@pytest.mark.parametrize(
    "inputs",
    [full_inputs(), with_joint_model(full_inputs()), not_shown_inputs(), bare_inputs()],
    ids=["full", "joint", "none", "bare"],
)
def test_page_stands_alone(inputs: ReportInputs) -> None:
    html, _ = build(inputs)
    check_stands_alone(html)


def test_page_can_be_read_without_seeing(full: tuple[str, dict[str, Any]]) -> None:
    check_readable(full[0])


def test_page_names_gain_decision_and_interval(full: tuple[str, dict[str, Any]]) -> None:
    text = words(full[0])
    assert "In this run test mIoU is 64.8 % with generated pairs and 61.5 % without: +3.3 points" in text
    assert "(95 % interval +1.2 to +5.5)" in text
    assert "The gate said yes: dakter-student, version 4, is the new champion." in text
    assert "3 near-duplicate pairs cross the splits" in text


def test_page_shows_when_the_generator_began_to_memorise(full: tuple[str, dict[str, Any]]) -> None:
    text = words(full[0])
    assert re.search(r"for 5.600 steps; its weights are those after step 2.000, where the NLL on val was", text)
    shown = ("NLL of p(y given x): val (line), train (dashes)", "Consistency loss (mean teacher)")
    inputs = full_inputs()
    history = [{k: v for k, v in row.items() if k != "consistency_loss"} for row in inputs.training_history]
    plain = build(dataclasses.replace(inputs, training_curve=(), training_history=history))[0]
    for title in shown:
        assert title in full[0]
        assert title not in plain


def test_pairs_drawn_for_label_maps_are_told_of() -> None:
    inputs = full_inputs()
    of_map = {"share": 0.2, "drawn_for": 205, "damping_db": 3.14, "damping_images": 182, "damping_db_train": None}
    of_image = {"share": 0.1, "drawn_for": 102, "held": 11}
    told = {"looked_at": 1024, "classes": {"oil spill": of_map, "ship": of_image}}
    generate = inputs.stages["generate"]
    steered = {**generate, "figures": {**generate["figures"], "rendered": told}}
    html, _ = build(dataclasses.replace(inputs, stages={**inputs.stages, "generate": steered}))
    check_readable(html)
    text, of = words(html), "pairs drawn for label maps with"
    measured = "of 205 looked at, 182 measured: darker than around it by 3.1 dB, in training tiles by an unknown amount"
    assert f"{of} oil spill 0.2 of all; {measured}" in text
    assert f"{of} ship 0.1 of all; of 102 looked at the soft labels of 11 hold it" in text
    assert "label maps" not in words(build(inputs)[0])


def test_facts_hold_what_was_asked(full: tuple[str, dict[str, Any]]) -> None:
    facts = full[1]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    inputs = full_inputs()
    for arm in ("real", "distilled"):
        assert facts["arms"][arm]["iou"] == inputs.evaluation["arms"][arm]["iou"]
        assert {"mean", "low", "high"} <= facts["arms"][arm]["iou"][1].keys()
    assert facts["b"] == 0.433
    assert facts["steps"]["generator"] == 5600
    assert facts["steps"]["students"]["real-seed0"] == 700
    assert facts["samples"]["generated"] == 4096
    assert facts["decision"] == inputs.decision
    assert facts["outcome"] == "gain"
    assert facts["stages"]["generate"]["minutes"] == 288 / 60
    assert facts["stages"]["generate"]["samples_per_second"] == 14.2


def row_of(html: str, model: str) -> list[str]:
    """Figures of a row of the table of models, an interval as one."""
    table = html[html.index('aria-label="Table of models"') :]
    found = re.search(rf'<th scope="row">{re.escape(model)}</th>(.*?)</tr>', table, flags=re.S)
    assert found is not None, model
    cells = re.findall(r"<td>(.*?)</td>", found[1], flags=re.S)
    return [words(cell.replace("<small>", " (").replace("</small>", ")")).strip() for cell in cells]


def test_the_joint_model_is_a_row_of_the_scores_with_what_it_costs() -> None:
    inputs = with_joint_model(full_inputs())
    html, facts = build(inputs)
    check_readable(html)
    joint = row_of(html, "joint model, p(y given x)")
    nll = "0.256 (0.238 to 0.274)"
    assert joint == ["67.6 (65.2 to 70.0)", "+6.1 (−0.4 to +10.0)", nll, "3.16", "8", "80.4"]
    assert row_of(html, "distilled")[3:] == ["14.33", "1", "14.0"]  # the middle of its three students
    assert row_of(html, "real only (control)")[1] == "–"
    text = words(html)
    assert "median of 7 runs of the packaged model on one image of 64 px squared; 2 cores of a made-up CPU" in text
    assert "The candidate is the joint model as a segmenter, by its own p(y given x), and no student." in text
    assert facts["latency"]["models"]["joint-model"]["ms"] == 80.4
    assert facts["arms"]["joint-model"]["students"][0]["evaluations"] == 8
    assert [c["name"] for c in facts["contrasts"]] == ["distilled - real"] * 8, "the comparison is of students"


def test_without_a_joint_model_or_latency_nothing_is_made_up(full: tuple[str, dict[str, Any]]) -> None:
    assert "joint model, p(y given x)" not in full[0]
    assert row_of(full[0], "distilled")[5] == "–"
    assert "Milliseconds" not in words(full[0])
    assert full[1]["latency"] is None


def test_no_gain_is_claimed_where_the_interval_holds_zero() -> None:
    html, facts = build(not_shown_inputs())
    text = words(html)
    assert facts["outcome"] == facts["gain"]["shown"] == "not shown"
    assert "A gain is not shown" in text
    assert "which includes zero" in text
    assert not re.search(r"raised|lifted|improved", text)
    assert "The best candidate is the real-only control (real-seed2; highest val mIoU)" in text
    assert "The gate said no" in text
    assert "1 of 1 rules not met: floor of oil spill." in text
    assert "There is no champion." in text
    assert "✕ no" in text
    assert "! remark" in text


def test_labelled_real_images_are_told_of_where_there_are_any(full: tuple[str, dict[str, Any]]) -> None:
    inputs = full_inputs()
    assert "labelled" not in full[1]["samples"]
    assert "label" not in full[1]["stages"]
    record = {"seconds": 60.0, "figures": {"num_samples": 321}}
    sweep = {**inputs.sweep, "labelled_digest": "d" * 64, "figures": {"unlabelled_share": 0.5}}
    html, facts = build(dataclasses.replace(inputs, stages={**inputs.stages, "label": record}, sweep=sweep))
    assert facts["samples"]["labelled"] == 321
    assert facts["digests"]["labelled"] == "d" * 64
    assert list(facts["stages"])[1:4] == ["train", "label", "generate"]
    text = words(html)
    assert "unlabelled images that the model labelled 321" in text
    assert "7 of 7 stages recorded" in text
    assert "6 of 6 stages recorded" in words(full[0])
    assert "64.8 % with generated pairs and real images that the model labelled and 61.5 % without" in text
    alone = dataclasses.replace(inputs, sweep={**sweep, "figures": {"unlabelled_share": 1.0}})
    assert "64.8 % with real images that the model labelled and 61.5 % without" in words(build(alone)[0])


def test_missing_stages_are_named() -> None:
    html, facts = build(bare_inputs())
    text = words(html)
    assert facts["outcome"] == "not evaluated"
    assert facts["stages"]["train"] is None
    assert facts["b"] is None
    assert "have not been evaluated" in text
    assert "Without a record: train, generate, distill, evaluate, promote." in text
    for stage in ("evaluation", "promotion", "generation", "training", "distillation"):
        assert f"The {stage} stage left no record" in text


def test_text_from_records_is_escaped() -> None:
    inputs = dataclasses.replace(full_inputs(), title="<script>x</script>", settings_yaml="a: <b>&</b>")
    html, _ = build(inputs)
    assert "<script" not in html
    assert "a: &lt;b&gt;&amp;&lt;/b&gt;" in html


def test_undefined_scores_are_dashes() -> None:
    """A class absent from test has null scores; the page must not make zeros of them."""
    inputs = full_inputs()
    evaluation = json.loads(json.dumps(inputs.evaluation))
    nothing = {"class": "ship", "mean": None, "low": None, "high": None}
    for arm in evaluation["arms"].values():
        arm["iou"][3] = arm["precision"][3] = arm["recall"][3] = arm["f1"][3] = nothing
        arm["ece"][3] = arm["ece_tempered"][3] = None
    for contrast in evaluation["contrasts"]:
        if contrast["class"] == "ship":
            contrast.update(difference=None, low=None, high=None, p_holm=None)
    html, _ = build(dataclasses.replace(inputs, evaluation=evaluation))
    row = re.search(r'<th scope="row">ship</th>(.*?)</tr>', html[html.index('id="scores"') :], flags=re.S)
    assert row is not None
    assert re.findall(r"[\d–]+", re.sub("<[^>]+>", " ", row.group(1))) == ["–", "–", "–"]


def test_galleries_that_do_not_fit_are_refused() -> None:
    inputs = full_inputs()
    assert inputs.generated_gallery is not None
    images, soft = inputs.generated_gallery
    with pytest.raises(DataError, match=r"expected \(8, 5, 64, 64\)"):
        dataclasses.replace(inputs, generated_gallery=(images, soft[:, :4]))
    with pytest.raises(DataError, match="sum to 1"):
        dataclasses.replace(inputs, generated_gallery=(images, soft // 2))
    with pytest.raises(DataError, match="class_table"):
        dataclasses.replace(inputs, tiles_manifest={})
