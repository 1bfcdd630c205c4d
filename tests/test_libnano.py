"""The C library from Python: the header's functions, and the same tokens, numbers and texts as PyTorch."""

# ruff: noqa: F811 (fixtures are imported, then named as parameters)

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from libnano_helpers import (  # noqa: F401 (fixtures among them)
    CPU,
    GREEDY,
    HEADER,
    ROOT,
    TEXT,
    close_to,
    files,
    model,
    reference,
    run_script,
    shared_library,
    torch_logits,
)

from nano_ds import lora
from nano_ds.cli import main as nano_ds
from nano_ds.errors import UserError
from nano_ds.generate import stream
from nano_ds.libnano import Adapter, Model, Session, native
from nano_ds.loading import load_model
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import StreamDecoder, TrieTokenizer

# ---- the binding and nano.h


def declarations() -> dict[str, tuple[str, list[str]]]:
    """Result and parameter types of every function of nano.h, as written."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    text = re.sub(r"^ *#.*$", "", text, flags=re.M)
    out = {}
    for result, name, parameters in re.findall(r"^((?:const )?\w+ \*?)(nano_\w+)\(([^;{]*)\);", text, re.M | re.S):
        types = [re.sub(r"\w+$", "", " ".join(p.split())).strip() for p in parameters.split(",")]
        out[name] = (result.strip(), [] if types == [""] else types)
    return out


def c_type(written: str, result: bool, layout: native.Layout) -> Any:
    """What ctypes must be told for a C type of nano.h."""
    plain = {"nano_status": ctypes.c_int, "uint32_t": ctypes.c_uint32, "size_t": ctypes.c_size_t, "bool": ctypes.c_bool}
    plain |= {"void": None, "uint64_t": ctypes.c_uint64}
    if not written.endswith("*"):
        return layout[written] if written in layout else plain[written]
    target = written.removesuffix("*").removeprefix("const ").strip()
    if target == "char":
        return ctypes.c_char_p
    if target in ("void", "nano_model", "nano_adapter", "nano_session"):
        return ctypes.c_void_p
    if target.endswith("*"):
        inner = target.removesuffix("*").strip()
        return ctypes.POINTER(ctypes.c_void_p if inner.startswith("nano_") else ctypes.POINTER(plain[inner]))
    return ctypes.POINTER(
        ctypes.c_float if target == "float" else layout[target] if target in layout else plain[target]
    )


def test_the_functions_are_those_of_the_header(shared_library: Path) -> None:
    declared = declarations()
    assert len(declared) >= 31
    done = subprocess.run(["nm", "-D", "--defined-only", shared_library], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    assert exported == set(declared)
    lib = native.library()
    for name, (result, parameters) in lib.functions.items():
        wanted = (
            c_type(declared[name][0], True, lib.layout),
            [c_type(t, False, lib.layout) for t in declared[name][1]],
        )
        if name == "nano_token_bytes":  # read with its length: ctypes would stop at the first zero byte
            wanted = (ctypes.c_void_p, wanted[1])
        assert (result, parameters) == wanted, name


def test_the_structures_are_those_of_the_compiler(tmp_path: Path) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    structures: dict[str, list[str]] = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, re.S):
        names = [n for line in body.split(";") for n in re.findall(r"(\w+)(?:\[\w+\])?\s*(?:,|$)", line.strip())]
        structures[name] = names
    assert len(structures) >= 7 and "held" in structures["nano_stream"] and len(structures["nano_config"]) >= 24
    states = re.findall(r"NANO_(?:OK|ERR_\w+)", text[: text.index("nano_status;")])
    lines = [f'printf("{s} %zu\\n", sizeof({s}));' for s in structures]
    lines += [
        f'printf("{s}.{m} %zu %zu\\n", offsetof({s}, {m}), sizeof((({s} *)0)->{m}));'
        for s, members in structures.items()
        for m in members
    ]
    lines += [f'printf("{s} %d\\n", (int){s});' for s in states]
    source = tmp_path / "layout.c"
    source.write_text('#include "nano.h"\n#include <stdio.h>\nint main(void) {\n' + "\n".join(lines) + "\n}\n")
    program = tmp_path / "layout"
    subprocess.run(["cc", f"-I{HEADER.parent}", str(source), "-o", str(program)], check=True)
    wanted = dict(line.split(" ", 1) for line in subprocess.check_output([program], text=True).splitlines())
    got = {}
    for name, structure in native.library().layout.items():
        got[name] = str(ctypes.sizeof(structure))
        for field in structure._fields_:
            if not field[0].startswith("_gap"):
                place = getattr(structure, field[0])
                got[f"{name}.{field[0]}"] = f"{place.offset} {place.size}"
    for s in states:
        got[s] = str(getattr(native, s.removeprefix("NANO_")))
    assert got == wanted


def test_a_structure_with_unknown_members_keeps_its_size() -> None:
    members = [("a", 0, ctypes.c_uint32), ("b", 16, ctypes.c_float), ("c", 20, ctypes.c_uint16 * 2)]
    made = native._structure("grown", 32, members)
    assert ctypes.sizeof(made) == 32 and made.b.offset == 16
    assert native.values(made(a=7, b=0.5, c=(1, 2))) == {"a": 7, "b": 0.5, "c": [1, 2]}


def test_a_missing_library_names_the_command_that_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_library: Path
) -> None:
    monkeypatch.setenv("NANO_LIB", str(shared_library))
    assert native.find_library() == shared_library
    monkeypatch.setenv("NANO_LIB", str(tmp_path / "no.so"))
    with pytest.raises(UserError, match=r"NANO_LIB: .*no\.so is no file"):
        native.find_library()
    monkeypatch.delenv("NANO_LIB")
    (tmp_path / native.NAME).touch()
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    assert native.find_library() == tmp_path / native.NAME
    (tmp_path / native.NAME).unlink()
    monkeypatch.setattr(native, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"not built: run `make -C .*runtime_c`"):
        native.find_library()
    for content in (b"", b"not a library"):
        (tmp_path / "bad.so").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.so: cannot be loaded"):
            native.Library(tmp_path / "bad.so")
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", str(tmp_path / "other.so")], check=True)
    with pytest.raises(UserError, match=r"other\.so: is not the library of this package"):
        native.Library(tmp_path / "other.so")


# ---- the same tokens, numbers, texts


def test_tokens_are_those_of_python(model: Model, tokenizer: TrieTokenizer) -> None:
    rng = np.random.default_rng(0)
    alphabet = [*"the cat sat  \n\t<|eos|>é猫坐在😀ꀀ\u200b\x00\x7f\udcff\ud801", "<|bos|>", "another", "it rained"]
    for _ in range(300):
        text = "".join(rng.choice(alphabet, rng.integers(0, 40)))
        raw = rng.integers(0, 256, rng.integers(0, 30), np.uint8).tobytes()
        for special in (False, True):
            assert model.tokenize(text, special) == tokenizer.encode(text, special)
            assert model.tokenize(raw, special) == tokenizer.encode(raw, special)
    assert [model.token_bytes(i) for i in range(tokenizer.vocab_size)] == [
        tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
    ]
    mine = model.tokenizer
    assert mine.special == tokenizer.special and mine.eos_id == tokenizer.eos_id
    assert mine.decode(mine.encode(TEXT)) == TEXT and mine.vocab_size == tokenizer.vocab_size
    stops = {i for i in range(tokenizer.vocab_size) if model.is_stop(i)}
    assert stops == {tokenizer.special["<|eos|>"], tokenizer.special["<|padding|>"]}
    assert model.tokenize("") == [] and not model.is_special(1 << 31)


def test_logits_are_those_of_pytorch(model: Model, reference: Any) -> None:
    ids = model.tokenize(TEXT)
    wanted = torch_logits(reference, ids)
    with Session(model, threads=2) as session:
        rows = session.eval(ids, all_logits=True)
        assert rows.shape == wanted.shape and rows.dtype == np.float32
        assert close_to(rows, wanted)
        assert (session.logits == rows[-1]).all() and session.length == len(ids)
        assert session.threads == 2 and session.context == model.config.block_size == 96
    with Session(model, context=len(ids), threads=1) as session:
        session.feed(ids[:3])
        assert (session.eval(np.array(ids[3:], np.int64)) == rows[-1]).all()  # bit for bit, however it is split
        session.reset()
        assert session.length == 0
        assert (session.eval(ids[:5], all_logits=True) == rows[:5]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "repetition_penalty": 1.0},
        {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.0},
        {"seed": 2**63 + 5},
        {"temperature": 1.5, "top_k": 1 << 40, "repetition_penalty": 1.3, "seed": 0},
    ],
)
def test_one_seed_gives_one_text(
    options: dict[str, Any], model: Model, reference: Any, tokenizer: TrieTokenizer, files: SimpleNamespace,
    nano_infer_binary: Path,
) -> None:  # fmt: skip
    params = SamplerParams(**options)
    for prompt in ("the cat", "猫 坐"):
        ids = tokenizer.encode(prompt)
        stop = [tokenizer.special["<|eos|>"], tokenizer.special["<|padding|>"]]
        wanted = list(stream(reference, ids, params, 40, stop))
        with Session(model, threads=1) as session:
            pieces = list(session.generate(prompt, 40, params))
            text = "".join(p.text for p in pieces)
            assert [p.id for p in pieces if p.id is not None] == wanted
            decoder = StreamDecoder(tokenizer)
            assert text == "".join([decoder.feed(i) for i in wanted]) + decoder.finish()
            session.reset()
            assert list(session.generate(ids, 40, params)) == pieces
        how = ["-t", params.temperature, "-k", min(params.top_k, 1 << 30), "-p", params.top_p]
        how += ["-r", params.repetition_penalty, "--seed", params.seed, "-n", 40, "-j", 1, "--json"]
        command = [nano_infer_binary, "run", files.model_bin, "-i", prompt, *map(str, how)]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert said["ids"] == wanted and said["text"] == text
    assert len(wanted) > 5


def test_generation_ends_with_the_context_and_goes_on_in_a_longer_one(model: Model) -> None:
    with Session(model, context=12, threads=1) as session:
        made = [p.id for p in session.generate("the cat", params=GREEDY) if p.id is not None]
        n = len(model.tokenize("the cat"))
        assert len(made) == 12 - n and session.length == 12
        assert list(session.generate([], params=GREEDY)) == []  # there is no room
    with Session(model, threads=1) as session:
        first = [p.id for p in session.generate("the cat", 4, GREEDY) if p.id is not None]
        rest = [p.id for p in session.generate([], len(made) - 4) if p.id is not None]
        assert first + rest == made


def test_a_character_that_stays_incomplete_is_replaced(tokenizer: TrieTokenizer, model: Model) -> None:
    class Steered(Session):
        def next_tokens(self, most: int) -> list[int]:
            self.feed(tokenizer.encode(b"\xe7"))
            return self.tokens[-1:]

    with Steered(model, threads=1) as session:
        assert [p.text for p in session.generate("the", 2)] == ["", "\ufffd", "\ufffd"]


def test_adapters_go_on_and_off(model: Model, files: SimpleNamespace, reference: Any) -> None:
    ids = model.tokenize(TEXT)
    tuned = load_model(files.model, CPU, torch.float32)[0]
    lora.load(tuned, files.adapter)
    plain, adapted = torch_logits(reference, ids), torch_logits(tuned, ids)
    assert not close_to(plain, adapted)
    adapter = Adapter.open(files.adapter_bin)
    assert (adapter.config.rank, adapter.config.alpha, adapter.config.n_layer) == (4, 8, 2)
    with Session(model, threads=1) as session:
        for wanted, on in ((plain, None), (adapted, adapter), (plain, None), (adapted, adapter)):
            session.set_adapter(on)
            session.reset()
            assert close_to(session.eval(ids, all_logits=True), wanted)
        adapter.close()  # the session still has it
        del adapter
        gc.collect()
        session.reset()
        assert close_to(session.eval(ids, all_logits=True), adapted)


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
def test_adapters_go_on_and_off_a_quantised_gguf(files: SimpleNamespace, reference: Any, quant: str) -> None:
    """Switched within a session: what was there before comes back to the bit, in logits and in text."""
    path = files.folder / f"model-{quant}.gguf"
    assert nano_ds(["export", str(files.model), "-o", str(path), "--quant", quant]) == 0
    tuned = load_model(files.model, CPU, torch.float32)[0]
    lora.load(tuned, files.adapter)
    with Model.open(path) as model, Adapter.open(files.adapter_gguf) as adapter, Session(model, threads=2) as session:
        ids = model.tokenize(TEXT)
        plain, adapted = torch_logits(reference, ids), torch_logits(tuned, ids)
        seen: dict[bool, tuple[np.ndarray, str]] = {}
        for on in (False, True, False, True, False):
            session.set_adapter(adapter if on else None)
            session.reset()
            logits = np.array(session.eval(ids, all_logits=True))
            right, wrong = (adapted, plain) if on else (plain, adapted)
            assert np.abs(logits - right).mean() < np.abs(logits - wrong).mean() / 2
            session.reset()
            text = "".join(p.text for p in session.generate(TEXT, 12, GREEDY))
            first = seen.setdefault(on, (logits, text))
            assert np.array_equal(first[0], logits) and first[1] == text
        assert seen[True][1] != seen[False][1]


def test_a_model_with_full_attention(files: SimpleNamespace) -> None:
    wanted = load_model(files.full, CPU, torch.float32)[0]
    with Model.open(files.full_bin, non_causal=True) as model, Session(model, threads=1) as session:
        ids = model.tokenize(TEXT)
        assert not model.config.causal
        assert close_to(session.eval(ids, all_logits=True), torch_logits(wanted, ids))
        with pytest.raises(UserError, match="reset it first"):
            session.eval(ids)


# ---- GGUF, where PyTorch reads other files: against nano-infer


def nano_infer(binary: Path, *args: object) -> str:
    command = [str(binary), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.fixture(scope="module")
def tiny(nano_infer_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small GGUF files by kind, from the program that writes them for the C tests."""
    build, folder = nano_infer_binary.parent, tmp_path_factory.mktemp("tiny")
    subprocess.run(["make", "-s", "-C", str(ROOT / "runtime_c"), "build/tests/write_tiny"], check=True)

    def write(kind: str) -> Path:
        path = folder / f"{kind}.gguf"
        if not path.exists():
            subprocess.run([str(build / "tests" / "write_tiny"), kind, str(path)], check=True)
        return path

    return write


@pytest.mark.parametrize("kind", ["gguf-llama", "gguf-qwen2", "gguf-mixed", "gguf-nano"])
def test_gguf_files(kind: str, tiny: Callable[[str], Path], nano_infer_binary: Path) -> None:
    path = tiny(kind)
    facts = json.loads(nano_infer(nano_infer_binary, "info", path, "--json"))
    with Model.open(path) as model:
        assert model.config.vocab_size == facts["vocab_size"] and model.config.n_params == facts["parameters"]
        plain = {k: v for k, v in facts["metadata"].items() if not isinstance(v, (list, dict))}
        assert len(plain) > 8 and plain.keys() <= model.metadata.keys()
        for key, value in plain.items():
            assert model.metadata[key] == (pytest.approx(value) if isinstance(value, float) else value), key
        for text in ("the cat", "a b  c", "é猫😀\x01"):
            assert model.tokenize(text) == list(map(int, nano_infer(nano_infer_binary, "tokenize", path, text).split()))
        said = json.loads(nano_infer(nano_infer_binary, "run", path, "-i", "ab", "-n", 12, "--seed", 4, "--json"))
        with Session(model, threads=1) as session:
            made = list(session.generate(said["prompt_ids"], 12, SamplerParams(seed=4)))
        assert [p.id for p in made if p.id is not None] == said["ids"]
        assert "".join(p.text for p in made) == said["text"]


def test_scripts_and_adapters_with_gguf(
    tiny: Callable[[str], Path], nano_infer_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, adapter = tiny("gguf-llama"), tiny("gguf-lora")
    said = []
    for more in ([], ["-l", adapter]):
        how = ["--seed", 4, "-n", 12, "--json", *more]
        wanted = json.loads(nano_infer(nano_infer_binary, "run", path, "-i", "ab", *how))
        code, out, err = run_script("generate", capsys, "-m", path, *how, "ab")
        assert code == 0, err
        got = json.loads(out)
        assert got == {key: wanted[key] for key in got} and got["ids"]
        said.append(out)
    assert said[0] != said[1]


def test_smollm_chats_as_nano_infer_does(nano_infer_binary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (folder := os.environ.get("NANO_DATA")):
        pytest.skip("NANO_DATA names no folder of real models")
    if not (path := next(Path(folder).rglob("SmolLM2-135M-Instruct*.gguf"), None)):
        pytest.skip(f"{folder} has no SmolLM2-135M-Instruct GGUF")
    question, how = "What is the capital of France?", ["-t", 0, "-r", 1, "-n", 12, "--json"]
    wanted = json.loads(nano_infer(nano_infer_binary, "run", path, "--chat", "-i", question, *how))
    code, out, err = run_script("generate", capsys, "-m", path, "-i", *how, question)
    assert code == 0, err
    assert json.loads(out) == {key: wanted[key] for key in ("text", "ids", "prompt_ids")}
    assert "Paris" in out
