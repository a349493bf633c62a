#!/usr/bin/env bash
# DATASET SHOTS [SEED ...] [KEY VALUE ...]: Train with SHOTS images per class on all classes; seeds 1 2 3. Settings: scripts/run.sh.
METHOD_SCRIPT=maple_fdbpl/few_shot.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" maple_fdbpl few_shot "$@"
