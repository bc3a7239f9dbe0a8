#!/usr/bin/env bash
# What only a GPU can answer, in two commands of at most 400 s each, for a plain copy of the tree on a bare machine:
#
#   bench/gpu_check.sh first OUTDIR [COMMIT]     build; every op once, the tests, memory checks
#   bench/gpu_check.sh second OUTDIR [COMMIT]    build; the measurements
#
# --dry goes through both on a CPU; --help names the rest.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
