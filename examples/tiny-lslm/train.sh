#!/usr/bin/env bash
# Data and training in one command: ./train.sh [train.py's options]. Started again, it goes on where it was.
#
# Two single-threaded ranks rather than one process of two threads: under other load on the same two cores OpenMP's
# barriers cost a factor of four. The malloc settings keep big blocks from going back to the kernel: the page faults
# of getting them again are a quarter of the time.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python}
mkdir -p build
[ -e build/words.npz ] || "$python" words.py

export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=2
export MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29511} WORLD_SIZE=2
RANK=1 "$python" train.py "$@" & rank1=$!
RANK=0 "$python" train.py "$@" & rank0=$!
echo "$rank0 $rank1" > build/pids
trap 'kill "$rank0" "$rank1" 2>/dev/null' EXIT
wait -n  # a rank that dies takes the other along
wait
