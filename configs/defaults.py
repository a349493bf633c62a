"""Every config key this repository adds to Dassl's, with its default; recipes override them."""

from __future__ import annotations

from yacs.config import CfgNode

RENAMED = {  # old key -> today's
    "TRAINER.FDBPL.LABEL_WEIGHT": "TRAINER.DISTILL.LABEL_WEIGHT",
    "TRAINER.KDPL.CLASS_AGNOSTIC": "TRAINER.DISTILL.CLASS_AGNOSTIC",
    "TRAINER.KDPL.VOCABULARY": "TRAINER.DISTILL.VOCABULARY",
    "TRAINER.KDPL.K_MAX": "TRAINER.DISTILL.K_MAX",
}
DROPPED = (  # how fast a training was, nothing that its prompts need
    "MODEL.COMPILE",
    "TRAIN.CUDA_GRAPH",
    "TRAINER.FDBPL.CUT",
    "TRAINER.FDBPL.DECODED_DIR",
)


def as_of_today(saved: CfgNode) -> CfgNode:
    """A run's saved config under today's keys, in place."""

    def node_of(key: str) -> CfgNode:
        node = saved
        for part in key.split(".")[:-1]:
            node = node.setdefault(part, CfgNode())
        return node

    for old in (*RENAMED, *DROPPED):
        value = node_of(old).pop(old.rsplit(".", 1)[1], None)
        if value is not None and old in RENAMED:
            node_of(RENAMED[old])[RENAMED[old].rsplit(".", 1)[1]] = value
    return saved


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to Dassl's default config, in place; an old key's error names the new one."""
    for old, new in RENAMED.items():
        cfg.register_renamed_key(old, new)
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base (first half of the classes), new (rest)
    cfg.DATASET.TEMPLATE = ""  # such as "a photo of a {}."; "" takes the data set's own
    cfg.DATASET.STRICT = True  # refuse data that are incomplete; False: warn, use what is there
    # Own data (docs/OWN_DATA.md). Paths are absolute or relative to DATASET.ROOT.
    cfg.DATASET.FOLDER = ""  # ImageFolder: holds class folders, or train, val and test with them
    cfg.DATASET.CSV = ""  # CSV: file with the columns path, label and maybe split, classname

    # How prompts go through the text tower: fast, or reference (all 77 tokens of every prompt, by
    # CLIP's own layers, for comparison). Both give the same numbers.
    cfg.MODEL.TEXT_PATH = "fast"
    # Classes that are encoded at a time. All parts but one are computed again for their gradient:
    # memory stays bounded, and such a part takes half as much time again. 0: all at once, or as
    # many as 1.5 GiB of activations allow.
    cfg.MODEL.TEXT_CHUNK = 0

    # Share of the hand-written prompt in the class features at test; several values: a sweep.
    cfg.TEST.TEXT_INTERPOLATION = (0.0,)

    # Image features of the test images are kept, where the image tower is frozen.
    cfg.TEST.CACHE_FEATURES = True
    cfg.TEST.FEATURES_DIR = ""  # folder; "": DATASET.ROOT/.features

    cfg.TRAINER.COOP = CfgNode()
    cfg.TRAINER.COOP.N_CTX = 16  # context tokens; CTX_INIT, when given, decides instead
    cfg.TRAINER.COOP.CTX_INIT = ""  # words the context starts from; "" draws it at random
    cfg.TRAINER.COOP.CSC = False  # class-specific contexts
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"  # end, middle or front
    cfg.TRAINER.COOP.PREC = "fp16"  # fp32, fp16, amp or bf16; a CPU has fp32 and bf16

    cfg.TRAINER.COCOOP = CfgNode()
    cfg.TRAINER.COCOOP.N_CTX = 16  # context tokens; CTX_INIT, when given, decides instead
    cfg.TRAINER.COCOOP.CTX_INIT = ""
    cfg.TRAINER.COCOOP.PREC = "fp16"

    cfg.TRAINER.VPT = CfgNode()
    cfg.TRAINER.VPT.N_CTX_VISION = 2  # prompt tokens beside the patches
    cfg.TRAINER.VPT.PROMPT_DEPTH_VISION = 1  # image layers that get own prompts; 1: the first only
    cfg.TRAINER.VPT.CTX_INIT = "a photo of a"  # the fixed words before each class name
    cfg.TRAINER.VPT.PREC = "fp16"

    cfg.TRAINER.IVLP = CfgNode()
    cfg.TRAINER.IVLP.N_CTX_VISION = 2
    cfg.TRAINER.IVLP.N_CTX_TEXT = 2  # learned; the other words of CTX_INIT stay as they are
    cfg.TRAINER.IVLP.CTX_INIT = "a photo of a"
    cfg.TRAINER.IVLP.PROMPT_DEPTH_VISION = 9  # 0: language prompts only
    cfg.TRAINER.IVLP.PROMPT_DEPTH_TEXT = 9  # at least 1
    cfg.TRAINER.IVLP.PREC = "fp16"

    cfg.TRAINER.MAPLE = CfgNode()
    cfg.TRAINER.MAPLE.N_CTX = 2  # learned; the other words of CTX_INIT stay as they are
    cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 9  # layers of both towers that get own prompts; 1: the first
    cfg.TRAINER.MAPLE.PREC = "fp16"

    cfg.TRAINER.PROMPTSRC = CfgNode()
    cfg.TRAINER.PROMPTSRC.N_CTX_VISION = 4
    cfg.TRAINER.PROMPTSRC.N_CTX_TEXT = 4
    cfg.TRAINER.PROMPTSRC.CTX_INIT = "a photo of a"
    cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION = 9
    cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT = 9
    cfg.TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT = 25.0
    cfg.TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT = 10.0
    cfg.TRAINER.PROMPTSRC.GPA_MEAN = 15.0  # Gaussian over epochs that weighs their prompts
    cfg.TRAINER.PROMPTSRC.GPA_STD = 1.0
    cfg.TRAINER.PROMPTSRC.PREC = "fp16"

    cfg.TRAINER.PROMPTKD = CfgNode()
    cfg.TRAINER.PROMPTKD.N_CTX_VISION = 4  # prompts of the student's image tower
    cfg.TRAINER.PROMPTKD.PROMPT_DEPTH_VISION = 9
    cfg.TRAINER.PROMPTKD.TEACHER_NAME = "ViT-L/14"  # backbone of the teacher
    cfg.TRAINER.PROMPTKD.TEACHER_DIR = ""  # run folder of PromptSRC that tuned the teacher
    cfg.TRAINER.PROMPTKD.TEACHER_EPOCH = -1  # of its checkpoint; negative: the newest
    cfg.TRAINER.PROMPTKD.TEMPERATURE = 1.0
    cfg.TRAINER.PROMPTKD.KD_WEIGHT = 1000.0
    # True: all training images of all classes, unlabelled, as its authors do (transductive).
    # False: the few-shot images and the classes of the run, as every other method (inductive).
    cfg.TRAINER.PROMPTKD.TRANSDUCTIVE = True
    cfg.TRAINER.PROMPTKD.PREC = "fp16"

    cfg.TRAINER.KDPL = CfgNode()
    cfg.TRAINER.KDPL.TEACHER = "open_clip:ViT-H-14-quickgelu/dfn5b"
    cfg.TRAINER.KDPL.TEACHER_PREC = "fp32"  # fp32, fp16 or bf16

    # Of every trainer that learns from a teacher: <M>_KDPL and <M>_FDBPL. All off by default.
    cfg.TRAINER.DISTILL = CfgNode()
    cfg.TRAINER.DISTILL.LABEL_WEIGHT = 0.0  # cross-entropy with the true labels, beside the teacher
    cfg.TRAINER.DISTILL.LABEL_LOGIT = 0.0  # added to the teacher's logit of the true class
    cfg.TRAINER.DISTILL.UNIFORM_TEACHER = False  # control: a teacher that knows nothing
    # Class-agnostic distillation (KDPL-CA), also of stored regions (<M>_FDBPL, kind features).
    cfg.TRAINER.DISTILL.CLASS_AGNOSTIC = False
    cfg.TRAINER.DISTILL.VOCABULARY = ""  # file with one word or name a line
    cfg.TRAINER.DISTILL.K_MAX = 1000  # words of a step: those of the highest mean probability

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
    # Images are compared with those of the dump. True: one whose size and time of change are as
    # they were then is not read, even if the inode's time says that it was written since.
    cfg.TRAINER.FDBPL.TRUST_MTIME = False
    # What a training step does with them. A weight of 0 switches its term off.
    cfg.TRAINER.FDBPL.REGIONS_PER_STEP = 1  # of each image in the batch
    # Hosts without image prompts: features of the regions are computed once, beside the store.
    cfg.TRAINER.FDBPL.CACHE_FEATURES = True
    cfg.TRAINER.FDBPL.REGION_WEIGHT = "entropy"  # entropy: w = 1 - H(p) / ln C; none: w = 1
    cfg.TRAINER.FDBPL.NEGATIVE_INIT = "a photo of no"  # as many words as the positive context
    cfg.TRAINER.FDBPL.DISTILL_WEIGHT = 1.0
    cfg.TRAINER.FDBPL.REJECT_WEIGHT = 1.0
    cfg.TRAINER.FDBPL.SIMILARITY_WEIGHT = 0.001
    cfg.TRAINER.FDBPL.CASCADE_WEIGHT = 0.1
    cfg.TRAINER.FDBPL.CASCADE_MARGIN = 0.2
    # Kind features: epochs of tuning the teacher's own prompt on the stored regions first; 0: none.
    cfg.TRAINER.FDBPL.TUNE_TEACHER_EPOCHS = 0
    cfg.TRAINER.FDBPL.TUNE_TEACHER_LR = 0.002
