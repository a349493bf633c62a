#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Store the teacher's logits on regions of the base images. Settings: scripts/run.sh.
METHOD_SCRIPT=ivlp_fdbpl/dump.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" ivlp_fdbpl base2new_dump "$@"
