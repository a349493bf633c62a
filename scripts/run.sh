#!/usr/bin/env bash
# One base-to-new run of one method: what the scripts in scripts/<method>/ hand over to.
#
#   bash scripts/run.sh METHOD PHASE DATASET SEED [KEY VALUE ...]
#
# METHOD   zsclip, coop, coop_kdpl or fdbpl
# PHASE    dump   fdbpl only: the frozen teacher over the regions of the base images, once
#          train  train on the base classes, test on the base classes (zsclip: test only)
#          test   test the trained prompts on the new classes
#          table  what the runs of all seeds and methods on this data set came to
# DATASET  a file in configs/datasets, without .yaml
# KEY VALUE pairs go to train.py and dump_teacher_logits.py as they are.
#
# Environment, with defaults: DATA=data SHOTS=16 OUT=output STORES=stores CFG=vit_b32_ctxv1
# (zsclip: vit_b32; data sets named toy_*: toy) PYTHON=.venv/bin/python, or python without it.
# DRY_RUN=1 prints the command and does not run it.
#
# A finished run is skipped, an unfinished one continues from its last checkpoint.
set -euo pipefail

fail() {
    echo "scripts/run.sh: $1" >&2
    exit 2
}

usage="usage: bash scripts/${METHOD_SCRIPT:-run.sh METHOD PHASE} DATASET SEED [KEY VALUE ...]"
(($# >= 4)) || fail "$usage"
method=$1 phase=$2 dataset=$3 seed=$4
shift 4
(($# % 2 == 0)) || fail "a KEY without a VALUE among: $*; $usage"
[[ $seed =~ ^[0-9]+$ ]] || fail "SEED is '$seed', not a whole number; $usage"
for key in "$@"; do
    case $key in
        DATASET.NUM_SHOTS) fail "the folder says how many shots: set SHOTS instead of $key" ;;
        DATASET.SUBSAMPLE_CLASSES) fail "base-to-new decides $key by itself" ;;
    esac
done

case $method in
    zsclip) trainer=ZeroshotCLIP cfg=vit_b32 ;;
    coop) trainer=CoOp cfg=vit_b32_ctxv1 ;;
    coop_kdpl) trainer=CoOp_KDPL cfg=vit_b32_ctxv1 ;;
    fdbpl) trainer=FDBPL cfg=vit_b32_ctxv1 ;;
    *) fail "METHOD is '$method', not zsclip, coop, coop_kdpl or fdbpl" ;;
esac
case $phase in
    train | test | table) ;;
    dump) [[ $method == fdbpl ]] || fail "$method reads no region store; only fdbpl has a dump" ;;
    *) fail "PHASE is '$phase', not dump, train, test or table" ;;
esac
[[ $dataset == toy_* ]] && cfg=toy

# A relative path in the environment is meant from where the user stands.
unset CDPATH
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
here() {
    if [[ $1 == /* || $caller == "$PWD" ]]; then echo "$1"; else echo "$caller/$1"; fi
}
data=${DATA:+$(here "$DATA")} out=${OUT:+$(here "$OUT")} stores=${STORES:+$(here "$STORES")}
data=${data:-data} out=${out:-output} stores=${stores:-stores}
shots=${SHOTS:-16} cfg=${CFG:-$cfg}
[[ $shots =~ ^[0-9]+$ ]] || fail "SHOTS is '$shots', not a whole number"
if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
    [[ $PYTHON == */* ]] && python=$(here "$PYTHON")
elif [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
else
    python=python
fi

dataset_file=configs/datasets/$dataset.yaml config_file=configs/trainers/$trainer/$cfg.yaml
for file in "$dataset_file" "$config_file"; do
    [[ -f $file ]] && continue
    there=("${file%/*}"/*.yaml)
    there=("${there[@]##*/}")
    fail "there is no $file; ${file%/*} holds: ${there[*]%.yaml}"
done

places=$("$python" -m reporting places \
    "$dataset" "$shots" "$trainer" "$cfg" "$seed" "$out" "$stores")
{ read -r base_dir && read -r new_dir && read -r store; } <<<"$places"

if [[ $phase == table ]]; then
    base_log=()
    [[ $method == zsclip ]] && base_log=(--test-log)
    "$python" parse_test_res.py "${base_dir%/*}" ${base_log[@]+"${base_log[@]}"}
    "$python" parse_test_res.py "${new_dir%/*}" --test-log
    exec "$python" parse_test_res.py "$out" --compare --datasets "$dataset"
fi

common=(
    --root "$data" --seed "$seed"
    --dataset-config-file "$dataset_file" --config-file "$config_file"
)
options=(DATASET.NUM_SHOTS "$shots")

case $phase in
    dump)
        command=(
            dump_teacher_logits.py "${common[@]}" --trainer "$trainer" --store "$store"
            "${options[@]}" DATASET.SUBSAMPLE_CLASSES base "$@"
        )
        ;;
    train)
        options+=(DATASET.SUBSAMPLE_CLASSES base "$@")
        finished=("$base_dir" "${options[@]}")
        [[ $method == fdbpl ]] && options=(TRAINER.FDBPL.STORE "$store" "${options[@]}")
        command=(train.py "${common[@]}" --trainer "$trainer" --output-dir "$base_dir")
        [[ $method == zsclip ]] && command+=(--eval-only)
        command+=("${options[@]}")
        ;;
    test)
        options+=(DATASET.SUBSAMPLE_CLASSES new "$@")
        command=(train.py "${common[@]}" --trainer "$trainer" --output-dir "$new_dir" --eval-only)
        finished=("$new_dir" "${options[@]}")
        if [[ $method != zsclip ]]; then
            epochs=$("$python" -m reporting epochs "$base_dir") ||
                fail "nothing to test yet: bash scripts/$method/base2new_train.sh $dataset $seed"
            command+=(--model-dir "$base_dir" --load-epoch "$epochs")
            finished=(--trained "$base_dir" "${finished[@]}")
        fi
        command+=("${options[@]}")
        ;;
esac

if [[ $phase != dump ]]; then
    status=0
    "$python" -m reporting finished "${finished[@]}" || status=$?
    ((status == 10)) && exit 0
    ((status == 0)) || exit "$status"
fi
if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$python" "${command[@]}"
    echo
else
    exec "$python" "${command[@]}"
fi
