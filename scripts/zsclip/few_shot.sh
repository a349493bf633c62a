#!/usr/bin/env bash
# DATASET SHOTS [SEED ...] [KEY VALUE ...]: Test hand-written prompts on all classes; SHOTS changes nothing. Settings: scripts/run.sh.
METHOD_SCRIPT=zsclip/few_shot.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zsclip few_shot "$@"
