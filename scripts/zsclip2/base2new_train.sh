#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test hand-written prompts on the base classes; there is nothing to train. Settings: scripts/run.sh.
METHOD_SCRIPT=zsclip2/base2new_train.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zsclip2 base2new_train "$@"
