"""Every config key this repository adds to Dassl's, with its default; recipes override them."""

from __future__ import annotations

from yacs.config import CfgNode


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to Dassl's default config, in place."""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base (first half of the classes), new (rest)
    cfg.DATASET.TEMPLATE = ""  # such as "a photo of a {}."; "" takes the data set's own

    cfg.TRAINER.COOP = CfgNode()
    cfg.TRAINER.COOP.N_CTX = 16  # context tokens; CTX_INIT, when given, decides instead
    cfg.TRAINER.COOP.CTX_INIT = ""  # words the context starts from; "" draws it at random
    cfg.TRAINER.COOP.CSC = False  # class-specific contexts
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"  # end, middle or front
    cfg.TRAINER.COOP.PREC = "fp16"  # fp32, fp16, amp or bf16; a CPU computes in fp32

    cfg.TRAINER.KDPL = CfgNode()
    cfg.TRAINER.KDPL.TEACHER = "open_clip:ViT-H-14-quickgelu/dfn5b"
    cfg.TRAINER.KDPL.TEACHER_PREC = "fp32"  # fp32, fp16 or bf16; a CPU computes in fp32

    cfg.TRAINER.FDBPL = CfgNode()
    # The teacher and its regions: what a dump contains, and what a run asks of its store.
    cfg.TRAINER.FDBPL.TEACHER = "open_clip:ViT-H-14-quickgelu/dfn5b"
    cfg.TRAINER.FDBPL.TEACHER_PREC = "fp32"
    cfg.TRAINER.FDBPL.STORE = ""  # folder that dump_teacher_logits.py wrote
    cfg.TRAINER.FDBPL.NUM_REGIONS = 50  # per image, on disk
    cfg.TRAINER.FDBPL.REGION_SCALE = (0.08, 0.936)  # region area / image area, low and high
    cfg.TRAINER.FDBPL.REGION_RATIO = (3 / 4, 4 / 3)  # width / height, low and high
    cfg.TRAINER.FDBPL.REGION_FLIP = 0.5  # probability of a horizontal flip
    cfg.TRAINER.FDBPL.STORE_KIND = "logits"  # logits, topk or features: what a dump keeps
    cfg.TRAINER.FDBPL.STORE_DTYPE = "float16"  # float16 or float32
    cfg.TRAINER.FDBPL.TOP_K = 10  # of kind topk: classes kept per region
    # What a training step does with them. A weight of 0 switches its term off.
    cfg.TRAINER.FDBPL.REGIONS_PER_STEP = 1  # of each image in the batch
    cfg.TRAINER.FDBPL.REGION_WEIGHT = "entropy"  # entropy: w = 1 - H(p) / ln C; none: w = 1
    cfg.TRAINER.FDBPL.NEGATIVE_INIT = "a photo of no"  # as many words as the positive context
    cfg.TRAINER.FDBPL.DISTILL_WEIGHT = 1.0
    cfg.TRAINER.FDBPL.REJECT_WEIGHT = 1.0
    cfg.TRAINER.FDBPL.SIMILARITY_WEIGHT = 0.001
    cfg.TRAINER.FDBPL.CASCADE_WEIGHT = 0.1
    cfg.TRAINER.FDBPL.CASCADE_MARGIN = 0.2
    cfg.TRAINER.FDBPL.LABEL_WEIGHT = 0.0  # cross-entropy with the true labels, ours
