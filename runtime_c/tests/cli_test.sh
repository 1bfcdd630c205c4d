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
for kind in gguf-llama gguf-nano gguf-k gguf-learned gguf-lora; do
    $RUN "$build/tests/write_tiny" "$kind" "$dir/$kind.gguf" || exit 1
done
m=$dir/f32.bin
g=$dir/gguf-llama.gguf

# help
expect 2 "Commands:" nano
expect 0 "" nano --help
check "help names the commands" grep -q "tokenize" "$dir/out"
for command in run chat info tokenize bench; do
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
    expect 0 "peak memory [0-9]* MB" nano run "$dir/$kind.bin" -i "the" -n 5 -t 0
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

# GGUF files
expect 0 "" nano info "$g"
check "info names container and architecture" grep -q "architecture *llama" "$dir/out"
check "info prints the keys" grep -q "llama.rope.freq_base *100000" "$dir/out"
check "info without --tensors has no table" sh -c "! grep -q blk.0 $dir/out"
expect 0 "" nano info "$g" --tensors
check "info --tensors has one" grep -q "blk.1.ffn_down.weight *F32 *\[48, 72\]" "$dir/out"
expect 0 "" nano info "$g" --tensors --json
if command -v python3 >/dev/null; then
    check "info --json is JSON" python3 -c "import json; d = json.load(open('$dir/out')); \
        assert d['container'] == 'gguf' and d['metadata']['llama.block_count'] == 2; \
        assert d['metadata']['tokenizer.ggml.tokens']['count'] == 300 and d['stop_tokens'] == [261, 263, 264]; \
        assert d['tensors'][0]['shape'] == [300, 48] and d['tensor_types'] == {'F32': 20}"
fi
expect 0 "" nano info "$dir/gguf-lora.gguf"
check "info of a GGUF adapter" grep -q "alpha *8" "$dir/out"
expect 0 "" nano tokenize "$g" "the in<|im_end|>"
check "tokens of a GGUF vocabulary" out_is "257 32 259 60 124 105 109 95 101 110 100 124 62"
expect 0 "" nano tokenize "$g" --special "the<|im_end|>"
check "and its special ones" out_is "257 263"
expect 0 "prompt 1 tokens" nano run "$g" -i "the" -n 5 -t 0
cp "$dir/out" "$dir/a"
expect 0 "" nano run "$g" -i "the" -n 5 -t 0 -l "$dir/gguf-lora.gguf"
check "a GGUF adapter changes the text" sh -c "! cmp -s $dir/a $dir/out"
expect 0 "" nano run "$dir/gguf-k.gguf" --ids 1,2,3 -n 0 --logits "$dir/logits"
check "--logits of a file without vocabulary" [ "$(wc -c <"$dir/logits")" = 3600 ]
expect 0 "new 3 tokens" nano run "$dir/gguf-learned.gguf" --ids 10,20,30
expect 0 "prompt 20 tokens" nano run "$g" --chat -i "the" -n 2 -t 0 --json
expect 0 "" nano run "$g" --chat -i "the" --system "in" -n 2 -t 0 --json
check "the system prompt is part of it" grep -q '"prompt_ids": \[262, 115, 121' "$dir/out"
printf 'the\nin\n\nx\n' >"$dir/talk"
expect 0 "" sh -c "$RUN $build/nano-infer chat $g -n 1 -t 0 -s 40 <$dir/talk"
check "three answers to three messages" [ "$(wc -l <"$dir/out")" -ge 3 ]
expect 0 "the conversation begins anew" sh -c "$RUN $build/nano-infer chat $g -n 1 -t 0 -s 30 <$dir/talk"
expect 0 "passed over" sh -c "$RUN $build/nano-infer chat $g -n 1 -t 0 -s 20 <$dir/talk"
expect 0 "seed [0-9]" sh -c "$RUN $build/nano-infer chat $dir/gguf-nano.gguf -n 3 <$dir/talk"
expect 0 "" sh -c "$RUN $build/nano-infer chat $m -n 3 --seed 1 <$dir/talk"
expect 2 "no place for a system prompt" nano chat "$m" --system S
expect 2 "no chat form" nano chat "$dir/gguf-k.gguf"
expect 2 "reads its whole input at once" nano chat "$dir/gguf-learned.gguf"
expect 2 "system needs --chat" nano run "$g" -i a --system S
expect 2 "wraps a text" nano run "$g" --ids 1 --chat
expect 2 "this file has no vocabulary" nano run "$dir/gguf-k.gguf" -i a
expect 2 "gguf-lora.gguf: this is a LoRA adapter" nano run "$dir/gguf-lora.gguf" -i a
expect 2 "is for the architecture llama, the model's is qwen2" nano run "$dir/qwen2.bin" -l "$dir/gguf-lora.gguf" -i a
head -c 9000 "$g" >"$dir/cut.gguf"
expect 2 "cut.gguf: the file is cut or damaged: tensor token_embd.weight" nano info "$dir/cut.gguf"

# measuring
expect 0 "" nano bench "$m" -p 8,16 -n 4 --runs 3 -j 2
check "bench prints a table" grep -q "^prefill *16 *[0-9.]* *[0-9.]* *[0-9.]*" "$dir/out"
check "with the limits" grep -q "^limit of decode: [0-9.]* GB/s" "$dir/out"
expect 0 "" nano bench "$g" -p 8,16 -n 4 --runs 2 -j 1 -l "$dir/gguf-lora.gguf" --json
if command -v python3 >/dev/null; then
    check "bench --json is JSON" python3 -c "import json; d = json.load(open('$dir/out')); \
        assert d['threads'] == 1 and d['runs'] == 2 and d['lora'].endswith('gguf-lora.gguf'); \
        assert [p['tokens'] for p in d['prefill']] == [8, 16] and d['prefill_tps'] == d['prefill'][1]['median']; \
        assert all(0 < p['lowest'] <= p['median'] <= p['highest'] for p in [*d['prefill'], d['decode']]); \
        assert d['decode_tps'] > 0 and d['load_s'] > 0 and d['peak_rss_mb'] > 0; \
        assert d['bandwidth'] > 1e7 and d['bytes_per_token'] > d['packed_bytes'] > 0; \
        assert (d['peak'] is None) == (d['kernels'] == 'scalar')"
fi
expect 0 "" nano bench "$m" -p 8 -n 4 --runs 1 --kernels exact
check "bench says what it does not know" grep -q "limit of decode: not known for these kernels" "$dir/out"
expect 2 "numbers of tokens with commas between them, like .*, not '8,'" nano bench "$m" -p 8,
expect 2 "-p 65 is more than the model's context of 64" nano bench "$m" -p 65
expect 2 "-n 64 and a token before do not fit the model's context of 64" nano bench "$m" -p 8 -n 64
expect 2 "reads its whole input at once" nano bench "$dir/gguf-learned.gguf" -p 8 -n 4
expect 2 "no such file" nano bench "$dir/missing.bin"
expect 2 "MODEL is missing" nano bench

# drafts and sessions
new_ids() { sed 's/.*", "ids": \[\([^]]*\)\], "prompt_ids.*/\1/'; } # of --json
for options in "-t 0 -r 0.8" "--seed 3 -r 0.7 -t 0.6" "--seed 4"; do
    nano run "$m" -i "the in the in the" -n 40 $options --draft off --json 2>/dev/null | new_ids >"$dir/a"
    for draft in auto always; do
        expect 0 "drafts: [0-9]* tokens guessed" nano run "$m" -i "the in the in the" -n 40 $options --draft $draft --profile --json
        check "$options --draft $draft: the same text" [ "$(new_ids <"$dir/out")" = "$(cat "$dir/a")" ]
    done
    rm -f "$dir/session"
    expect 0 "" nano run "$m" -i "the in the in the" -n 15 $options --session "$dir/session" --json
    new_ids <"$dir/out" >"$dir/b"
    expect 0 "tokens were in the session" nano run "$m" -n 25 --session "$dir/session" --json
    check "$options: in two parts, the same text" [ "$(cat "$dir/b"), $(new_ids <"$dir/out")" = "$(cat "$dir/a")" ]
done
expect 0 "prefill of 0 tokens" nano run "$m" -i "the in the in the" -n 40 --seed 4 --session "$dir/session" --profile --json
check "the beginning of a session is enough for its prompt" [ "$(new_ids <"$dir/out")" = "$(cat "$dir/a")" ]
expect 0 "^4 of the prompt's tokens were in the session" nano run "$m" -i "the in on" -n 1 --session "$dir/session"
check "no temporary files are left" [ -z "$(ls "$dir" | grep 'session\.')" ]
expect 2 "belongs to another model" nano run "$dir/q80.bin" -i the --session "$dir/session" --cache f32
expect 2 "computed without an adapter" nano run "$m" -i the --session "$dir/session" -l "$dir/lora.bin"
expect 2 "keys and values are f32, not f16" nano run "$m" -i the --session "$dir/session" --cache f16
expect 2 "is not a session file" nano run "$m" -i the --session "$m"
expect 2 "holds no text to go on with: give a prompt" nano run "$m" --session "$dir/none"
check "and none is made" [ ! -e "$dir/none" ]
expect 2 "do not go together" nano run "$m" -i a --session "$dir/none" --logits "$dir/logits"
expect 2 "chat needs a message" nano run "$g" --chat --session "$dir/none"
expect 2 "draft is auto, off or always, not 'on'" nano run "$m" -i a --draft on
expect 1 "cannot write .*/missing/session: there is no such folder" nano run "$m" -i a -n 1 --session "$dir/missing/session"
head -c 500 "$dir/session" >"$dir/cut.session"
expect 2 "cut or damaged; delete it" nano run "$m" -n 1 --session "$dir/cut.session"
rm -f "$dir/talk.session"
sh -c "$RUN $build/nano-infer chat $g -n 2 -t 0 -s 40 <$dir/talk" >"$dir/a" 2>/dev/null
printf 'the\n' >"$dir/talk1"
printf 'in\n\nx\n' >"$dir/talk2"
expect 0 "" sh -c "$RUN $build/nano-infer chat $g -n 2 -t 0 -s 40 --session $dir/talk.session <$dir/talk1"
cp "$dir/out" "$dir/b"
expect 0 "the conversation of .*talk.session goes on" sh -c "$RUN $build/nano-infer chat $g -n 2 -s 40 --session $dir/talk.session <$dir/talk2"
check "a conversation in two parts is the same" sh -c "cat $dir/b $dir/out | cmp - $dir/a"
if [ -z "$RUN" ]; then
    rm -f "$dir/stopped"
    { echo the; sleep 2; } | "$build/nano-infer" chat "$g" -n 2 -t 0 -s 40 --session "$dir/stopped" >/dev/null 2>&1 &
    sleep 1
    kill -INT $! 2>/dev/null
    wait $!
    check "Ctrl-C saves the session" [ -s "$dir/stopped" ]
fi

# mistakes
expect 2 "unknown command 'runn'" nano runn
expect 2 "unknown option '--sead'; the nearest one is '--seed'" nano run "$m" --sead 5
expect 2 "unknown option '-K'; the nearest one is '-k'" nano run "$m" -K 5
expect 2 "MODEL is missing" nano run
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
