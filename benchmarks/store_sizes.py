"""What each kind of region store takes on disk and loses: the table in docs/REGION_STORE.md.

    python -m benchmarks.store_sizes --json benchmarks/results/<machine>/store_sizes.json

Size per image: files of a whole store, 50 regions an image. Errors: of the teacher's probability p
and of the region weight w that a run reads, against both from the teacher's float32 logits. The
teacher is CLIP-like: unit features of width 1024 (ViT-H/14), logit scale 100, an image near the
text of its class and regions from certain to hopeless; a real teacher's errors depend on how sure
it is. Letters: B regions, C classes, D width of a feature.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.store_io import REGIONS, TOP_K, make_spec
from regions.store import RegionStore
from regions.store.kinds import KINDS, VALUES, encode
from regions.store.writer import StoreWriter
from regions.tools.survey import weights_of

WIDTH = 1024
SCALE = 100.0
IMAGES = 82  # one shard of 4096 regions


def teacher(regions: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit image features (B, D) and text features (C, D), and the logits (B, C), float32."""
    rng = np.random.default_rng(classes)
    text_CD = unit(rng.normal(size=(classes, WIDTH)))
    labels_B = rng.integers(0, classes, regions)
    nearness_B1 = rng.uniform(0, 0.35, (regions, 1))  # cosine with the text of its class
    image_BD = unit(rng.normal(size=(regions, WIDTH)))
    image_BD = unit(image_BD + nearness_B1 * text_CD[labels_B])
    logits_BC = SCALE * image_BD @ text_CD.T
    return tuple(array.astype(np.float32) for array in (image_BD, text_CD, logits_BC))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def measure(folder: Path, kind: str, dtype: str, classes: int) -> dict[str, Any]:
    image_BD, text_CD, logits_BC = teacher(IMAGES * REGIONS, classes)
    features = kind == "features"
    spec = replace(
        make_spec(IMAGES, "topk" if kind == "topk" else "logits", classes),
        kind=kind,
        dtype=dtype,
        feature_width=WIDTH if features else 0,
        logit_scale=SCALE if features else 0.0,
    )
    path = folder / f"{kind}_{dtype}_{classes}"
    with StoreWriter(path, spec, shard_images=IMAGES) as writer:
        kept = encode(spec, image_BD if features else logits_BC, [""] * len(image_BD))
        rows = (IMAGES, REGIONS)
        shaped = {name: tensor.reshape(*rows, *tensor.shape[1:]) for name, tensor in kept.items()}
        boxes, flips = np.full((*rows, 4), 0.25, np.float32), np.zeros(rows, np.uint8)
        writer.write(0, {"boxes": boxes, "flips": flips, **shaped})
        if features:
            writer.write_text(text_CD)
        writer.finish()
    store = RegionStore.open(path)
    found_BC = store.read_shard(0).logits.reshape(logits_BC.shape)
    shard = (path / store.shards[0].file).stat().st_size
    p_error_BC = np.abs(_p(found_BC) - _p(logits_BC))
    w_error_B = np.abs(weights_of(found_BC) - weights_of(logits_BC))
    result = {
        "kind": kind,
        "dtype": dtype,
        "classes": classes,
        "bytes_per_image": round(shard / IMAGES),
        "p_error_most": float(p_error_BC.max()),
        "w_error_most": float(w_error_B.max()),
        "w_error_mean": float(w_error_B.mean()),
    }
    if kind == "topk":
        best_BK = np.argsort(-logits_BC, axis=-1, kind="stable")[:, :TOP_K]
        result["p_error_most_of_kept"] = float(np.take_along_axis(p_error_BC, best_BK, 1).max())
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("kind", "values", "classes", "kB per image", "p", "w", "w, mean")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        kept = row.get("p_error_most_of_kept")
        p = f"{row['p_error_most']:.0e}" + (f" (kept: {kept:.0e})" if kept is not None else "")
        lines.append(
            f"| `{row['kind']}` | {row['dtype']} | {row['classes']} "
            f"| {row['bytes_per_image'] / 1000:.1f} | {p} "
            f"| {row['w_error_most']:.0e} | {row['w_error_mean']:.0e} |"
        )
    return "\n".join(lines)


def _p(logits_BC: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits_BC).softmax(-1).numpy()


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 500, 1000])
    report.add_flags(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="store_sizes_") as folder:
        rows = [
            measure(Path(folder), kind, dtype, classes)
            for kind in KINDS
            for dtype in VALUES
            for classes in args.classes
        ]
    print(table(rows))
    report.keep(args.json, "store_sizes", {"classes": args.classes}, rows)
    return rows


if __name__ == "__main__":
    main()
