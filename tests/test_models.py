"""Models: equal to the official CoOp code on a random CLIP, and honest about weights."""

from __future__ import annotations

import pytest
import torch
from conftest import read_parity
from torch.nn import functional as F

from models import clip as clip_loader
from models.clip import load_clip, weights_digest
from models.learners import (
    ContextLearner,
    initial_context,
)
from models.prompted_clip import HandwrittenCLIP, PromptedCLIP
from models.teacher import Teacher
from models.templates import fill, template_for
from models.text import has_clip_text


@pytest.fixture(scope="module")
def student(random_clip):
    return load_clip(str(random_clip))


def test_words_start_the_context_as_in_the_official_checkpoint(student):
    given, _ = read_parity("coop_ctxinit4_end")
    start_ND = initial_context(student, "a_photo_of_a", num_context=16)
    assert start_ND.shape == (4, 512)  # the words decide, not N_CTX
    # The fixture's context is perturbed from exactly these words, so it stays near them.
    cosine = F.cosine_similarity(start_ND, given["params.prompt_learner.ctx"]).min()
    assert cosine > 0.5


# Gradients reach the context and nothing else


def test_only_the_context_has_gradients(student, parity_images):
    learner = ContextLearner(initial_context(student, "a photo of a", 4))
    learner.add_negative(initial_context(student, "a photo of no", 4))
    model = PromptedCLIP(student, learner, ["cat", "dog"], "a photo of a")
    positive_BC, negative_BC = model(parity_images[0]).logits
    assert not torch.equal(positive_BC, negative_BC)
    (positive_BC.logsumexp(-1) - positive_BC[:, 0]).sum().backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    assert with_gradient == {"learner.ctx", "learner.negative_ctx"}
    assert learner.ctx.grad.abs().max() > 0 and learner.negative_ctx.grad.abs().max() == 0


def test_dual_prompts_need_equally_many_words(student):
    with pytest.raises(ValueError, match="same number of words"):
        learner = ContextLearner(initial_context(student, "a photo of a", 4))
        learner.add_negative(initial_context(student, "no", 4))


def test_class_specific_contexts_start_alike_and_are_apart(student):
    learner = ContextLearner(initial_context(student, "a photo", 2), num_classes=3)
    assert learner.ctx.shape == (3, 2, 512) and torch.equal(learner.ctx[0], learner.ctx[2])


# Loading


def test_local_state_dict_torchscript_and_safetensors_are_the_same_model(
    random_clip, tmp_path, parity_images
):
    from safetensors.torch import save_file

    state = torch.load(random_clip, weights_only=True)
    save_file(state, tmp_path / "student.safetensors")

    class Archive(torch.nn.Module):  # OpenAI's files are TorchScript archives
        def __init__(self):
            super().__init__()
            for name, value in state.items():
                *parents, leaf = name.split(".")
                node = self
                for part in parents:
                    if not hasattr(node, part):
                        node.add_module(part, torch.nn.Module())
                    node = getattr(node, part)
                node.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Archive()).save(tmp_path / "student.jit.pt")
    images = parity_images[0][:1]
    plain = load_clip(str(random_clip)).model.encode_image(images)
    for name in ("student.safetensors", "student.jit.pt"):
        assert torch.equal(load_clip(str(tmp_path / name)).model.encode_image(images), plain)


def test_float32_weights_are_not_rounded(random_clip, tmp_path):
    state = {k: v.float() for k, v in torch.load(random_clip, weights_only=True).items()}
    state["visual.proj"] = state["visual.proj"] + 1e-5
    torch.save(state, tmp_path / "fine.pt")
    loaded = load_clip(str(tmp_path / "fine.pt")).model
    assert torch.equal(loaded.visual.proj.data, state["visual.proj"])


def test_a_loaded_clip_is_frozen_in_eval_mode_and_knows_itself(student, random_clip):
    assert not any(value.requires_grad for value in student.model.parameters())
    assert not student.model.training
    assert student.image_size == 224 and student.digest == weights_digest(str(random_clip))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"ViT-B/16.*toy-student.*open_clip:"):
        load_clip("ViT-B/17")
    with pytest.raises(ValueError, match="tags of 'ViT-B-32'.*laion2b"):
        load_clip("open_clip:ViT-B-32/nonsense")
    with pytest.raises(ValueError, match="tags of 'ViT-Z'"):
        load_clip("open_clip:ViT-Z/openai")


def test_missing_download_names_url_and_file(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(clip_loader, "_OPENAI_CACHE", tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError) as error:
        load_clip("ViT-B/32")
    message = str(error.value)
    assert str(tmp_path / "ViT-B-32.pt") in message and "https://" in message
    assert "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af" in message


def test_wrong_file_in_the_cache_is_told(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    (tmp_path / "ViT-B-32.pt").write_bytes(b"half a download")
    monkeypatch.setattr(clip_loader, "_OPENAI_CACHE", tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.warns(UserWarning, match="SHA256"), pytest.raises(ValueError, match="checksum"):
        load_clip("ViT-B/32")


def test_files_without_clip_weights_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="neither a TorchScript archive"):
        load_clip(str(tmp_path / "text.pt"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no CLIP weights under OpenAI's names"):
        load_clip(str(tmp_path / "other.pt"))


def test_open_clip_weights_from_a_file_serve_as_student_and_teacher(tmp_path, parity_images):
    """The same open_clip architecture by file: our text path equals its own encode_text."""
    import open_clip

    torch.manual_seed(0)
    original = open_clip.create_model("ViT-S-32-alt")
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    loaded = load_clip(f"open_clip:ViT-S-32-alt/{tmp_path / 'weights.pt'}")
    learner = ContextLearner(initial_context(loaded, "a photo of a", 4))
    names = ["cat", "pirate ship"]
    prompted = PromptedCLIP(loaded, learner, names, "a photo of a")
    zero_shot = HandwrittenCLIP(loaded, names, "a photo of a {}.")
    tokens = loaded.tokenize(["a photo of a cat.", "a photo of a pirate ship."])
    own_CD = F.normalize(loaded.model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(prompted.text_features(), own_CD, atol=1e-5, rtol=0)
    torch.testing.assert_close(zero_shot.text_features(), own_CD, atol=1e-5, rtol=0)
    assert Teacher(loaded, names, "a photo of a {}.")(parity_images[0]).shape == (4, 2)


@pytest.mark.parametrize("arch", ["ViT-bigG-14-CLIPA", "ViT-L-14-worldwide", "coca_ViT-B-32"])
def test_other_text_towers_are_known_by_their_signs(arch):
    """No causal mask and read at the last token; read at a low token id; a tower of its own."""
    import open_clip

    with torch.device("meta"):
        assert not has_clip_text(open_clip.create_model(arch, device="meta"))
        assert has_clip_text(open_clip.create_model("ViT-S-32-alt", device="meta"))


def test_a_text_that_does_not_fit_is_refused_by_both_tokenizers(student):
    with pytest.raises(ValueError, match="Shorten the class name"):
        student.tokenize(["word " * 80])


# Precision


def test_a_cpu_computes_in_fp32_and_says_so_once(random_clip, capsys):
    clip_loader._tell_once.cache_clear()
    for _ in range(2):
        assert load_clip(str(random_clip), "fp16").precision == "fp32"
    assert capsys.readouterr().out.count("computes in fp32 on the CPU") == 1


def test_unknown_precision_is_refused(random_clip):
    with pytest.raises(ValueError, match="choose one of"):
        load_clip(str(random_clip), "fp8")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp", "bf16"])
def test_precisions_agree_on_a_gpu(random_clip, parity_images, precision):
    given, about = read_parity("coop_ctxinit4_end")
    loaded = load_clip(str(random_clip), precision, "cuda")
    learner = ContextLearner(given["params.prompt_learner.ctx"])
    model = PromptedCLIP(loaded, learner, about["classnames"], "a photo of a")
    logits_BC = model(parity_images[0].cuda()).logits
    logits_BC.sum().backward()
    assert learner.ctx.dtype == torch.float32 and torch.isfinite(learner.ctx.grad).all()
    bound = {"fp32": 1e-3, "fp16": 0.1, "amp": 0.1, "bf16": 0.6}[precision]
    assert (logits_BC.cpu() - given["logits"]).abs().max() < bound


def test_only_models_with_tokens_of_zeros_have_unknown_words(random_clip, capsys):
    clip_loader._tell_once.cache_clear()
    HandwrittenCLIP(load_clip(str(random_clip)), ["zyzzyva", "grommet"], "a {}.")
    assert "does not know" not in capsys.readouterr().out
    toy = load_clip("toy-teacher")
    for _ in range(2):
        HandwrittenCLIP(toy, ["red_triangle", "red gizmo"] + [f"w{i}q" for i in range(30)], "{}.")
    told = capsys.readouterr().out
    assert told.count("toy-teacher does not know the words gizmo, w0q, w1q") == 1
    assert " and 11 more. 30 of 32 classes consist of such words alone" in told


# Teacher and templates


def test_teacher_logits_are_zero_shot_logits_at_its_own_scale(student, parity_images):
    names = ["cat", "dog", "pirate_ship"]
    teacher = Teacher(student, names, "a photo of a {}.")
    logits_BC = teacher(parity_images[0])
    image_BD = F.normalize(student.model.encode_image(parity_images[0]), dim=-1)
    text = student.model.encode_text(student.tokenize(fill("a photo of a {}.", names)))
    plain_BC = student.model.logit_scale.exp() * image_BD @ F.normalize(text, dim=-1).T
    torch.testing.assert_close(logits_BC, plain_BC, atol=1e-4, rtol=0)
    assert not logits_BC.requires_grad and logits_BC.dtype == torch.float32


def test_student_pixels_become_the_teachers(student):
    teacher = Teacher(student, ["cat", "dog"], "a photo of a {}.")
    images = torch.rand(2, 3, 224, 224)
    normalised = (images - 0.5) / 0.25
    own = teacher.from_student_pixels(normalised, (0.5,) * 3, (0.25,) * 3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.mean, teacher.std))
    torch.testing.assert_close(own, (images - mean) / std, atol=1e-5, rtol=1e-5)
    assert teacher.from_student_pixels(images, teacher.mean, teacher.std) is images
    small = teacher.from_student_pixels(images[..., :48, :48], teacher.mean, teacher.std)
    assert small.shape[-2:] == (224, 224)


def test_templates_are_the_familys():
    assert template_for("OxfordPets") == "a photo of a {}, a type of pet."
    assert template_for("ImageNet") == template_for("ToyShapes") == "a photo of a {}."
    assert template_for("OxfordPets", "a drawing of a {}.") == "a drawing of a {}."
    assert fill("{} texture.", ["a_b"]) == ["a b texture."]
    with pytest.raises(ValueError, match="DATASET.TEMPLATE"):
        template_for("OxfordPets", "a photo")
