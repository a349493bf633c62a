#!/usr/bin/env bash
# A method base-to-new over seeds: (dump,) train, test, and a table. See run_protocol.py.
#
#   bash scripts/base2new.sh METHOD DATASET [SEED ...] [KEY VALUE ...]
#
# Seeds are 1 2 3 where none is given. METHOD, DATASET and the environment: scripts/run.sh.
set -euo pipefail

if (($# < 2)); then
    echo "usage: bash scripts/base2new.sh METHOD DATASET [SEED ...] [KEY VALUE ...]" >&2
    exit 2
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$1" base2new "${@:2}"
