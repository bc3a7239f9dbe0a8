#!/usr/bin/env bash
# Everything that needs a GPU, in one command that fits into ten minutes on a bare machine:
#
#   bench/gpu_check.sh [build] [test] [sanitize] [bench] [--help]
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
