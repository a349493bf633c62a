#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test hand-written prompts on a target data set. Settings: scripts/run.sh.
METHOD_SCRIPT=zsclip/xd_test.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zsclip xd_test "$@"
