"""scripts/dump_slurm.py: an array of jobs shares a dump, here with submitit's local executor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import region_world as world
import torch
from clip.model import CLIP

from regions.store import RegionStore

REPO = Path(__file__).resolve().parents[1]


def dump_slurm(root: Path, *flags: str, jobs: int) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "scripts" / "dump_slurm.py"), "--cluster", "local"]
    command += ["--jobs", str(jobs), "--gpus", "0", "--logs", str(root / "logs"), "--"]
    command += ["--root", str(root), "--seed", "1", "--store", str(root / "store"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


def test_two_jobs_write_one_store(tmp_path):
    for item in world.draw_images(tmp_path):
        image = Path(item.impath)
        for split in ("train", "test"):
            folder = tmp_path / "own" / split / image.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder)
    teacher = tmp_path / "tiny.pt"
    torch.manual_seed(0)
    torch.save(CLIP(16, 12, 1, 64, 6, 77, 49408, 64, 1, 1).state_dict(), teacher)
    flags = ["--shard-images", "1", "DATASET.NAME", "ImageFolder", "DATASET.FOLDER", "own"]
    keys = ["DATASET.TEMPLATE", "a {}.", "TRAINER.FDBPL.NUM_REGIONS", "5"]
    done = dump_slurm(tmp_path, *flags, *keys, "TRAINER.FDBPL.TEACHER", str(teacher), jobs=2)
    assert done.returncode == 0, done.stderr
    store = RegionStore.open(tmp_path / "store")
    assert len(store) == 7 and len(store.shards) == 7
    assert done.stdout.startswith("Submitted ") and len(list((tmp_path / "logs").iterdir())) >= 2
