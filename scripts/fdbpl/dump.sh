#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Store the teacher's logits on regions. Settings: scripts/run.sh.
METHOD_SCRIPT=fdbpl/dump.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fdbpl dump "$@"
