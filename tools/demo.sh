#!/usr/bin/env bash
# The whole way once: text, tokens, training, one model directory, one model file, and the C program that answers.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-runs/demo} BIN=${BIN:-.venv/bin}
export OMP_WAIT_POLICY=passive
nano() { "$BIN/nano-ds" "$@"; }
step() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
started=$SECONDS

set_keys=(run.dir="$RUN" data.tokenizer="$RUN/tokenizer.json" data.sets.0.dir="$RUN/data")
step "1/5 prepare: the documentation that every Python carries, as tokens"
nano prepare -c recipes/demo.yaml "${set_keys[@]}"
step "2/5 train with DeepSpeed (Ctrl-C saves; \`make demo\` goes on)"
# DEMO_KEYS: further recipe keys, such as train.max_steps=50 for a look at the way itself
read -ra more <<<"${DEMO_KEYS:-}"
nano train -c recipes/demo.yaml "${set_keys[@]}" "${more[@]}"
step "3/5 consolidate the ZeRO checkpoint into a model directory"
nano consolidate "$RUN" -o "$RUN/model"
step "4/5 export for the C program"
nano export "$RUN/model" -o "$RUN/model.bin"
nano export "$RUN/model" -o "$RUN/model-q80.bin" --quant q80
nano export "$RUN/model" -o "$RUN/model.gguf"
step "5/5 the same prompt in PyTorch and in C, greedy"
prompt="Return the"
python_says=$("$BIN/python" inference/generate.py -m "$RUN/model" -t 0 -r 1.1 -n 60 "$prompt"; printf .)
c_says=$(runtime_c/build/nano-infer run "$RUN/model.bin" -t 0 -r 1.1 -n 60 -i "$prompt"; printf .)
printf 'PyTorch:  %s%s\nC:        %s%s\n' "$prompt" "${python_says%.}" "$prompt" "${c_says%.}"
if [ "$python_says" != "$c_says" ]; then
    echo "demo: PyTorch and C disagree, which must not happen; please report it" >&2; exit 1
fi
echo "PyTorch and C say the same."
printf '\nSampled (temperature 0.8):\n%s' "$prompt"
runtime_c/build/nano-infer run "$RUN/model-q80.bin" -t 0.8 -k 40 -r 1.1 -n 120 --seed 7 -i "$prompt" 2>/dev/null
cat <<TEXT

Done in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s. What is where:
  $RUN/config.yaml, log.jsonl           the run and its log
  $RUN/checkpoints/                     ZeRO checkpoints
  $RUN/model/                           model directory (safetensors, fp32)
  $RUN/model.bin, model-q80.bin         model files for the C program, fp32 and 8 bit
  $RUN/model.gguf                       the same for llama.cpp and its like
Try next:
  $BIN/tensorboard --logdir $RUN        the curves, in a browser
  runtime_c/build/nano-infer run $RUN/model.bin -i "The class"
  $BIN/python inference/generate.py -m $RUN/model --profile "def "
  $BIN/nano-ds train -c recipes/demo.yaml train.max_steps=3000 run.dir=runs/longer
  $BIN/nano-ds --help
TEXT
