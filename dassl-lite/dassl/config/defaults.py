"""Default values of every engine key. Method keys (TRAINER.<METHOD>.*) belong to the methods."""

from __future__ import annotations

DEFAULTS: dict = {
    "VERSION": 1,
    "OUTPUT_DIR": "./output",  # log, checkpoints, tensorboard
    "RESUME": "",  # run folder to continue from; "" looks into OUTPUT_DIR
    "SEED": -1,  # 0 and up seeds the run, negative leaves it unseeded
    "USE_CUDA": True,  # where CUDA is available
    "VERBOSE": True,
    "INPUT": {
        "SIZE": (224, 224),  # height, width
        "INTERPOLATION": "bilinear",  # bilinear, bicubic or nearest
        "TRANSFORMS": (),  # names from dassl.data.transforms
        "NO_TRANSFORM": False,  # hand out PIL images
        "PIXEL_MEAN": [0.485, 0.456, 0.406],  # ImageNet
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,  # random_crop, pixels
        "RRCROP_SCALE": (0.08, 1.0),  # random_resized_crop, fraction of the area
        "CUTOUT_N": 1,  # cutout: holes
        "CUTOUT_LEN": 16,  # cutout: side in pixels
        "GN_MEAN": 0.0,  # gaussian_noise
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,  # kept so that configs merge; randaugment is not implemented
        "RANDAUGMENT_M": 10,
        "COLORJITTER_B": 0.4,  # brightness
        "COLORJITTER_C": 0.4,  # contrast
        "COLORJITTER_S": 0.4,  # saturation
        "COLORJITTER_H": 0.1,  # hue
        "RGS_P": 0.2,  # randomgrayscale, probability
        "GB_P": 0.5,  # gaussian_blur, probability
        "GB_K": 21,  # gaussian_blur, kernel side, odd
    },
    "DATASET": {
        "ROOT": "",
        "NAME": "",
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,  # labelled images in all (semi-supervised sets)
        "NUM_SHOTS": -1,  # training images per class; below 1 keeps all
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "K_TRANSFORMS": 1,  # views per training image
        "RETURN_IMG0": False,  # add the image without augmentation as img0
        "TRAIN_X": {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16},
        "TRAIN_U": {
            "SAME_AS_X": True,  # use TRAIN_X's four values
            "SAMPLER": "RandomSampler",
            "BATCH_SIZE": 32,
            "N_DOMAIN": 0,
            "N_INS": 16,
        },
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    },
    "MODEL": {
        "INIT_WEIGHTS": "",  # checkpoint to start from
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {
            "NAME": "",
            "HIDDEN_LAYERS": (),
            "ACTIVATION": "relu",
            "BN": True,
            "DROPOUT": 0.0,
        },
    },
    "OPTIM": {
        "NAME": "adam",  # adam, amsgrad, sgd, rmsprop, radam or adamw
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        "STAGED_LR": False,  # children outside NEW_LAYERS get LR * BASE_LR_MULT
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",  # single_step, multi_step or cosine
        "STEPSIZE": (-1,),  # epochs; single_step: the last one, below 1 means MAX_EPOCH
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,  # above 0 switches warm-up on
        "WARMUP_TYPE": "linear",  # linear or constant
        "WARMUP_CONS_LR": 1e-5,
        "WARMUP_MIN_LR": 1e-5,  # linear: learning rate of the first epoch
        "WARMUP_RECOUNT": True,  # after warm-up the schedule starts at its own epoch 0
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": 0,  # epochs between saves; 0 saves after the last epoch alone
        "PRINT_FREQ": 10,  # batches between log lines
        "COUNT_ITER": "train_x",  # TrainerXU: train_x, train_u or smaller_one sets epoch length
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,  # confusion matrix to OUTPUT_DIR/cmat.pt
        "NO_TEST": False,
        "SPLIT": "test",  # test or val: where the final model is measured
        "FINAL_MODEL": "last_step",  # last_step or best_val
    },
    "TRAINER": {"NAME": ""},
}
