#!/usr/bin/env bash
# Every experiment of the paper on this model and its held-out sets: ./study.sh [FOLDER], an hour and a quarter on two cores.
# ./study.sh --short [FOLDER] takes the bundled recordings in place of the sets, which need espeak-ng, flite and sox to be
# made: three minutes, to see that everything runs. What so few recordings show says little.
#
# Started again, it goes on where it was. Two experiments run at a time, with a thread each. Answers end after 24
# tokens: the longest right one has 9, so a decoding loop still shows. Costs are timed apart, on a quiet machine:
# affinity-pool cost.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python}
short=
if [ "${1:-}" = --short ]; then
  short=yes
  shift
  echo "The short form: the bundled recordings in place of the held-out sets."
fi
out=${1:-build/study${short:+-short}}
sets=build/sets
if [ -z "$short" ]; then
  [ -e build/words.npz ] || "$python" words.py
  [ -e $sets/test-allison/manifest.jsonl ] || "$python" export_set.py test-espeak test-allison --count 512
  [ -e $sets/dev-allison/manifest.jsonl ] || "$python" export_set.py dev-espeak dev-allison --count 128
fi
export OMP_NUM_THREADS=1

experiment() { # NAME SET COMMAND OPTIONS...
  local name=$1 data=${short:+recordings}
  data=${data:-$sets/$2}/manifest.jsonl
  shift 2
  "$python" -m affinity_pool.cli "$@" --data "$data" --batch 32 --out "$out/$name" > "$out/$name.log" 2>&1
}
shares() { # NAME SET: thresholds beside the shares that leave as many tokens, which a first run of one-word answers tells
  local flags=() pairs
  for sites in 0:0.98:1 0:0.95:1 0:0.9:1 4:0.9:1 7:0.85:1 0:0.98:1,7:0.85:3; do flags+=(--sites "$sites"); done
  experiment "as-$1" "$2" eval --baselines none --longest 1 "${flags[@]}"
  pairs=$("$python" - "$out/as-$1/summary.json" <<'END'
import json, sys
for condition in json.load(open(sys.argv[1]))["conditions"]:
    if "as_shares" in condition:
        print("--sites", condition["sites"], "--sites", condition["as_shares"])
END
  )
  # shellcheck disable=SC2086 # options, with spaces between
  experiment "$1" "$2" eval --baselines none $answers $pairs
}
attention() { # NAME SET: plain and proportional attention at the same sites
  local flags=()
  for sites in 0:0.98:1 0:0.95:1 0:0.9:1 2:0.9:3 4:0.9:1 4:0.85:1 6:0.6:1 7:0.85:1 0:0.98:1,7:0.85:3; do flags+=(--sites "$sites"); done
  experiment "$1" "$2" eval --baselines none --attention plain,proportional $answers "${flags[@]}"
}
merges() { # NAME SET: other reductions to the same tokens, under both
  experiment "$1" "$2" eval --task transcribe --baselines uniform-drop,uniform-merge,bipartite-merge \
    --attention plain,proportional $answers --sites 0:0.9:1 --sites 4:0.85:1
}
answers="--longest 24"
input="--task transcribe --sites 0:0.98:1 --sites 0:0.95:1 --sites 0:0.9:1"

mkdir -p "$out"
{
  experiment oracle test-espeak oracle $answers
  experiment eval-allison test-allison eval $answers
  experiment calibrate dev-espeak calibrate $answers --task transcribe --flops 0.75
  shares shares-allison test-allison
  attention attention-allison test-allison
  merges merges-allison test-allison
} &
{
  experiment dynamics test-espeak dynamics
  experiment eval-espeak test-espeak eval $answers
  experiment input test-espeak eval $answers $input
  shares shares-espeak test-espeak
  attention attention-espeak test-espeak
  merges merges-espeak test-espeak
  experiment probe test-espeak probe $answers --thresholds 0.98,0.95,0.9,0.85,0.8,0.7
  # the ablation, if it was trained: ./train.sh --no-tempo --out build/no-tempo
  [ ! -e build/no-tempo/config.json ] || experiment input-no-tempo test-espeak eval $answers $input --model build/no-tempo
} &
wait %1
wait %2
