#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test hand-written prompts on the base classes; there is nothing to train. Settings: scripts/run.sh.
METHOD_SCRIPT=zsclip/base2new_train.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zsclip base2new_train "$@"
