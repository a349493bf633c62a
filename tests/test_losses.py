"""Losses against textbook forms in float64, their gradients, and the authors' own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import read_parity

import losses

AUTHORS = ["fdbpl_loss_small", "fdbpl_loss_K_lt_C", "fdbpl_loss_single_unique"]


def rand(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


# Which axis a softmax takes is said, not guessed from the number of axes.
pytestmark = pytest.mark.filterwarnings("error:Implicit dimension choice")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_symmetric_kl_equals_two_textbook_sums():
    student_BC, teacher_BC = rand(4, 7), rand(4, 7)
    p, q = teacher_BC.softmax(-1), student_BC.softmax(-1)
    textbook_B = 0.5 * (p * (p / q).log()).sum(-1) + 0.5 * (q * (q / p).log()).sum(-1)
    torch.testing.assert_close(losses.symmetric_kl(student_BC, teacher_BC), textbook_B)


def test_symmetric_kl_is_zero_only_for_equal_distributions():
    logits_BC = rand(3, 5)
    shifted = logits_BC + 7.0  # the same softmax
    assert losses.symmetric_kl(logits_BC, shifted).abs().max() < 1e-12
    assert (losses.symmetric_kl(logits_BC, rand(3, 5)) > 0.01).all()


def test_symmetric_kl_survives_extreme_half_precision_logits():
    student_BC = torch.tensor([[60000.0, -60000.0]]).half()
    assert torch.isfinite(losses.symmetric_kl(student_BC, -student_BC / 100)).all()


@pytest.mark.parametrize("num_classes", [2, 37, 1000])
def test_region_weight_is_zero_for_uniform_and_one_for_certain(num_classes):
    certain_C = torch.zeros(num_classes).index_fill(0, torch.tensor(0), 100.0)
    weight_B = losses.region_weight(torch.stack([torch.zeros(num_classes), certain_C]))
    torch.testing.assert_close(weight_B, torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_rounding_leaves_no_weight_outside_0_to_1():
    for num_classes in range(2, 400):
        uniform = torch.full((1, num_classes), 1.0)
        certain = torch.zeros(1, num_classes).index_fill(1, torch.tensor(0), 15.0)
        for logits_BC in (uniform, 0.3 * uniform, certain):
            assert 0 <= losses.region_weight(logits_BC).item() <= 1


def test_region_weight_grows_with_certainty_and_ignores_which_class():
    sharpness = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    logits_BC = sharpness[:, None] * torch.tensor([1.0, 0.0, 0.0])
    weight_B = losses.region_weight(logits_BC)
    assert (weight_B.diff() > 0).all()
    torch.testing.assert_close(weight_B, losses.region_weight(logits_BC.flip(-1)))


def test_region_weight_equals_the_textbook_entropy():
    teacher_BC = rand(6, 5)
    p = teacher_BC.softmax(-1)
    textbook_B = 1 + (p * p.log()).sum(-1) / math.log(5)
    torch.testing.assert_close(losses.region_weight(teacher_BC), textbook_B)


def test_region_weight_of_a_single_class_is_one():
    assert losses.region_weight(torch.randn(3, 1)).tolist() == [1, 1, 1]


def test_rejection_is_kl_to_uniform():
    negative_BC = rand(4, 6)
    n = negative_BC.softmax(-1)
    textbook_B = (n * (n * 6).log()).sum(-1)
    torch.testing.assert_close(losses.rejection(negative_BC), textbook_B)
    assert losses.rejection(torch.ones(1, 6)).abs().item() < 1e-6


def test_logit_similarity_is_a_cosine_over_classes():
    positive_BC, negative_BC = rand(4, 6), rand(4, 6)
    textbook_B = torch.stack(
        [
            a @ b / (a @ a).sqrt() / (b @ b).sqrt()
            for a, b in zip(positive_BC, negative_BC, strict=True)
        ]
    )
    torch.testing.assert_close(losses.logit_similarity(positive_BC, negative_BC), textbook_B)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_mean_kl_is_the_textbook_sum_times_the_squared_temperature(temperature):
    student_BC, teacher_BC = rand(4, 7), rand(4, 7)
    p, q = (teacher_BC / temperature).softmax(-1), (student_BC / temperature).softmax(-1)
    textbook = temperature * temperature * (p * (p / q).log()).sum() / 28
    found = losses.mean_kl(student_BC, teacher_BC, temperature)
    torch.testing.assert_close(found, textbook)
    if temperature == 1:
        assert losses.mean_kl(student_BC, teacher_BC) == found


def test_the_gradient_of_mean_kl_keeps_its_size_at_high_temperature():
    """What T^2 is for: at high T the gradient tends to that of half a squared error."""
    student_BC, teacher_BC = rand(4, 7).requires_grad_(), rand(4, 7)
    losses.mean_kl(student_BC, teacher_BC, temperature=1e4).backward()
    gap_BC = student_BC.detach() - teacher_BC
    limit_BC = (gap_BC - gap_BC.mean(-1, keepdim=True)) / 7 / 28
    torch.testing.assert_close(student_BC.grad, limit_BC, atol=1e-5, rtol=1e-3)


def test_feature_distance_is_the_mean_absolute_difference():
    features, frozen = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.5, 2.0], [0, 4.0]])
    assert losses.feature_distance(features, frozen) == (0.5 + 3.0) / 4


def test_a_label_lifts_its_own_logit_alone():
    teacher_BC = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).half()
    refined = losses.with_label(teacher_BC, torch.tensor([2, 0]), bonus=16)
    assert refined.tolist() == [[1, 2, 19], [20, 5, 6]] and refined.dtype == torch.float16


def test_half_precision_logits_are_computed_in_float32_and_double_in_double():
    logits_BC = torch.tensor([[10.0, 9.0, -3.0], [0.5, 0.25, 8.0]]).half()
    other_BC = logits_BC.flip(0)
    forms = {
        "symmetric_kl": lambda a, b: losses.symmetric_kl(a, b),
        "entropy": lambda a, b: losses.entropy(a),
        "region_weight": lambda a, b: losses.region_weight(a),
        "one class": lambda a, b: losses.region_weight(a[:, :1]),
        "rejection": lambda a, b: losses.rejection(a),
        "logit_similarity": lambda a, b: losses.logit_similarity(a, b),
        "feature_distance": lambda a, b: losses.feature_distance(a, b),
        "mean_kl": lambda a, b: losses.mean_kl(a, b, 2.0),
    }
    for name, form in forms.items():
        found, exact = form(logits_BC, other_BC), form(logits_BC.double(), other_BC.double())
        assert found.dtype == torch.float32 and exact.dtype == torch.float64, name
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5, msg=name)


def loop_cascade(image_BD, positive_CD, negative_CD, teacher_BC, weight_B, margin):
    """The formula of docs/METHOD.md, pair by pair."""
    total, pairs = 0.0, 0
    difference_CD = positive_CD - negative_CD
    for a in range(len(image_BD)):
        for b in range(a + 1, len(image_BD)):
            i, j = teacher_BC[a].argmax(), teacher_BC[b].argmax()
            if i != j:
                along = (image_BD[a] - image_BD[b]) @ (difference_CD[i] - difference_CD[j])
                total = total + weight_B[a] * weight_B[b] * torch.relu(margin - along)
                pairs += 1
    return total / max(pairs, 1)


def cascade(image_BD, positive_CD, negative_CD, teacher_BC, weight_B, margin=0.2):
    difference_BC = image_BD @ (positive_CD - negative_CD).T
    return losses.cascaded_difference(difference_BC, teacher_BC, weight_B, margin)


def test_cascaded_difference_equals_the_pairwise_loop_with_gradients():
    image_BD = torch.nn.functional.normalize(rand(9, 8), dim=-1)
    teacher_BC, weight_B = rand(9, 4), torch.rand(9, dtype=torch.float64)
    text_2CD = torch.nn.functional.normalize(rand(2, 4, 8), dim=-1)
    found = []
    for form in (cascade, loop_cascade):
        text = text_2CD.clone().requires_grad_()
        value = form(image_BD, text[0], text[1], teacher_BC, weight_B, 0.2)
        value.backward()
        found.append((value.detach(), text.grad))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][0] > 0 and found[0][1].abs().max() > 0  # not the authors' zero


def test_cascaded_difference_without_a_pair_is_zero_with_zero_gradient():
    text_2CD = rand(2, 3, 8).requires_grad_()
    teacher_BC = torch.tensor([[5.0, 0, 0]]).expand(4, 3)
    value = cascade(rand(4, 8), text_2CD[0], text_2CD[1], teacher_BC, torch.ones(4))
    value.backward()
    assert value == 0 and text_2CD.grad.abs().max() == 0


def test_cascaded_difference_of_one_pair_is_its_own_hinge():
    """Regions that say nothing apart: the margin, 0.2 unless given, times both weights."""
    nothing_BC, teacher_BC = torch.zeros(3, 2), torch.tensor([[9.0, 0], [0, 9.0], [9.0, 0]])
    weight_B = torch.tensor([0.5, 0.5, 1.0])
    pair = losses.cascaded_difference(nothing_BC[:2], teacher_BC[:2], weight_B[:2])
    assert pair.item() == pytest.approx(0.2 * 0.25)
    both = losses.cascaded_difference(nothing_BC, teacher_BC, weight_B, margin=1.0)
    assert both.item() == pytest.approx((0.25 + 0.5) / 2)  # the two of one class are no pair


def test_cascaded_difference_falls_to_zero_when_classes_are_ordered_by_the_margin():
    """Regions that lie along their own class difference by more than the margin cost nothing."""
    image_BD = torch.eye(2, dtype=torch.float64)
    value = cascade(image_BD, image_BD, -image_BD, 10 * image_BD, torch.ones(2), margin=0.2)
    assert value == 0


@pytest.mark.parametrize("name", ["symmetric_kl", "rejection", "logit_similarity"])
def test_gradients_equal_finite_differences(name):
    other_BC = rand(3, 5)
    term = getattr(losses, name)
    call = (lambda x: term(x)) if name == "rejection" else (lambda x: term(x, other_BC))
    assert torch.autograd.gradcheck(call, rand(3, 5).requires_grad_())


@pytest.mark.parametrize("name", AUTHORS)
def test_terms_equal_the_authors_numbers(name):
    """The authors' 1e-6 inside the logarithm moves w by up to C * 1e-6, hence 1e-4."""
    given, _ = read_parity(name)
    teacher_BC = given["inputs.teacher_logits"]
    positive_BC, negative_BC = given["inputs.logits_pos"], given["inputs.logits_neg"]
    num_classes = teacher_BC.shape[-1]
    both_B = 0.5 * (given["terms.loss_F"] + given["terms.loss_R"])
    ours = {
        "terms.w": losses.region_weight(teacher_BC),
        "terms.entropy_teacher": losses.entropy(teacher_BC),
        "terms.loss_neg": losses.rejection(negative_BC) - math.log(num_classes),
        "terms.loss_JS": losses.logit_similarity(positive_BC, negative_BC),
    }
    for key, value in ours.items():
        torch.testing.assert_close(value, given[key], atol=1e-4, rtol=1e-5, msg=key)
    found_B = losses.symmetric_kl(positive_BC, teacher_BC)
    torch.testing.assert_close(found_B, both_B, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", AUTHORS)
def test_sum_and_gradients_equal_the_authors(name):
    """Their whole loss from features: KL both ways by w, -H(n) by 1 - w, 0.001 cosine by w."""
    given, _ = read_parity(name)
    order_K = given["inputs.prompt_indices"]
    image_BD = given["inputs.image_features"].clone().requires_grad_()
    num_classes = given["grads.text_features_pos_full"].shape[0]
    texts = []
    for side in ("pos", "neg"):
        full_CD = torch.zeros(num_classes, image_BD.shape[1])
        full_CD[order_K] = given[f"inputs.text_features_{side}"]
        texts.append(full_CD.requires_grad_())
    scale = given["inputs.logits_pos"][0, 0] / (
        given["inputs.image_features"][0] @ given["inputs.text_features_pos"][0]
    )
    positive_BC, negative_BC = (scale * image_BD @ text_CD[order_K].T for text_CD in texts)
    teacher_BC = given["inputs.teacher_logits"]
    weight_B = losses.region_weight(teacher_BC)
    rejection_B = losses.rejection(negative_BC) - math.log(len(order_K))
    similarity_B = losses.logit_similarity(positive_BC, negative_BC)
    loss = (
        (weight_B * losses.symmetric_kl(positive_BC, teacher_BC)).mean()
        + ((1 - weight_B) * rejection_B).mean()
        + 0.001 * (weight_B * similarity_B).mean()
    )
    torch.testing.assert_close(loss, given["terms.loss"], atol=1e-4, rtol=1e-4)
    loss.backward()
    pairs = {"image_features": image_BD, "text_features_pos_full": texts[0]}
    pairs["text_features_neg_full"] = texts[1]
    for key, leaf in pairs.items():
        largest = given[f"grads.{key}"].abs().max()
        assert (leaf.grad - given[f"grads.{key}"]).abs().max() <= 1e-3 * largest + 1e-5, key
