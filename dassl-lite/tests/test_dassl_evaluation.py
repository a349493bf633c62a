"""Accuracy and macro F1 against sums done by hand, and the result block."""

from __future__ import annotations

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy

# Class 0: 2 of 3 right; class 1: 1 of 2; class 2: no sample, guessed twice.
LABELS = torch.tensor([0, 0, 0, 1, 1])
GUESSES = torch.tensor([0, 0, 2, 1, 2])
NAMES = {0: "ant", 1: "bee", 2: "cat"}


def evaluate(cfg, **kwargs):
    evaluator = build_evaluator(cfg, **kwargs)
    logits = torch.nn.functional.one_hot(GUESSES, 3).float()
    evaluator.process(logits, LABELS)  # forgotten by reset
    evaluator.reset()
    evaluator.process(logits[:2], LABELS[:2])
    evaluator.process(logits[2:], LABELS[2:])
    return evaluator.evaluate()


def test_results_and_block(capsys):
    results = evaluate(get_cfg_default(), lab2cname=NAMES)
    f1_ant, f1_bee = 2 * 2 / (3 + 2), 2 * 1 / (2 + 1)
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert list(results.values()) == pytest.approx([60.0, 40.0, 50 * (f1_ant + f1_bee)])
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n=> result\n* total: 5\n* correct: 3\n"
        "* accuracy: 60.0%\n* error: 40.0%\n* macro_f1: 73.3%\n"
    )


def test_per_class_results(capsys):
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    assert evaluate(cfg, lab2cname=NAMES)["perclass_accuracy"] == pytest.approx((200 / 3 + 50) / 2)
    out = capsys.readouterr().out
    assert "* class: 0 (ant)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n" in out
    assert out.endswith("* class: 1 (bee)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n* average: 58.3%\n")
    with pytest.raises(ValueError, match="PER_CLASS_RESULT needs class names"):
        build_evaluator(cfg)


def test_confusion_matrix_is_a_tensor(tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list(["TEST.COMPUTE_CMAT", True, "OUTPUT_DIR", str(tmp_path / "new")])
    evaluate(cfg, lab2cname=NAMES)
    matrix = torch.load(tmp_path / "new" / "cmat.pt", weights_only=True)
    expected = [[2 / 3, 0, 1 / 3], [0, 1 / 2, 1 / 2], [0, 0, 0]]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))


def test_refusals():
    cfg = get_cfg_default()
    with pytest.raises(ValueError, match="gave no batch"):
        build_evaluator(cfg).evaluate()
    cfg.TEST.EVALUATOR = "Regression"
    with pytest.raises(ValueError, match="'Regression' is not known.* Known: Classification"):
        build_evaluator(cfg)


def test_accuracy_top_1_and_top_3():
    torch.manual_seed(0)
    logits_BC, target_B = torch.randn(50, 10), torch.randint(10, (50,))
    top1, top3 = compute_accuracy((logits_BC, None), target_B, topk=(1, 3))
    ranks_B = (logits_BC > logits_BC.gather(1, target_B[:, None])).sum(dim=1)
    assert top1.shape == top3.shape == (1,)
    assert top1.item() == pytest.approx(100 * (ranks_B < 1).float().mean().item())
    assert top3.item() == pytest.approx(100 * (ranks_B < 3).float().mean().item())
    assert compute_accuracy(logits_BC, target_B)[0].item() == top1.item()
