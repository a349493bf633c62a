#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test on the new classes what base2new_train.sh trained. Settings: scripts/run.sh.
METHOD_SCRIPT=cocoop_kdpl/base2new_test.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" cocoop_kdpl base2new_test "$@"
