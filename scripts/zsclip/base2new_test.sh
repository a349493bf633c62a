#!/usr/bin/env bash
# DATASET SEED [KEY VALUE ...]: Test hand-written prompts on the new classes. Settings: scripts/run.sh.
METHOD_SCRIPT=zsclip/base2new_test.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zsclip base2new_test "$@"
