"""Scores of change: counted by hand, by torchmetrics, by scene and over processes."""

import pytest
import torch
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from rsmamba.tasks.metrics import ChangeMetrics

IGNORED = 255


def scores(metric):
    return {key: pytest.approx(value.item(), abs=1e-6) for key, value in metric.compute().items()}


def test_scores_equal_a_count_by_hand():
    metric = ChangeMetrics(("paris", "rio"))
    # paris: 2 found, 1 made up, 1 missed; rio: 1 found, 2 missed; one pixel of each is ignored
    said = torch.tensor([[[1, 1, 1], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]]])
    true = torch.tensor([[[1, 1, 0], [1, 0, IGNORED]], [[1, 1, 1], [0, 0, IGNORED]]])
    metric.update(said, true, torch.tensor([0, 1]))
    assert metric.counts.tolist() == [[2, 1, 1], [1, 0, 2]]
    assert scores(metric) == {
        "F1Change": 6 / 10,
        "PrecisionChange": 3 / 4,
        "RecallChange": 3 / 6,
        "IoUChange": 3 / 7,
        "F1Change_paris": 4 / 6,
        "F1Change_rio": 2 / 4,
    }


def test_scores_equal_torchmetrics_over_all_pixels():
    generator = torch.Generator().manual_seed(0)
    metric, f1, iou = ChangeMetrics(tuple("abc")), BinaryF1Score(), BinaryJaccardIndex()
    for _ in range(5):
        logits = torch.randn(4, 2, 16, 16, generator=generator)
        mask = torch.randint(0, 2, (4, 1, 16, 16), generator=generator)
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = IGNORED
        metric.update(logits, mask, torch.randint(0, 3, (4,), generator=generator))
        known = mask[:, 0] != IGNORED
        f1.update(logits.argmax(1)[known], mask[:, 0][known])
        iou.update(logits.argmax(1)[known], mask[:, 0][known])
    found = metric.compute()
    assert found["F1Change"].item() == pytest.approx(f1.compute().item(), abs=1e-6)
    assert found["IoUChange"].item() == pytest.approx(iou.compute().item(), abs=1e-6)


def test_the_score_over_all_pixels_is_not_the_mean_of_the_scenes():
    metric = ChangeMetrics(("large", "small"))
    truth = torch.zeros(2, 100, dtype=torch.long)
    truth[0], truth[1, :2] = 1, 1
    said = truth.clone()
    said[1] = 0
    said[1, 50:52] = 1
    metric.update(said.view(2, 10, 10), truth.view(2, 10, 10), torch.tensor([0, 1]))
    found = scores(metric)
    assert found["F1Change_large"] == 1
    assert found["F1Change_small"] == 0
    assert found["F1Change"] == 200 / 204


def test_masks_and_batches_come_in_any_division():
    generator = torch.Generator().manual_seed(1)
    said = torch.randint(0, 2, (6, 8, 8), generator=generator)
    true = torch.randint(0, 2, (6, 8, 8), generator=generator)
    scene = torch.tensor([0, 1, 0, 1, 1, 0])
    at_once, apart = ChangeMetrics(tuple("ab")), ChangeMetrics(tuple("ab"))
    at_once.update(said, true, scene)
    for i in range(6):
        apart.update(said[i : i + 1], true[i : i + 1, None], scene[i : i + 1])
    assert scores(at_once) == scores(apart)


def test_counts_of_several_processes_are_added():
    parts = [ChangeMetrics(tuple("ab")) for _ in range(2)]
    for i, part in enumerate(parts):
        said = torch.ones(1, 2, 2, dtype=torch.long)
        part.update(said, torch.tensor([[[1, 1], [i, 0]]]), torch.tensor([i]))
    # what torchmetrics does with the states of all processes
    parts[0].counts = parts[0]._reductions["counts"](torch.stack([p.counts for p in parts]))
    assert parts[0].counts.tolist() == [[2, 2, 0], [3, 1, 0]]
    assert scores(parts[0])["F1Change"] == 10 / 13


def test_without_names_there_is_one_score_and_reset_forgets():
    metric = ChangeMetrics()
    metric.update(torch.ones(3, 4, 4, dtype=torch.long), torch.ones(3, 1, 4, 4), torch.arange(3))
    assert set(metric.compute()) == {"F1Change", "PrecisionChange", "RecallChange", "IoUChange"}
    assert metric.compute()["F1Change"] == 1
    metric.reset()
    assert metric.counts.sum() == 0


def test_nothing_said_of_nothing_there_is_zero_in_all_and_no_score_of_a_scene():
    metric = ChangeMetrics(("quiet",))
    metric.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4), torch.tensor([0]))
    assert {name: value.item() for name, value in metric.compute().items()} == dict.fromkeys(
        ("F1Change", "PrecisionChange", "RecallChange", "IoUChange"), 0.0
    )


def test_a_billion_pixels_are_counted_exactly():
    metric = ChangeMetrics()
    metric.counts[0] = torch.tensor([2**31, 1, 0])
    metric.update(torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.long))
    assert metric.counts.tolist() == [[2**31 + 1, 1, 0]]
