#!/bin/sh
# cli_test.sh BUILD: the program from outside: output, exit codes, messages. RUN: an emulator, if one is needed.
set -u
build=$1
dir=$build/tests/cli
rm -rf "$dir"
mkdir -p "$dir"
passed=0 failed=0

nano() { $RUN "$build/nano-infer" "$@"; }

# expect CODE PATTERN-OF-STDERR COMMAND...: stdout stays in $dir/out
expect() {
    code=$1 pattern=$2
    shift 2
    "$@" >"$dir/out" 2>"$dir/err"
    got=$?
    if [ "$got" = "$code" ] && { [ -z "$pattern" ] || grep -q -e "$pattern" "$dir/err"; }; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED  $*: exit $got, not $code; or stderr lacks '$pattern':"
        head -5 "$dir/err"
    fi
}

# check WHAT COMMAND...: succeeds if the command does
check() {
    what=$1
    shift
    if "$@" >/dev/null 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED  $what"; fi
}

out_is() { [ "$(cat "$dir/out")" = "$1" ]; }

for kind in f32 q80 q4k 2024 qwen2 qwen3q80 lora; do
    $RUN "$build/tests/write_tiny" "$kind" "$dir/$kind.bin" || exit 1
done
m=$dir/f32.bin

# help
expect 2 "Commands:" nano
expect 0 "" nano --help
check "help names the commands" grep -q "tokenize" "$dir/out"
for command in run info tokenize; do
    expect 0 "" nano $command --help
    check "$command --help has examples" grep -q "Examples:" "$dir/out"
done

# tokens
expect 0 "" nano tokenize "$m" "there<|eos|>"
check "special tokens are characters" out_is "265 268 118 122 131 69"
expect 0 "" nano tokenize "$m" --special "there<|eos|>"
check "unless allowed" out_is "265 3"
printf 'there\n' >"$dir/text"
expect 0 "" sh -c "$RUN $build/nano-infer tokenize $m - <$dir/text"
check "standard input loses one newline" out_is "265"

# running
for kind in f32 q80 q4k 2024 qwen2 qwen3q80; do
    expect 0 "prompt [0-9]* tokens" nano run "$dir/$kind.bin" -i "the" -n 5 -t 0
    expect 0 "" nano info "$dir/$kind.bin"
    expect 0 "" nano info "$dir/$kind.bin" --json
done
expect 0 "" nano info "$dir/lora.bin"
check "info of an adapter" grep -q "rank *4" "$dir/out"
expect 0 "seed [0-9]" nano run "$m" -i "the" -n 3
nano run "$m" -i "the in" -n 20 --seed 7 -j 1 >"$dir/a" 2>/dev/null
nano run "$m" --ids 264,39,266 -n 20 --seed=7 -j 2 >"$dir/b" 2>/dev/null
check "one seed, one text; --ids is the same prompt" cmp "$dir/a" "$dir/b"
nano run "$m" -i "the in" -n 20 --seed 7 -l "$dir/lora.bin" >"$dir/b" 2>/dev/null
check "the adapter changes the text" sh -c "! cmp -s $dir/a $dir/b"
expect 0 "" nano run "$m" -i "the" -n 0
check "-n 0 prints one newline" [ "$(wc -c <"$dir/out")" = 1 ]
expect 0 "new 4 tokens" nano run "$m" --ids 100,101 -s 6 -k 1 -r 1
expect 0 "" nano run "$m" --ids 100,101,102 -n 2 -t 0 --json --logits "$dir/logits"
check "--json is one object" grep -q '^{"text": ".*", "ids": \[[0-9]*, [0-9]*\], "prompt_ids": \[100, 101, 102\], "prefill_tps": [0-9.]*, "decode_tps": [0-9.]*, "load_s": [0-9.]*, "peak_rss_mb": [0-9.]*}$' "$dir/out"
check "--logits has [3, 300] floats" [ "$(wc -c <"$dir/logits")" = 3600 ]
expect 0 "" nano run "$m" --no-causal --ids 100,101,102 --json
check "--no-causal gives one token a place" grep -q '"ids": \[[0-9]*, [0-9]*, [0-9]*\]' "$dir/out"

# mistakes
expect 2 "unknown command 'runn'" nano runn
expect 2 "unknown option '--sead'; the nearest one is '--seed'" nano run "$m" --sead 5
expect 2 "unknown option '-K'; the nearest one is '-k'" nano run "$m" -K 5
expect 2 "MODEL.bin is missing" nano run
expect 2 "no prompt: give one with -i" nano run "$m"
expect 2 "not both" nano run "$m" -i a --ids 1
expect 0 "prompt 1 tokens" nano run "$m" -i "" -n 2
expect 2 "one argument too many" nano run "$m" "the" -i the
expect 2 "-n needs a whole number from 0 to .*, not '5x'" nano run "$m" -i a -n 5x
expect 2 "not '-1'" nano run "$m" -i a -n -1
expect 2 "not 'nan'" nano run "$m" -i a -t nan
expect 2 "not '0x1'" nano run "$m" -i a -t 0x1
expect 2 "not '1.5'" nano run "$m" -i a -p 1.5
expect 2 "not '0'" nano run "$m" -i a -r 0
expect 2 "not '18446744073709551616'" nano run "$m" -i a --seed 18446744073709551616
expect 2 "needs a value" nano run "$m" -i
expect 2 "takes no value" nano run "$m" -i a --json=yes
expect 2 "like \"1,2,3\", not '1,,2'" nano run "$m" --ids 1,,2
expect 2 "token id 300 in --ids is not in the vocabulary: 0 to 299" nano run "$m" --ids 300
expect 2 "no such file" nano run "$dir/missing.bin" -i a
expect 2 "not a .bin model file" nano run "$build/nano-infer" -i a
expect 2 "lora.bin: this is a LoRA adapter" nano run "$dir/lora.bin" -i a
expect 2 "f32.bin: this is a model" nano run "$m" -l "$m" -i a
expect 2 "not for this model: its n_embd is 48, the model's is 64" nano run "$dir/q80.bin" -l "$dir/lora.bin" -i a
long=$(printf 'z%.0s' $(seq 65))
expect 2 "the prompt has 65 tokens, but the model's context holds 64" nano run "$m" -i "$long"
expect 2 "the prompt has 65 tokens, but the model's context holds 64" nano run "$m" -i "$long" --no-causal
expect 2 "the prompt has 3 tokens, but -s allows 2" nano run "$m" -i "zzz" -s 2
head -c 30000 "$m" >"$dir/cut.bin"
expect 2 "cut.bin: .*past the end\|cut.bin: .*too early" nano info "$dir/cut.bin"
expect 2 "cannot write .*/missing/logits" nano run "$m" -i a -n 0 --logits "$dir/missing/logits"

# a full disk, and a reader that goes away
if [ -w /dev/full ]; then
    expect 1 "cannot write to standard output" sh -c "$RUN $build/nano-infer run $m -i the -n 5 -t 0 >/dev/full"
    ln -sf /dev/full "$dir/full.tmp"
    expect 1 "cannot write .*full" nano run "$m" -i the -n 0 --logits "$dir/full"
    check "nothing is left of the logits" [ ! -e "$dir/full" ]
    check "nor of the temporary file" [ ! -L "$dir/full.tmp" ]
fi
expect 0 "" sh -c "{ $RUN $build/nano-infer info $m; echo \$? >$dir/code; } | true"
check "a closed pipe is quiet" [ ! -s "$dir/err" ]

# the README's example
expect 0 "" $RUN "$build/tests/example" "$m" "the"
expect 2 "no such file" $RUN "$build/tests/example" "$dir/missing.bin"

echo "program: $passed passed, $failed failed"
[ "$failed" = 0 ]
