r"""One training step of every method: here, and as the official code computes it.

    python -m benchmarks.step_time --classes 50 500 1000 --student ViT-B/16 --teacher ViT-H-14 \
        --json benchmarks/results/<machine>/step_time_b16.json

Random weights at real sizes, class names of ImageNet, batch 32 (MaPLe and PromptSRC: 4, as their
recipes). Every piece of work is timed in turn with all others in one process, and medians count:
CPU time of one thread on a CPU, time between events on a GPU; wall time beside it. A row is a sum
of pieces. On a CPU the expensive ones are timed small and scaled, where the work is linear:

    teacher             1 image,  x 32
    image tower         4 images, x 8
    77 tokens           up to 100 classes, x classes / 100; FDBPL's authors: x 2 for two prompts.
                        (100 classes take 2.2 times as long as 50: it is more than linear)

Several students share what is timed of the text towers, which must be of one size; MaPLe and
PromptSRC are timed on the first. --check runs the official CoOp step in one go as well, and prints
how far the sum is from it. FLOP, peak memory (above weights and inputs) and what autograd keeps are
counted in a run of its own; memory of a scaled piece is scaled too. Rows called official leave out
what costs those codes even more: the loop of FDBPL's authors over pairs of classes, and copies
between devices.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks import report, table
from benchmarks.clips import STUDENTS, random_student, random_teacher
from benchmarks.data import cut_part, image_part
from benchmarks.measure import Part, Row, measure
from benchmarks.steps import BATCH, SMALL_BATCH, Bench, features_of
from models.prompted_clip import FrozenCLIP

OFFICIAL_CLASSES = 100  # of the 77-token pass that is timed on a CPU
FILE, CUT = "one image file: decode, cut, to tensor", "one region: cut"
RATIOS = {  # name -> numerator, denominator: rows, and which of their numbers
    "fdbpl_vs_kdpl_online": ("kdpl official", "fdbpl cached", "ms"),
    "fdbpl_vs_kdpl_online_bf16": ("kdpl official bf16", "fdbpl cached", "ms"),
    "fdbpl_vs_coop_official": ("coop official", "fdbpl cached", "ms"),
    "fdbpl_vs_fdbpl_authors": ("fdbpl authors", "fdbpl cached", "ms"),
    "fdbpl_images_vs_kdpl_online": ("kdpl official", "fdbpl images", "ms"),
    "kdpl_vs_official": ("kdpl official", "kdpl", "ms"),
    "coop_vs_official": ("coop official", "coop", "ms"),
    "coop_cached_vs_official": ("coop official", "coop cached", "ms"),
    "text_vs_77": ("text 77", "text", "ms"),
    "text_flop_vs_77": ("text 77", "text", "flop"),
    "saved_activations_vs_77": ("text 77", "text", "saved_bytes"),
    "regions_32x8_vs_32": ("fdbpl 32x8", "fdbpl cached", "ms"),
}


class Benchmark:
    """Parts of all rows, each made once, and the rows composed of them."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        self.parts: dict[str, Part] = {}
        self.clips = {
            name: random_student(name, args.precision, self.device) for name in args.student
        }
        self.bench = Bench(self.clips[args.student[0]])
        self._require_one_text_tower()
        self.images = {name: self._image_tower(name) for name in self.clips}
        self.teachers = self._teachers()
        self.data = self._part(FILE, image_part())
        self._part(CUT, cut_part())

    def _part(self, name: str, run) -> Part:
        return self.parts.setdefault(name, Part(name, run))

    def _require_one_text_tower(self) -> None:
        """Times of text are measured with the first student and hold for all."""
        first, *others = (
            [weight.shape for weight in clip.model.transformer.parameters()]
            for clip in self.clips.values()
        )
        if any(shapes != first for shapes in others):
            raise ValueError(
                f"--student {' '.join(self.clips)}: their text towers differ in size. Give those "
                "of one size, as ViT-B/16 and ViT-B/32 have, or run each alone."
            )

    def _image_tower(self, student: str) -> tuple[Part, float]:
        batch, clip = (BATCH if self.on_gpu else 4), self.clips[student]
        step = features_of(FrozenCLIP(clip).image_features, Bench(clip).pixels(batch))
        return self._part(f"image tower {student}, {batch} images", step), BATCH / batch

    def _teachers(self) -> dict[str, tuple[Part, float] | None]:
        batch, found = (BATCH if self.on_gpu else 1), {}
        for precision in ("fp32", "bf16"):
            if precision == "bf16" and not self.on_gpu and not cpu_has_bf16():
                found[precision] = None
                continue
            clip = random_teacher(self.args.teacher, self.device, half=precision == "bf16")
            size = clip.image_size
            pixels = torch.randn(batch, 3, size, size).to(self.device)
            encode = FrozenCLIP(clip).image_features
            name = f"teacher {precision}, {batch} images"
            found[precision] = (self._part(name, features_of(encode, pixels)), BATCH / batch)
        return found

    def rows_of(self, classes: int, student: str) -> dict[str, Row]:
        """Rows for a number of classes; their parts are not measured yet."""
        bench, image, teacher = self.bench, self.images[student], self.teachers["fp32"]
        few = classes if self.on_gpu else min(classes, OFFICIAL_CLASSES)
        name = f"77 tokens, {few} classes"
        if name not in self.parts:
            self._part(name, bench.official_coop(few))
        text_77 = (self.parts[name], classes / few)
        two_77 = (self.parts[name], 2 * classes / few)

        def own(name: str, make, *extra: int) -> tuple[Part, float]:
            return self._part(f"{name}, {classes} classes", make(classes, *extra)), 1

        coop, kdpl = own("coop here", bench.coop), own("kdpl here", bench.kdpl)
        fdbpl = own("fdbpl here", bench.fdbpl)
        kdpl_loss = own("loss of kdpl", lambda c: bench.loss_alone(c, bench.kdpl_loss(c), 1))
        fdbpl_loss = own("loss of fdbpl", lambda c: bench.loss_alone(c, bench.fdbpl_loss(c), 2))
        scaled = "" if self.on_gpu else f"teacher timed on 1 image, x {BATCH}"
        rows = {
            "coop official": Row("CoOp, official", (image, text_77), BATCH),
            "kdpl official": Row(
                "KDPL, official, fp32 teacher",
                (image, text_77, kdpl_loss, teacher), BATCH, scaled,
            ),
            "kdpl official bf16": Row(
                "KDPL, official, bf16 teacher", note="this CPU has no bf16 units"
            ),
            "fdbpl authors": Row(
                "FDBPL, its authors", (image, two_77, fdbpl_loss), BATCH
            ),
            "coop": Row("CoOp here, images each step", (image, coop), BATCH),
            "coop cached": Row("CoOp here, cached features", (coop,)),
            "kdpl": Row("KDPL here", (image, kdpl, teacher), BATCH, scaled),
            "fdbpl images": Row("FDBPL here, images each step", (image, fdbpl), BATCH),
            "fdbpl cached": Row("FDBPL here, cached features", (fdbpl,)),
            "fdbpl 32x8": Row(
                "FDBPL here, cached features, 32 x 8 regions",
                (own("fdbpl here 32 x 8", bench.fdbpl, 8 * BATCH),),
            ),
            "text 77": Row("Text tower alone, 77 tokens", (text_77,)),
            "text": Row("Text tower alone, here", (coop,)),
        }  # fmt: skip
        if self.teachers["bf16"]:
            rows["kdpl official bf16"] = replace(
                rows["kdpl official"],
                name="KDPL, official, bf16 teacher",
                parts=(image, text_77, kdpl_loss, self.teachers["bf16"]),
            )
        if classes in self.args.joint_classes and student == self.args.student[0]:
            small = f"batch {SMALL_BATCH}, as its recipe"
            maple, promptsrc = own("maple", bench.maple), own("promptsrc", bench.promptsrc)
            rows["maple"] = Row("MaPLe here", (maple,), SMALL_BATCH, small)
            rows["promptsrc"] = Row("PromptSRC here", (promptsrc,), SMALL_BATCH, small)
        return rows

    def check(self, classes: int) -> dict[str, float]:
        """The official CoOp step in one go, against the sum of its parts."""
        images = self.bench.pixels(BATCH)
        encode = features_of(FrozenCLIP(self.bench.clip).image_features, images)
        step = self.bench.official_coop(classes)
        started = time.process_time()
        encode()
        step()
        seconds = time.process_time() - started
        parts = [
            self.images[self.args.student[0]],
            (self.parts[f"77 tokens, {classes} classes"], 1),
        ]
        composed = sum(part.seconds * times for part, times in parts)
        return {
            "classes": classes,
            "whole_seconds": round(seconds, 3),
            "composed_seconds": round(composed, 3),
            "composed_by_whole": round(composed / seconds, 3),
        }


def cpu_has_bf16() -> bool:
    """Whether bfloat16 is worth timing: emulated, a product takes 90 times as long as fp32."""
    return bool({"avx512_bf16", "amx_bf16"} & set(report.cpu()["flags"]))


def ratios_of(rows: dict[str, dict[str, Any]], workers: int, on_gpu: bool) -> dict[str, float]:
    """How many times the official computation takes; of regions_32x8_vs_32, what 32 x 8 take."""
    found = {}
    for name, (above, below, number) in RATIOS.items():
        if rows[above].get(number) and rows[below].get(number):
            found[name] = round(rows[above][number] / rows[below][number], 2)

    def with_data(row: dict[str, Any]) -> float:  # loading runs beside a GPU's work, in workers
        loading = row["data_ms"] / workers
        return max(row["ms"], loading) if on_gpu else row["ms"] + row["data_ms"]

    official, ours = with_data(rows["coop official"]), with_data(rows["fdbpl cached"])
    found["fdbpl_vs_coop_official_with_data"] = round(official / ours, 2)
    return found


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 500, 1000])
    parser.add_argument(
        "--student", nargs="+", default=["ViT-B/16"], help=f"of {', '.join(STUDENTS)}"
    )
    parser.add_argument("--teacher", default="ViT-H-14", help="of open_clip")
    parser.add_argument("--precision", help="of the student; default: fp32, on a GPU fp16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each piece")
    parser.add_argument(
        "--budget", type=float, default=20, help="seconds after which a piece takes no more turns"
    )
    parser.add_argument("--workers", type=int, default=8, help="that load images beside a GPU")
    parser.add_argument(
        "--joint-classes", type=int, nargs="*", help="of MaPLe and PromptSRC; default: --classes"
    )
    parser.add_argument("--check", action="store_true", help="time the official step whole, too")
    report.add_flags(parser)
    args = parser.parse_args(argv)
    args.joint_classes = args.classes if args.joint_classes is None else args.joint_classes
    args.precision = args.precision or ("fp16" if args.device == "cuda" else "fp32")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    benchmark = Benchmark(args)
    composed = {
        (student, classes): benchmark.rows_of(classes, student)
        for student in args.student
        for classes in args.classes
    }
    measure(benchmark.parts.values(), args.rounds, args.budget, torch.device(args.device))
    one_file, all_rows, ratios = statistics.median(benchmark.data.cpu), [], []
    for (student, classes), rows in composed.items():
        found = {key: row.as_json(student, classes, one_file) for key, row in rows.items()}
        of_steps = ratios_of(found, args.workers, benchmark.on_gpu)
        ratios.append({"student": student, "classes": classes, **of_steps})
        all_rows += found.values()
    whole = benchmark.check(min(args.classes[0], OFFICIAL_CLASSES)) if args.check else None
    result = {
        "rows": all_rows,
        "ratios": ratios,
        "check": whole,
        "parts": [part.as_json() for part in benchmark.parts.values()],
    }
    options = {key: value for key, value in vars(args).items() if key != "json"}
    print(table.step_rows({"options": options, **result}))
    report.keep(args.json, "step_time", options, **result)
    return result


if __name__ == "__main__":
    main()
