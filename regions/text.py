"""Text features of other classes or prompts than a store's, kept beside it: <store>.text/.

A store of kind features serves every class list and template; what it lacks is the teacher's word
on the classes. The teacher's text tower says it once, and later runs read it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from regions.files import (
    RegionStoreError,
    TensorSpec,
    canonical_json,
    check_values,
    encode_tensors,
    map_file,
    parse_tensors,
    tensors_checksum,
    write_whole,
)
from regions.store import RegionStore, RunNeeds

# class names and template -> unit text features (C, D) and the digest of the teacher's weights
TextTower = Callable[[Sequence[str], str], tuple[np.ndarray, str]]


def with_text_of_run(store: RegionStore, needs: RunNeeds, tower: TextTower) -> RegionStore:
    """The store with logits for a run's classes and template, where its kind allows them.

    Raises:
        RegionStoreError: the run's teacher is not the store's.
    """
    classes_are_there = not Counter(needs.classnames) - Counter(store.classnames)
    if store.spec.kind != "features" or (classes_are_there and needs.template == store.template):
        return store
    store.check_teacher(needs.teacher, needs.teacher_digest)
    path = text_path(store, needs.classnames, needs.template)
    shape = (len(needs.classnames), store.spec.feature_width)
    text = _read(path, shape)
    if text is None:
        print(
            f"Text features of {len(needs.classnames)} classes for {needs.template!r} are computed "
            f"with the text tower of {needs.teacher}, once, and kept as {path}"
        )
        text, digest = tower(needs.classnames, needs.template)
        store.check_teacher(needs.teacher, digest)
        content = encode_tensors({"text": np.ascontiguousarray(text, "<f4")}, {"key": path.stem})
        with contextlib.suppress(OSError):  # a store that cannot be written beside: once per run
            path.parent.mkdir(exist_ok=True)
            write_whole(path, content)
    return store.with_text(needs.classnames, needs.template, text)


def text_path(store: RegionStore, classnames: Sequence[str], template: str) -> Path:
    """Where text features are kept, by teacher, template and class names."""
    key = {
        "teacher": store.spec.teacher_digest,
        "template": template,
        "classnames": list(classnames),
    }
    name = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    return store.path.with_name(store.path.name + ".text") / f"{name}.safetensors"


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Text features from a file; None when it is absent or damaged, as it can be made again."""
    expected = {"text": TensorSpec("F32", shape, -1.01, 1.01)}
    try:
        content = map_file(path)
        tensors, checksum = parse_tensors(path, content, expected, {"key": path.stem}, "text")
        check_values(path, tensors, expected)
    except RegionStoreError:
        return None
    return tensors["text"].copy() if tensors_checksum(tensors) == checksum else None
