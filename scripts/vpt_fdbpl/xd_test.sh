#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test on a target data set what xd_train.sh trained. Settings: scripts/run.sh.
METHOD_SCRIPT=vpt_fdbpl/xd_test.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" vpt_fdbpl xd_test "$@"
