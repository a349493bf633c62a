#!/usr/bin/env bash
# A method base-to-new over seeds: (dump,) train, test, and what came of it.
#
#   bash scripts/base2new.sh METHOD DATASET [SEED ...] [KEY VALUE ...]
#
# Seeds are 1 2 3 where none is given. METHOD, DATASET and the environment: scripts/run.sh.
set -euo pipefail

if (($# < 2)); then
    echo "usage: bash scripts/base2new.sh METHOD DATASET [SEED ...] [KEY VALUE ...]" >&2
    exit 2
fi
method=$1 dataset=$2
shift 2
seeds=()
while (($#)) && [[ $1 =~ ^[0-9]+$ ]]; do
    seeds+=("$1")
    shift
done
((${#seeds[@]})) || seeds=(1 2 3)

scripts=$(dirname "${BASH_SOURCE[0]}")
for seed in "${seeds[@]}"; do
    for phase in dump train test; do
        [[ $phase == dump && $method != fdbpl ]] && continue
        bash "$scripts/run.sh" "$method" "$phase" "$dataset" "$seed" "$@"
    done
done
bash "$scripts/run.sh" "$method" table "$dataset" "${seeds[0]}" "$@"
