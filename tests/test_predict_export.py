"""predict.py and export.py on runs of the toy world: the same answers as the test of the run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import export
import predict
import train
from reporting.paired import read_predictions
from trained import open_run

REPO = Path(__file__).resolve().parents[1]
TRAINERS = ["ZeroshotCLIP", "CoOp", "CoOp_FDBPL", "CoCoOp", "VPT", "MaPLe", "PromptSRC"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from datasets import toy

    patch = pytest.MonkeyPatch()
    small = replace(toy.TOY_SETS["ToyShapes"], counts={"train": 2, "val": 1, "test": 2})
    patch.setitem(toy.TOY_SETS, "ToyShapes", small)
    patch.chdir(REPO)
    root = tmp_path_factory.mktemp("world")
    (root / "data").mkdir()
    yield root
    patch.undo()


def run(world: Path, trainer: str, out: str = "", *more: str, scope: str = "base") -> Path:
    """An untrained run: its prompts are saved with random deep ones, and tested; once each."""
    folder = world / (out or trainer)
    if (folder / "results.json").exists():
        return folder
    command = [
        *("--root", str(world / "data"), "--seed", "1", "--trainer", trainer),
        *("--dataset-config-file", "configs/datasets/toy_shapes.yaml"),
        *("--config-file", f"configs/trainers/{trainer}/toy.yaml", "--output-dir", str(folder)),
    ]
    if trainer.endswith("FDBPL"):  # no store: the prompts as they start
        model = train.main([*command, "--no-train", *options(scope)])
        model.save_model(0, str(folder / "start"))
        more = ("--eval-only", "--model-dir", str(folder / "start"), "--load-epoch", "1", *more)
    train.main([*command, *more, *options(scope)])
    return folder


def options(scope: str) -> list[str]:
    pairs = {"DATASET.NUM_SHOTS": 2, "DATASET.SUBSAMPLE_CLASSES": scope, "OPTIM.MAX_EPOCH": 2,
             "OPTIM.WARMUP_EPOCH": 0}  # fmt: skip
    return [str(item) for pair in pairs.items() for item in pair]


def test_images(world: Path) -> list[Path]:
    from datasets import toy

    names = [thing.name for thing in toy.TOY_SETS["ToyShapes"].classes[:24]]
    folder = world / "data/toy_shapes/test"
    return [folder / name.replace(" ", "_") / f"{i:04d}.bmp" for name in names for i in range(2)]


test_images.__test__ = False


def say(capsys, *words: object) -> str:
    capsys.readouterr()
    predict.main([str(word) for word in words])
    return capsys.readouterr().out


# --- predict


@pytest.mark.parametrize("trainer", TRAINERS)
def test_predictions_are_those_of_the_test_of_the_run(world, trainer, capsys, tmp_path):
    folder = run(world, trainer)
    said = read_predictions(folder)
    images = sorted(test_images(world))  # the order in which predictions are kept
    lines = say(capsys, "--model-dir", folder, "--format", "json", "--top", 1, *images).splitlines()
    answers = [json.loads(line) for line in lines]
    names = json.loads((folder / "classnames.json").read_text())
    assert [answer["image"] for answer in answers] == [str(path) for path in images]
    found = [names.index(*answer["top"]) for answer in answers]
    assert found == said.predictions_I.tolist() and len(set(found)) > 5


def test_probabilities_over_all_classes_sum_to_one(world, capsys):
    image = test_images(world)[0]
    folder = run(world, "CoOp")
    line = say(capsys, "--model-dir", folder, "--format", "json", "--top", 99, image)
    top = json.loads(line)["top"]
    assert len(top) == 24 and sum(top.values()) == pytest.approx(1, abs=1e-5)
    assert list(top.values()) == sorted(top.values(), reverse=True)
    text = say(capsys, "--model-dir", folder, "--top", 2, image)
    best = next(iter(top))
    assert text.startswith(f"{image}: {best} {100 * top[best]:.1f} %, ") and text.count("%") == 2


def test_new_class_names_folders_and_stdin(world, capsys, monkeypatch, tmp_path):
    from io import StringIO

    folder, images = run(world, "CoOp"), test_images(world)
    names = tmp_path / "names.txt"
    names.write_text("striped red triangle\n\nred thing\n")
    words = ["--model-dir", folder, "--classnames", names, "--format", "json"]
    by_folder = say(capsys, *words, images[0].parent).splitlines()
    assert len(by_folder) == 2
    assert set(json.loads(by_folder[0])["top"]) == {"striped red triangle", "red thing"}
    monkeypatch.setattr(sys, "stdin", StringIO(f"{images[0]}\n{images[1]}\n"))
    assert say(capsys, *words, "--", "-").splitlines() == by_folder


def test_an_evaluation_folder_takes_its_prompts_from_the_training(world, capsys):
    trained = run(world, "CoOp")
    more = ("--eval-only", "--model-dir", str(trained), "--load-epoch", "2")
    folder = run(world, "CoOp", "CoOp_new", *more, scope="new")
    model = open_run(folder)
    assert model.lab2cname[0] not in json.loads((trained / "classnames.json").read_text())
    assert torch.equal(model.model.learner.ctx, open_run(trained).model.learner.ctx)


def test_errors_say_what_to_do(world, capsys, tmp_path):
    folder, image = run(world, "CoOp"), test_images(world)[0]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for words, message in (
        (["--model-dir", tmp_path, image], "config.yaml is absent; give the --output-dir of a run"),
        (["--model-dir", folder, tmp_path / "absent.jpg"], "there is no image or folder"),
        (
            ["--model-dir", folder, broken],
            "broken.png cannot be read .in no format that Pillow knows",
        ),
        (["--model-dir", folder, "--classnames", "a", "a", "--", image], "has a twice"),
        (["--model-dir", folder, "--load-epoch", 9, image], "holds epochs 2"),
    ):
        with pytest.raises(ValueError, match=message):
            say(capsys, *words)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["nosuchfile.txt"], "nosuchfile.txt does not exist; give names, or one file"),
        (["lists/names"], "lists/names does not exist"),
        (["C:\\names"], "does not exist"),
        (["red thing", "names.CSV"], "names.CSV does not exist"),
        (["{real}", "red thing"], "real.txt is not alone; give names, or one file"),
        (["{empty}"], "empty.txt: the file has no name in it"),
        (["{one}"], "has one name, 'red thing': every image would be it"),
        (["red thing"], "has one name, 'red thing'"),
        (["{latin}"], "latin.txt, line 2: byte 5 of the file .0xe4. is not UTF-8"),
    ],
)
def test_class_names_that_cannot_be_meant_are_refused(world, tmp_path, capsys, names, told):
    for name, text in (("real", "a\nb\n"), ("empty", "\n"), ("one", "red thing"),
                       ("latin", "a b\n\u00e4\n")):  # fmt: skip
        (tmp_path / f"{name}.txt").write_text(text, encoding="latin-1")
    files = {name: str(tmp_path / f"{name}.txt") for name in ("real", "empty", "one", "latin")}
    words = [name.format(**files) for name in names]
    with pytest.raises(ValueError, match=told):
        say(capsys, "--model-dir", "nowhere", "--classnames", *words, "--", test_images(world)[0])


def test_names_with_a_slash_beside_others_and_files_with_a_mark_are_names(world, tmp_path, capsys):
    assert predict.read_names(["AC/DC", "rock"]) == ["AC/DC", "rock"]
    (tmp_path / "names.txt").write_text("\ufeffred thing\nblue thing\n", encoding="utf-8")
    assert predict.read_names([str(tmp_path / "names.txt")]) == ["red thing", "blue thing"]
    assert predict.read_names([]) == []


def test_hidden_images_of_folders_are_not_recognised(tmp_path):
    for place in ("a.jpg", "b/c.JFIF", "._a.jpg", ".cache/d.jpg", "__MACOSX/._a.jpg", "e.txt"):
        (tmp_path / "x" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / place).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in predict.find_images([str(tmp_path)])]
    assert found == ["x/a.jpg", "x/b/c.JFIF"]


def test_words_that_the_toy_clip_does_not_know_are_named(world, capsys):
    folder, image = run(world, "CoOp"), test_images(world)[0]
    words = ["--model-dir", folder, "--format", "json", "--classnames"]
    capsys.readouterr()
    predict.main([str(w) for w in (*words, "zyzzyva", "grommet", "red square", "--", image)])
    said = capsys.readouterr()
    told = "Warning: toy-student does not know the words zyzzyva, grommet."
    assert f"{told} 2 of 3 classes consist of such words alone: to it they are all alike." in (
        said.err
    )
    top = json.loads(said.out)["top"]
    assert top["zyzzyva"] == pytest.approx(top["grommet"], rel=0.05)  # and so it is
    predict.main([str(w) for w in (*words, "red square", "red wug", "--", image)])
    said = capsys.readouterr().err
    assert "does not know the words wug." in said and "alike" not in said
    predict.main([str(w) for w in (*words, "red triangle", "striped square", "--", image)])
    assert "does not know" not in capsys.readouterr().err


# --- export


def exported(folder: Path, out: Path, *words: str) -> tuple[dict[str, torch.Tensor], dict]:
    export.main(["--model-dir", str(folder), "--out", str(out), *words])
    with safe_open(out, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def logits_of(model, images: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """As the first lines of export.py say."""
    image = model.encode_image(images)
    image = image / image.norm(dim=-1, keepdim=True)
    return tensors["logit_scale"] * image @ tensors["class_embeddings"].T


def recipe(out: Path, backbone: str, **keys) -> list[str]:
    """Flags of a CoOp run on a backbone of 224 pixels."""
    pairs = {"INPUT.SIZE": "(224,224)", "DATALOADER.TEST.BATCH_SIZE": 4, **keys}
    return [
        *("--output-dir", str(out), "--backbone", backbone),
        *(str(item) for pair in pairs.items() for item in pair),
    ]


def shift_prompts(folder: Path) -> None:
    """Move the context away from its words, so that only the saved one gives these logits."""
    path = folder / "prompt_learner/model.pth.tar-2"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["ctx"] += 0.1 * torch.randn(
        state["state_dict"]["ctx"].shape, generator=torch.Generator().manual_seed(3)
    )
    torch.save(state, path)


@pytest.fixture
def on_backbone(world, tmp_path):
    """A CoOp run of one's own backbone: its folder, with a moved context."""

    def make(backbone: str) -> Path:
        command = [
            *("--root", str(world / "data"), "--seed", "1", "--trainer", "CoOp", "--no-train"),
            *("--dataset-config-file", "configs/datasets/toy_shapes.yaml"),
            *("--config-file", "configs/trainers/CoOp/toy.yaml"),
            *recipe(tmp_path / "run", backbone),
        ]
        train.main(command).save_model(1, str(tmp_path / "run"))
        shift_prompts(tmp_path / "run")
        return tmp_path / "run"

    return make


def test_exported_embeddings_give_the_logits_with_plain_clip(
    on_backbone, random_clip, parity_images, tmp_path
):
    from clip.model import build_model

    folder, images = on_backbone(str(random_clip)), parity_images[0]
    names = ["cat", "pirate ship", "truck"]
    tensors, about = exported(folder, tmp_path / "x.safetensors", "--classnames", *names)
    assert json.loads(about["classnames"]) == names and about["trainer"] == "CoOp"

    state = torch.load(random_clip, weights_only=True)
    plain = build_model(dict(state)).float()
    plain.load_state_dict(state)
    with torch.no_grad():
        ours = open_run(folder, names).model_inference(images)
        torch.testing.assert_close(logits_of(plain, images, tensors), ours, atol=1e-4, rtol=0)
        # The context, put between start of text and the names, gives the embeddings, too.
        text = encode(plain, tensors["context"], names)
    torch.testing.assert_close(text, tensors["class_embeddings"], atol=2e-5, rtol=0)


def encode(plain, context_ND: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Plain clip's text tower, with the words' embeddings replaced by a context."""
    import clip

    count = len(context_ND)
    tokens = clip.tokenize([" ".join(["X"] * count) + f" {name}." for name in names])
    x = plain.token_embedding(tokens).clone()
    x[:, 1 : 1 + count] = context_ND
    x = plain.transformer((x + plain.positional_embedding).permute(1, 0, 2)).permute(1, 0, 2)
    x = plain.ln_final(x)[torch.arange(len(names)), tokens.argmax(dim=-1)] @ plain.text_projection
    return x / x.norm(dim=-1, keepdim=True)


def test_exported_embeddings_give_the_logits_with_open_clip(on_backbone, parity_images, tmp_path):
    import open_clip

    torch.manual_seed(0)
    plain = open_clip.create_model("ViT-S-32-alt").eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    folder = on_backbone(f"open_clip:ViT-S-32-alt/{tmp_path / 'weights.pt'}")
    tensors, _ = exported(folder, tmp_path / "x.safetensors")
    with torch.no_grad():
        ours = open_run(folder).model_inference(parity_images[0])
        found = logits_of(plain, parity_images[0], tensors)
    assert ours.shape == (4, 48) and ours.std() > 0.01
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=0)


USES = {  # words of what the file is good for, and tensors
    "ZeroshotCLIP": ("in clip or open_clip", {"class_embeddings"}),
    "CoOp": ("in clip or open_clip", {"class_embeddings", "context", "parameters.ctx"}),
    "CoOp_FDBPL": ("in clip or open_clip", {"class_embeddings", "context", "negative_context"}),
    "CoCoOp": ("none are written", {"context", "parameters.meta_net.linear1.weight"}),
    "VPT": ("not those of plain clip's image tower", {"class_embeddings", "vision_prompts"}),
    "MaPLe": ("not those of plain clip's image tower", {"deep_context", "vision_prompts"}),
    "PromptSRC": ("not those of plain clip's image tower", {"deep_context", "vision_prompts"}),
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_method_exports_its_prompts_and_says_what_they_are_good_for(
    world, trainer, tmp_path, capsys
):
    words, names = USES[trainer]
    tensors, about = exported(run(world, trainer), tmp_path / "x.safetensors")
    assert words in about["use"] and about["use"] in capsys.readouterr().out
    assert names <= set(tensors)
    assert ("class_embeddings" in tensors) == (trainer != "CoCoOp")
    if trainer != "CoCoOp":
        model = open_run(run(world, trainer))
        images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features = model.model.image_features(images)
            ours = model.model_inference(images)
        found = tensors["logit_scale"] * features @ tensors["class_embeddings"].T
        torch.testing.assert_close(found, ours, atol=1e-4, rtol=0)
