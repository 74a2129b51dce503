#!/usr/bin/env bash
# What fine-tuning wins back where pooling costs something: ./finetune.sh, two hours on two cores.
#
# Five trainings of 480 steps, 18 minutes or less each with a core of its own: pooled and not, of all weights and of LoRA
# in the decoder, and pooled to shares drawn anew for each step (ranges.json). Then every model, and the one they began
# with, on both test sets, with and without pooling at the same sites; three of them at four budgets. What is there
# already is not made again. compare.py says what it comes to.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python}
sites=0:keep=0.4,7:keep=0.25
out=build/finetuned
[ -e build/words.npz ] || "$python" words.py
[ -e build/sets/test-allison/manifest.jsonl ] || "$python" export_set.py test-espeak test-allison --count 512
mkdir -p $out

# Big blocks that do not go back to the kernel save a quarter of the time; see train.sh.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

finetune() { # NAME OPTIONS...
  [ -e "$out/$1/training.json" ] || "$python" finetune.py --out "$out/$1" "${@:2}" > "$out/$1.log" 2>&1 || told "$out/$1.log"
}
evaluate() { # FOLDER SET "NAMES" OPTIONS...
  local name model
  for name in $3; do
    model=$out/$name
    [ "$name" != as-it-was ] || model=checkpoint
    "$python" -m affinity_pool.cli eval --data "build/sets/$2/manifest.jsonl" --model "$model" "${@:4}" \
      --baselines none --longest 24 --batch 32 --out "$out/$1/$name-$2" > "$out/$1-$name-$2.log" 2>&1 ||
      told "$out/$1-$name-$2.log"
  done
}
told() { # LOG of what failed
  echo "it failed: see $(pwd)/$1" >&2
  exit 1
}
both() { # wait for two jobs, and fail if one did
  wait %1
  wait %2
}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # a job whose neighbour failed

{ finetune pooled --sites "$sites"; finetune pooled-lora --sites "$sites" --lora; } &
{ finetune unpooled; finetune unpooled-lora --lora; } &
both
finetune ranged --sites ranges.json &
evaluate eval test-allison "as-it-was pooled" --sites "$sites" &
both
each() { # SET
  evaluate eval "$1" "as-it-was pooled unpooled pooled-lora unpooled-lora" --sites "$sites"
  evaluate budgets "$1" "as-it-was pooled ranged" --task transcribe --sites 0:keep=0.8,7:keep=0.3 \
    --sites 0:keep=0.6,7:keep=0.3 --sites 0:keep=0.4,7:keep=0.25 --sites 0:keep=0.3,7:keep=0.25
}
each test-espeak &
each test-allison &
both
"$python" compare.py $out --out $out/compared.json
