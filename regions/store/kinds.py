"""What a store keeps of the teacher for each region: all logits, the best k, or the image feature.

Logits are kept relative to their log-sum-exp, that is as log-probabilities: near 0, where the
likely classes are, float16 is finest. So p comes out ten times nearer than from rounded logits.

Letters: B regions (any leading axes), C classes of the store, T classes of a run, K kept classes,
D width of an image feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regions.store.tensors import DTYPES, RegionStoreError, Tensors, TensorSpec

if TYPE_CHECKING:
    from regions.store.spec import RegionSpec

VALUES = {"float16": "F16", "float32": "F32"}  # RegionSpec.dtype -> dtype of the values
LARGEST = 65504.0  # of float16; a float32 store keeps to it, so that every kind converts
LOG_P = (-LARGEST, 0.01)  # range of a log-probability, rounding included


class Kind(NamedTuple):
    """One way of keeping the teacher's word."""

    noun: str  # what the teacher must give for it, per region
    width: Callable[[RegionSpec], int]  # how many numbers that is
    tensors: Callable[[RegionSpec], dict[str, TensorSpec]]  # per region
    encode: Callable[[RegionSpec, np.ndarray], Tensors]  # float32 (B, width) -> tensors (B, ...)
    # tensors (B, ...), columns (T,) or None for all, text features (C, D) or None -> logits (B, T)
    decode: Callable[[RegionSpec, Tensors, np.ndarray | None, np.ndarray | None], np.ndarray]


def encode(spec: RegionSpec, teacher_BX: np.ndarray, images_B: Sequence[str]) -> Tensors:
    """What the store keeps of a teacher's output.

    Args:
        teacher_BX: float32 logits (B, C), or unit image features (B, D) for kind features.
        images_B: the image of each region, for the message.
    Raises:
        RegionStoreError: an output is not finite, or too large for the store; names the image.
    """
    kind = KINDS[spec.kind]
    if teacher_BX.shape != (len(images_B), kind.width(spec)):
        raise RegionStoreError(
            f"the teacher gives {kind.noun} of shape {teacher_BX.shape} for {len(images_B)} "
            f"regions, but the store keeps {kind.width(spec)} values of a region. Was the teacher "
            "loaded with the data set's classes?"
        )
    bad = np.argwhere(~(np.abs(teacher_BX) < LARGEST))
    if len(bad):
        row, column = bad[0]
        value = teacher_BX[row, column]
        why = (
            "float16 ends at 65504: is the teacher's logit scale right?"
            if np.isfinite(value)
            else "Set TRAINER.FDBPL.TEACHER_PREC fp32, and look at the image and the weights."
        )
        raise RegionStoreError(
            f"value {column} of the teacher's {kind.noun} for a region of {images_B[row]} is "
            f"{value}. {why}"
        )
    tensors = kind.tensors(spec)
    encoded = kind.encode(spec, np.asarray(teacher_BX, np.float32))
    return {name: np.asarray(encoded[name], DTYPES[tensors[name].dtype]) for name in tensors}


def decode(
    spec: RegionSpec,
    tensors: Tensors,
    columns_T: np.ndarray | None = None,
    text_CD: np.ndarray | None = None,
) -> np.ndarray:
    """The teacher's logits (B, T) float32, at its own logit scale, of stored tensors (B, ...)."""
    return KINDS[spec.kind].decode(spec, tensors, columns_T, text_CD)


def _log_probabilities(logits_BC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (B, C) and the log-sum-exp (B,) that was taken off, both float64."""
    wide_BC = logits_BC.astype(np.float64)
    top_B1 = wide_BC.max(-1, keepdims=True)
    lse_B1 = top_B1 + np.log(np.exp(wide_BC - top_B1).sum(-1, keepdims=True))
    return np.clip(wide_BC - lse_B1, *LOG_P), lse_B1[..., 0]


LSE = TensorSpec("F32", (), -2 * LARGEST, 2 * LARGEST)


# --- logits: of every class -----------------------------------------------------------------


def _logits_tensors(spec: RegionSpec) -> dict[str, TensorSpec]:
    shape = (len(spec.classnames),)
    return {"logits": TensorSpec(VALUES[spec.dtype], shape, *LOG_P), "lse": LSE}


def _logits_encode(spec: RegionSpec, logits_BC: np.ndarray) -> Tensors:
    log_p_BC, lse_B = _log_probabilities(logits_BC)
    return {"logits": log_p_BC, "lse": lse_B}


def _logits_decode(
    spec: RegionSpec, tensors: Tensors, columns_T: np.ndarray | None, _text: np.ndarray | None
) -> np.ndarray:
    log_p = tensors["logits"] if columns_T is None else tensors["logits"][..., columns_T]
    return log_p.astype(np.float32) + tensors["lse"][..., None]


# --- topk: of the likeliest classes ---------------------------------------------------------


def _topk_tensors(spec: RegionSpec) -> dict[str, TensorSpec]:
    num_classes, shape = len(spec.classnames), (spec.top_k,)
    return {
        "values": TensorSpec(VALUES[spec.dtype], shape, *LOG_P),  # falling
        "classes": TensorSpec("U16" if num_classes <= 2**16 else "I32", shape, 0, num_classes - 1),
        "lse": LSE,
    }


def _topk_encode(spec: RegionSpec, logits_BC: np.ndarray) -> Tensors:
    log_p_BC, lse_B = _log_probabilities(logits_BC)
    classes_BK = np.argsort(-log_p_BC, axis=-1, kind="stable")[..., : spec.top_k]
    values_BK = np.take_along_axis(log_p_BC, classes_BK, -1)
    return {"values": values_BK, "classes": classes_BK, "lse": lse_B}


def _topk_decode(
    spec: RegionSpec, tensors: Tensors, columns_T: np.ndarray | None, _text: np.ndarray | None
) -> np.ndarray:
    """The classes that were not kept share the rest of the probability evenly.

    None of them gets more than the last kept class has. Exact when every class is kept.
    """
    values_BK, num_classes = tensors["values"].astype(np.float32), len(spec.classnames)
    p_BK = np.exp(values_BK)
    rest_B1 = np.maximum(1 - p_BK.sum(-1, keepdims=True), 1e-7)
    share_B1 = np.minimum(np.log(rest_B1 / max(1, num_classes - spec.top_k)), values_BK[..., -1:])
    log_p_BC = np.repeat(share_B1, num_classes, -1)
    np.put_along_axis(log_p_BC, tensors["classes"].astype(np.int64), values_BK, -1)
    log_p_BC += tensors["lse"][..., None]
    return log_p_BC if columns_T is None else log_p_BC[..., columns_T]


# --- features: the image itself, for any classes ---------------------------------------------


def _features_tensors(spec: RegionSpec) -> dict[str, TensorSpec]:
    return {"features": TensorSpec(VALUES[spec.dtype], (spec.feature_width,), -1.01, 1.01)}


def _features_encode(spec: RegionSpec, features_BD: np.ndarray) -> Tensors:
    return {"features": features_BD}


def _features_decode(
    spec: RegionSpec, tensors: Tensors, columns_T: np.ndarray | None, text_CD: np.ndarray | None
) -> np.ndarray:
    assert text_CD is not None, "features need the text features of the classes"
    text_TD = text_CD if columns_T is None else text_CD[columns_T]
    scale = np.float32(spec.logit_scale)
    return scale * (tensors["features"].astype(np.float32) @ text_TD.T)


KINDS = {
    "logits": Kind(
        noun="logits",
        width=lambda spec: len(spec.classnames),
        tensors=_logits_tensors,
        encode=_logits_encode,
        decode=_logits_decode,
    ),
    "topk": Kind(
        noun="logits",
        width=lambda spec: len(spec.classnames),
        tensors=_topk_tensors,
        encode=_topk_encode,
        decode=_topk_decode,
    ),
    "features": Kind(
        noun="image features",
        width=lambda spec: spec.feature_width,
        tensors=_features_tensors,
        encode=_features_encode,
        decode=_features_decode,
    ),
}
