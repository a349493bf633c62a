#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test hand-written prompts on imagenet (or toy_shapes); there is nothing to train. Settings: scripts/run.sh.
METHOD_SCRIPT=zsclip/xd_train.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zsclip xd_train "$@"
