#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Train on all classes of imagenet (or toy_shapes) and test on them. Settings: scripts/run.sh.
METHOD_SCRIPT=coop_kdpl/xd_train.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" coop_kdpl xd_train "$@"
