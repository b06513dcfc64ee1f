#!/bin/sh
# What of the lock goes into the image: image_lock.sh < requirements.lock > image.lock
# Never: simulations on Ray, browsers, linters, pictures of studies. With CPU_ONLY set neither what only a torch for GPUs
# needs, which an index of CPU-only torch would not keep from being installed: the lock names it.
set -eu
left='ray|playwright|mypy|ruff|pytest|pre-commit|hypothesis|import-linter|matplotlib|scikit-learn'
[ -z "${CPU_ONLY:-}" ] || left="$left|nvidia-|cuda-|triton"
grep -vE "^($left)"
