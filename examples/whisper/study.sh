#!/usr/bin/env bash
# What pooling does to a published Whisper, on people's voices: ./study.sh MODEL SETS [FOLDER]
#
# MODEL is a folder as transformers has it, an id on the Hub, or CTranslate2's model.bin (LANGUAGE=en: of a multilingual
# one); SETS the folder of recordings.py. Started again, it goes on where it was. Of tiny.en on one core it takes three
# quarters of an hour, of base two hours; EXPERIMENTS="eval-sentences" does one of them, SITES others than these.
set -euo pipefail
model=$1 sets=$2 out=${3:-study}
if [ "${model%.bin}" != "$model" ]; then
  [ -e "$out/model/config.json" ] ||
    "${PYTHON:-python}" "$(dirname "$0")/convert.py" "$model" "$out/model" ${LANGUAGE:+--language "$LANGUAGE"}
  model=$out/model
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

experiment() { # NAME SET COMMAND OPTIONS...
  local name=$1 data=$2
  shift 2
  case " ${EXPERIMENTS:-$name} " in *" $name "*) ;; *) return 0 ;; esac
  echo "$name"
  "${PYTHON:-python}" -m affinity_pool.cli "$@" --model "$model" --data "$sets/$data/manifest.jsonl" --out "$out/$name"
}
answers="--batch 8 --longest 160" # tokens: the longest right answer has about a hundred, so a decoding loop still shows
sites() { for site in "$@"; do printf -- '--sites memory:%s ' "$site"; done; }

# Thresholds, windows and counts, each plain and proportional.
# shellcheck disable=SC2046 # options, with spaces between
experiment eval-sentences sentences eval --normaliser whisper --attention plain,proportional --baselines none \
  $(sites ${SITES:-0.98:1 0.96:1 0.94:1 0.92:1 0.96:3 0.94:3 keep=0.2 keep=0.1}) $answers
# Other ways to as many tokens, of each recording.
# shellcheck disable=SC2046
experiment eval-baselines sentences eval --normaliser whisper --attention plain,proportional \
  --baselines random-drop,uniform-drop,uniform-merge,interpolate,bipartite-merge $(sites ${COMPARED:-0.96:1}) $answers
# Voices of which no text is known: what is left of the tokens.
experiment eval-moonshine moonshine eval --normaliser whisper --attention plain,proportional --baselines none $answers
# How alike neighbours are, encoder layer by encoder layer.
experiment dynamics sentences dynamics
# What it buys: first token and decoding, of batches, at a fifth of the tokens. On a quiet machine, with all its cores.
if [ -n "${COST:-}" ]; then
  OMP_NUM_THREADS=$(nproc) experiment cost sentences cost --sites memory:keep=0.2 --attention proportional \
    --batch 1,8,32 --rounds 6 --new-tokens 32
fi
