#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test on the new classes what base2new_train.sh trained. Settings: scripts/run.sh.
METHOD_SCRIPT=coop_fdbpl/base2new_test.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" coop_fdbpl base2new_test "$@"
