"""Text features of other classes or prompts than a store's, kept beside it: <store>.text/.

A store of kind features serves every class list and template; what it lacks is the teacher's word
on the classes. The teacher's text tower says it once, and later runs read it.

A set of text features has a variant. The raw one, "", is what the text tower gives for the
hand-written template. Any other name stands for features made in another way for the same classes
and template, such as a prompt of the teacher that was tuned on the stored regions; the raw set
stays as it is. Letters: C classes, D width of a feature.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from files import write_whole
from regions.store.reader import RegionStore, RunNeeds
from regions.store.tensors import (
    METADATA_KEY,
    RegionStoreError,
    TensorSpec,
    canonical_json,
    check_values,
    encode_tensors,
    header_length,
    map_file,
    parse_tensors,
    tensors_checksum,
)

RAW = ""  # the variant of a hand-written template as the text tower reads it
MAX_VARIANT = 100  # characters

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
    text = read_text(store, needs.classnames, needs.template)
    if text is None:
        path = text_path(store, needs.classnames, needs.template)
        print(
            f"Text features of {len(needs.classnames)} classes for {needs.template!r} are computed "
            f"with the text tower of {needs.teacher}, once, and kept as {path}"
        )
        text, digest = tower(needs.classnames, needs.template)
        store.check_teacher(needs.teacher, digest)
        with contextlib.suppress(OSError):  # a store that cannot be written beside: once per run
            write_text(store, needs.classnames, needs.template, text)
    return store.with_text(needs.classnames, needs.template, text)


def read_text(
    store: RegionStore, classnames: Sequence[str], template: str, variant: str = RAW
) -> np.ndarray | None:
    """Unit text features (C, D) float32 that write_text kept.

    None when there are none, or damaged ones: they can be made again.
    """
    path = text_path(store, classnames, template, variant)
    expected = _expected(store, classnames)
    try:
        content = map_file(path)
        promise = _promise(path, classnames, template, variant)
        tensors, checksum = parse_tensors(path, content, expected, promise, "text")
        check_values(path, tensors, expected)
    except RegionStoreError:
        return None
    return tensors["text"].copy() if tensors_checksum(tensors) == checksum else None


def write_text(
    store: RegionStore,
    classnames: Sequence[str],
    template: str,
    text: np.ndarray,
    variant: str = RAW,
) -> Path:
    """Keep text features beside a store, in place of earlier ones of the same variant.

    Args:
        text: (C, D), unit rows, in the order of classnames.
        variant: "" for what the text tower gives, else a name for how they were made.
    Returns:
        The file, which is whole or absent.
    Raises:
        RegionStoreError: a value is not finite or out of range.
        ValueError: the store is of another kind, the shape is wrong, or the name is too long.
        OSError: the folder beside the store cannot be written.
    """
    if store.spec.kind != "features":
        raise ValueError(f"{store.path} holds {store.spec.kind}: only kind features takes text.")
    path, expected = text_path(store, classnames, template, variant), _expected(store, classnames)
    if text.shape != expected["text"].shape:
        raise ValueError(f"text features of shape {text.shape} are not {expected['text'].shape}.")
    tensors = {"text": np.ascontiguousarray(text, "<f4")}
    check_values(path, tensors, expected)
    promise = _promise(path, classnames, template, variant)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, encode_tensors(tensors, promise))
    return path


def text_path(
    store: RegionStore, classnames: Sequence[str], template: str, variant: str = RAW
) -> Path:
    """Where text features are kept, by teacher, template, class names and variant."""
    if len(variant) > MAX_VARIANT:
        raise ValueError(f"variant {variant[:40]!r}... has more than {MAX_VARIANT} characters.")
    key = {
        "teacher": store.spec.teacher_digest,
        "template": template,
        "classnames": list(classnames),
    }
    if variant:
        key["variant"] = variant
    name = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    return _folder(store) / f"{name}.safetensors"


class KeptText(NamedTuple):
    """What is known of a set of text features of a variant, without its class names at hand."""

    variant: str
    template: str
    num_classes: int
    file: str


def kept_variants(store: RegionStore) -> list[KeptText]:
    """The text features beside a store that are not the raw ones, by their files' headers."""
    found = [_kept(path) for path in sorted(_folder(store).glob("*.safetensors"))]
    return sorted(kept for kept in found if kept is not None)


def _kept(path: Path) -> KeptText | None:
    try:
        content = map_file(path)
        header = json.loads(content[8 : header_length(path, content)].decode())
        promise = json.loads(header["__metadata__"][METADATA_KEY])
        kept = KeptText(promise["variant"], promise["template"], promise["classes"], path.name)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return kept if [type(value) for value in kept] == [str, str, int, str] else None


def _folder(store: RegionStore) -> Path:
    return store.path.with_name(store.path.name + ".text")


def _expected(store: RegionStore, classnames: Sequence[str]) -> dict[str, TensorSpec]:
    shape = (len(classnames), store.spec.feature_width)
    return {"text": TensorSpec("F32", shape, -1.01, 1.01)}


def _promise(path: Path, classnames: Sequence[str], template: str, variant: str) -> dict[str, Any]:
    """What the file's metadata says; of a variant also what kept_variants tells of it."""
    if not variant:
        return {"key": path.stem}
    about = {"variant": variant, "template": template, "classes": len(classnames)}
    return {"key": path.stem, **about}
