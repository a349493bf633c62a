#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Train on the unlabelled images of a target data set and test on it. Settings: scripts/run.sh.
METHOD_SCRIPT=promptkd/xd_test.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" promptkd xd_test "$@"
