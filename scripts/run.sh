#!/usr/bin/env bash
# One step of one method. The scripts in scripts/<method>/ are this under the names of the official
# repositories. protocols/plan.py makes the plan; run_protocol.py runs all of a protocol.
#
#   bash scripts/run.sh METHOD STEP DATASET SEED [KEY VALUE ...]
#   bash scripts/run.sh METHOD few_shot DATASET SHOTS [SEED ...] [KEY VALUE ...]
#
# METHOD   of the table in reporting/methods.py (coop, maple_fdbpl, ...), or a trainer
# STEP     base2new_train  train on the base classes, test on them (zsclip: test only)
#          base2new_test   test the trained prompts on the new classes
#          xd_train        train on all classes of the source (imagenet; of toy_*: toy_shapes)
#          xd_test         test those prompts on another data set or domain
#          few_shot        train and test on all classes; seeds 1 2 3 where none is given
#          base2new_dump, xd_dump   the fdbpl methods: the frozen teacher over regions of the
#                          images of the base classes, or of all; few_shot makes its own
# DATASET  a file in configs/datasets, without .yaml
# KEY VALUE pairs go to train.py and dump_teacher_logits.py as they are.
#
# Environment, with defaults: DATA=data SHOTS=16 OUT=output STORES=stores
# BACKBONE= vit_b16, vit_b32, rn50 ...: prefix of the recipe; else the method's own
# CFG= the recipe itself, without .yaml (data sets named toy_*: toy)
# PYTHON=.venv/bin/python, or python without it
# DRY_RUN=1 prints the command and does not run it.
#
# A finished run is skipped, an unfinished one continues from its last checkpoint.
set -euo pipefail

unset CDPATH
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n ${PYTHON:-} ]]; then # a relative path is meant from where the user stands
    [[ $PYTHON == */* && $PYTHON != /* ]] && PYTHON=$caller/$PYTHON
elif [[ -x .venv/bin/python ]]; then
    PYTHON=.venv/bin/python
else
    PYTHON=python
fi
export PYTHON
exec "$PYTHON" -m protocols "$caller" run "$@"
