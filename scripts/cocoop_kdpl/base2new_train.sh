#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Train on the base classes and test on them. Settings: scripts/run.sh.
METHOD_SCRIPT=cocoop_kdpl/base2new_train.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" cocoop_kdpl base2new_train "$@"
