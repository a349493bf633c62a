#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Train on the base classes and test on them. Settings: scripts/run.sh.
METHOD_SCRIPT=promptsrc/base2new_train.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" promptsrc base2new_train "$@"
