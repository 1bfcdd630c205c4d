"""The C library from Python: the same tokens, numbers and texts as PyTorch; nothing that a program does breaks it."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bin_helpers import make_model_dir, small_config

from nano_ds import chat, generate_script, lora
from nano_ds.cli import guard
from nano_ds.cli import main as nano_ds
from nano_ds.config import ModelConfig
from nano_ds.errors import UserError
from nano_ds.evaluate import cross_entropy, mean_loss, mean_loss_c
from nano_ds.generate import stream
from nano_ds.generate_args import parser
from nano_ds.generate_base import Timing
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.libnano import Adapter, Model, Session, native
from nano_ds.libnano.engine import CEngine
from nano_ds.libnano.handle import Handle, _close
from nano_ds.loading import load_model
from nano_ds.model_dir import expected_shapes, new_meta, write_model_dir
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import StreamDecoder, TrieTokenizer

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "runtime_c" / "include" / "nano.h"
CPU = torch.device("cpu")
GREEDY = SamplerParams(temperature=0, repetition_penalty=1.0)
TEXT = "the cat sat on a mat 猫 坐 naïve café"


@pytest.fixture(scope="session", autouse=True)
def shared_library(nano_infer_binary: Path) -> Path:
    """Built by `make`, as the program is."""
    path = nano_infer_binary.with_name(native.NAME)
    if not path.exists():
        subprocess.run(["make", "-s", "-C", str(ROOT / "runtime_c")], check=True)
    return path


@pytest.fixture(scope="module")
def files(tokenizer: TrieTokenizer, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of random weights, large enough that its logits differ well, as a directory and as files; an adapter."""
    folder = tmp_path_factory.mktemp("libnano")
    rng = np.random.default_rng(3)
    for name, causal in (("model", True), ("full", False)):
        shape = {"block_size": 96, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "n_hidden": 128}
        config = ModelConfig(vocab_size=tokenizer.vocab_size, is_causal=causal, **shape)
        with write_model_dir(
            folder / name, config, Vocabulary(tokenizer.tokens, [*tokenizer.special.values()]), new_meta(step=1)
        ) as writer:
            for tensor, dims in expected_shapes(config).items():
                writer.write(tensor, rng.normal(0, 0.3, dims).astype(np.float32))
    model, _ = load_model(folder / "model", CPU, torch.float32)
    torch.manual_seed(1)
    lora.inject(model, 4, 8.0)
    for _, layer in lora.adapted(model):
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    lora.save(model, folder / "adapter")
    for args in (
        ["model", "-o", "model.bin"],
        ["model", "-o", "model-q80.bin", "--quant", "q80"],
        ["model", "-o", "model.gguf"],
        ["model", "--lora", "adapter", "-o", "adapter.bin"],
        ["model", "--lora", "adapter", "-o", "adapter.gguf"],
        ["full", "-o", "full.bin", "--allow-noncausal"],
    ):
        named = [str(folder / a) if re.match(r"[mfa]", a) else a for a in args]
        assert nano_ds(["export", *named]) == 0
    made = {path.name.replace(".", "_").replace("-", "_"): path for path in folder.iterdir()}
    return SimpleNamespace(folder=folder, **made)


@pytest.fixture(scope="module")
def model(files: SimpleNamespace) -> Model:
    return Model.open(files.model_bin)


@pytest.fixture(scope="module")
def reference(files: SimpleNamespace) -> Any:
    return load_model(files.model, CPU, torch.float32)[0]


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model(torch.tensor([ids]))[0].numpy()
    return out


def close_to(got: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max())


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


# ---- what goes wrong


def test_errors_say_what_is_wrong(model: Model, files: SimpleNamespace, tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(files.model_bin.read_bytes()[:-100])
    other = tmp_path / "other.bin"
    other.write_bytes(b"x" * 5000)
    cases: list[tuple[str, Callable[[], object]]] = [
        (r"cut\.bin: .*cos|cut\.bin: .*sin|cut\.bin: .*ends", lambda: Model.open(cut)),
        (r"<\d+ bytes>: ", lambda: Model.open(cut.read_bytes())),
        (r"other\.bin: ", lambda: Model.open(other)),
        (r"cannot read .*missing\.bin: no such file", lambda: Model.open(tmp_path / "missing.bin")),
        (r"zero byte", lambda: Model.open("a\0b")),
        (r"path or given as bytes, not as int", lambda: Model.open(5)),  # type: ignore[arg-type]
        (r"<0 bytes>: 0 bytes are too few", lambda: Model.open(b"")),
        (r"model\.bin: this is a model", lambda: Adapter.open(files.model_bin)),
        (r"adapter\.bin: this is a LoRA adapter|adapter\.bin: .*adapter", lambda: Model.open(files.adapter_bin)),
        (r"adapter: is an adapter directory.*nano-ds export", lambda: Adapter.open(files.adapter)),
        (r"context of 97 tokens is more than the model's 96", lambda: Session(model, context=97)),
        (r"context: -1 is out of range", lambda: Session(model, context=-1)),
        (r"context: 4294967297 is out of range", lambda: Session(model, context=(1 << 32) + 1)),
        (r"257 threads are too many", lambda: Session(model, threads=257)),
        (r"not in the vocabulary", lambda: model.token_bytes(model.config.vocab_size)),
        (r"token id: -1 is out of range", lambda: model.is_stop(-1)),
    ]
    for pattern, wrong in cases:
        with pytest.raises(UserError, match=pattern) as caught:
            wrong()
        assert "\n" not in str(caught.value)
    with Session(model, threads=1) as session:
        session.feed([1, 2, 3])
        before = session.logits
        for pattern, ids in (
            ("no tokens", []),
            ("do not fit into the context of 96", [5] * 94),
            ("token id: -1 is out of range", [4, -1]),
            ("token id 400 is not in the vocabulary", [4, 400]),
            ("token id: 18446744073709551615|whole numbers", [2**64 - 1]),
            ("whole numbers", [2**70]),
            ("whole numbers, not float", [0.5]),
            ("whole numbers", [[1, 2]]),
            ("whole numbers, not <U", ["a"]),
        ):
            with pytest.raises(UserError, match=pattern):
                session.eval(ids)  # type: ignore[arg-type]
            assert session.length == 3 and (session.logits == before).all()
        with pytest.raises(UserError, match="do not fit"):  # and does not ask for the memory of all those logits
            session.eval(np.broadcast_to(np.uint32(5), 1 << 26), all_logits=True)
        session.reset()
        for early in (session.sample, lambda: session.logits, lambda: next(session.generate(""))):
            with pytest.raises(UserError):
                early()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, files: SimpleNamespace) -> None:
    make_model_dir(tmp_path / "small", small_config(n_layer=1))
    assert nano_ds(["export", str(tmp_path / "small"), "-o", str(tmp_path / "small.bin")]) == 0
    with Model.open(tmp_path / "small.bin") as small, Session(small, threads=1) as session:
        wanted = session.eval([4, 5, 6])
        with pytest.raises(UserError, match=r"adapter\.bin: .*not for this model: its n_layer is 2, the model's is 1"):
            session.set_adapter(Adapter.open(files.adapter_bin))
        session.reset()
        assert (session.eval([4, 5, 6]) == wanted).all()


def test_closed_things_say_so(files: SimpleNamespace) -> None:
    model = Model.open(files.model_bin)
    session = Session(model, threads=1)
    wanted = session.eval([5, 6])
    model.close()
    model.close()
    assert model.closed
    for use in (lambda: model.tokenize("the"), lambda: Session(model), lambda: model.token_bytes(1)):
        with pytest.raises(ValueError, match="this Model is closed"):
            use()
    session.reset()
    assert (session.eval([5, 6]) == wanted).all()  # the session keeps the weights
    session.close()
    with pytest.raises(ValueError, match="this Session is closed"):
        session.eval([5])


# ---- memory, threads, processes


def test_a_model_in_memory(files: SimpleNamespace, model: Model) -> None:
    data = files.model_bin.read_bytes()
    shifted = b"?" + data
    grown = bytearray(data)
    with Session(model, threads=1) as session:
        wanted = session.eval([5, 6, 7])
    with open(files.model_bin, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for source in (data, memoryview(shifted)[1:], grown, mapped):
            borrowed = Model.open(source)
            session = Session(borrowed, threads=1)
            borrowed.close()
            del borrowed
            gc.collect()
            assert (session.eval([5, 6, 7]) == wanted).all()
            if source is grown:
                with pytest.raises(BufferError):
                    grown.append(0)  # its bytes are in use
            session.close()
            del session
            gc.collect()
    grown.append(0)


def test_sessions_in_threads_say_the_same(model: Model) -> None:
    with Session(model, threads=1) as session:
        wanted = [list(session.generate("the cat", 60, SamplerParams(seed=i))) for i in range(2) if not session.reset()]
    made: dict[int, Any] = {}

    def work(i: int) -> None:
        made[i] = []
        for _ in range(10):
            with Session(model, threads=2) as mine:
                made[i].append(list(mine.generate("the cat", 60, SamplerParams(seed=i))))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(texts == [wanted[i]] * 10 for i, texts in made.items())


def test_two_threads_in_one_session_are_told(model: Model) -> None:
    with Session(model, threads=1) as session:
        raised: list[BaseException] = []

        def intrude() -> None:
            try:
                session.feed([1])
            except RuntimeError as e:
                raised.append(e)

        with session._using():
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
        assert len(raised) == 1 and "two threads" in str(raised[0])
        session.feed([1])


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_many_opens_and_closes_keep_the_memory(files: SimpleNamespace) -> None:
    data = files.model_q80_bin.read_bytes()

    def once(i: int) -> None:
        source = data if i % 2 else files.model_bin
        with Model.open(source) as model, Session(model, threads=1 + i % 2) as session:
            session.set_adapter(Adapter.open(files.adapter_bin))
            session.feed([5] * 90)
            model.tokenize(TEXT * 100)
            with pytest.raises(UserError):
                Model.open(data[: 1000 + 10 * i])

    for i in range(30):
        once(i)
    gc.collect()
    before = rss_mb()
    for i in range(200):
        once(i)
    gc.collect()
    assert rss_mb() - before < 4  # one KV cache not freed each time would be 20 MB


def test_a_session_is_closed_before_its_model_in_whatever_order_they_are_dropped() -> None:
    for drop_model_first in (True, False):
        closed: list[int] = []
        model = Handle(1, closed.append)
        session = Handle(2, closed.append, model)
        if drop_model_first:
            del model
            assert closed == []
            del session
        else:
            del session
            assert closed == [2]
            del model
        assert closed == [2, 1]
    closed = []
    model, cycle = Handle(1, closed.append), SimpleNamespace()
    cycle.session, cycle.model, cycle.itself = Handle(2, closed.append, model), model, cycle
    del model, cycle
    gc.collect()
    assert closed == [2, 1]
    _close(closed.append, 3, os.getpid() + 1, [])  # in a forked process
    assert closed == [2, 1]


def python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT)


def test_the_interpreter_may_end_with_everything_open(files: SimpleNamespace) -> None:
    code = """
import sys, threading, time
from nano_ds.libnano import Model, Session
model = Model.open(open(sys.argv[1], "rb").read())
session, other = Session(model, threads=2), Session(model, threads=2)
session.feed([5, 6])
def work():
    while True:
        other.reset()
        other.feed([5] * 90)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("torch" in sys.modules)
"""
    for _ in range(3):
        done = python(code, files.model_bin)
        assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_a_fork_leaves_sessions_behind(files: SimpleNamespace) -> None:
    code = """
import os, sys
from nano_ds.libnano import Model, Session
model = Model.open(sys.argv[1])
session = Session(model, threads=2)
wanted = session.eval([5, 6]).tolist()
child = os.fork()
if child == 0:
    try:
        session.feed([7])
    except RuntimeError as e:
        assert "fork" in str(e)
        session.close()
        with Session(model, threads=2) as mine:
            os._exit(0 if mine.eval([5, 6]).tolist() == wanted else 4)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
session.feed([7])
"""
    done = python(code, files.model_bin)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


# ---- the scripts


def run_script(which: str, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """generate.py or ds_generate.py with these arguments, in this process."""
    deepspeed = which == "ds_generate"
    made = generate_script.add_prompt(parser("", engines=not deepspeed), engines=not deepspeed)
    parsed = made.parse_args(list(map(str, args)))
    capsys.readouterr()
    code = guard("generate", lambda: generate_script.run(parsed, deepspeed))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_generate_says_the_same_in_c(files: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def generate(*args: object) -> str:
        code, out, err = run_script("generate", capsys, *args)
        assert code == 0, err
        return out

    for how in (
        ["--seed", 7, "-n", 30, "the cat"],
        ["-t", 0, "-n", 20, "-s", 15, "naïve 猫"],
        ["--seed", 3, "-i", "-n", 20, "the cat <|eos|>"],
        ["--seed", 3, "--special", "-n", 20, "the cat<|eos|>"],
        ["-t", 0.8, "-k", 40, "-p", 0.9, "-r", 1.1, "--seed", 5, ""],
    ):
        wanted = generate("-m", files.model, "--json", *how)
        assert generate("-m", files.model_bin, "--json", *how) == wanted
        assert len(json.loads(wanted)["ids"]) > 1
        assert generate("-m", files.model_bin, "--engine", "c", *how) == json.loads(wanted)["text"] + "\n"
        assert generate("-m", files.model_gguf, "--json", *how) == wanted
        adapted = generate("-m", files.model, "-l", files.adapter, "--json", *how)
        assert generate("-m", files.model_gguf, "-l", files.adapter_gguf, "--json", *how) == adapted
        assert generate("-m", files.model_bin, "-l", files.adapter_bin, "-j", 1, "--json", *how) == adapted != wanted
    full = generate("-m", files.full, "the cat")
    assert generate("-m", files.full_bin, "--no-causal", "the cat") == full
    code, _, err = run_script("generate", capsys, "-m", files.model_bin, "-n", 3, "-j", 2, "--profile", "the")
    assert code == 0 and "tok/s" in err and "C engine, 2 threads" in err and err.splitlines()[0].startswith("seed ")


def test_what_does_not_go_with_an_engine_is_refused(
    files: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for which, args, wanted in (
        ("generate", ["-m", files.model, "--engine", "c"], f"nano-ds export {files.model} -o model.bin"),
        ("generate", ["-m", files.model_bin, "--engine", "torch"], f"nano-ds import {files.model_bin} -o DIR"),
        ("ds_generate", ["-m", files.model_bin], f"nano-ds import {files.model_bin} -o DIR"),
        ("generate", ["-m", tmp_path / "no.bin"], "no such file"),
        ("generate", ["-m", files.model_bin, "--dtype", "bf16"], "--dtype: belongs to PyTorch"),
        ("generate", ["-m", files.model_bin, "--device", "cuda"], "--device: belongs to PyTorch"),
        ("generate", ["-m", files.model, "--no-causal"], "--no-causal: belongs to model files"),
        ("generate", ["-m", files.model_bin, "-l", files.adapter], "nano-ds export BASE_MODEL_DIR --lora"),
        ("generate", ["-m", files.model_bin, "-l", files.model_bin], "this is a model"),
        ("generate", ["-m", files.adapter_bin], "adapter"),
        ("generate", ["-m", files.model_bin, "-j", "0"], "-j: 0 is out of range"),
        ("generate", ["-m", files.model_bin, "-s", "3"], "shorten the prompt"),
    ):
        code, out, err = run_script(which, capsys, *args, "--seed", "1", "the cat sat on a mat")
        assert (code, out) == (2, "") and wanted in err and err.count("\n") == 1, (args, err)


def test_the_c_engine_needs_no_pytorch(files: SimpleNamespace, tmp_path: Path) -> None:
    """The scripts as a user runs them, where importing torch fails."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for name, stdin in (("generate.py", "the cat"), ("chat.py", "the cat\na mat\n")):
        command = [sys.executable, f"inference/{name}", "-m", str(files.model_bin), "--seed", "1", "-n", "5"]
        how = {"capture_output": True, "text": True, "timeout": 120, "input": stdin, "cwd": ROOT, "env": environment}
        done = subprocess.run(command, **how)  # type: ignore[call-overload]
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        done = subprocess.run([*command[:3], str(files.model), "--seed", "1"], **how)  # type: ignore[call-overload]
        assert done.returncode == 1 and "no torch here" in done.stderr


def test_the_example_of_the_c_readme_runs(files: SimpleNamespace) -> None:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "runtime_c" / "README.md").read_text(), re.S)
    assert len(found) == 1
    done = subprocess.run(
        [sys.executable, "-c", found[0]],
        capture_output=True, text=True, timeout=60, cwd=files.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stdout) > 5, done.stderr


def test_chat_says_the_same_in_c(
    files: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for source in (files.model, files.model_bin):
        questions = iter(["the cat", "a mat", "it rained", "sat on"])
        monkeypatch.setattr("builtins.input", lambda prompt, q=questions: next(q, ""))
        monkeypatch.setattr("sys.argv", ["chat.py", "-m", str(source), "--seed", "4", "-n", "12"])
        assert chat.main("") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].count("\n") >= 4


def test_a_prompt_that_goes_on_computes_only_what_is_new(model: Model, reference: Any) -> None:
    engine = CEngine(model, threads=1)
    ids = model.tokenize("the cat sat")
    made = list(islice(engine.stream(ids, GREEDY, 60), 6))
    assert made == list(stream(reference, ids, GREEDY, 6))

    def ask(prompt: list[int]) -> tuple[list[int], int]:
        timing = Timing()
        answer = list(engine.stream(prompt, GREEDY, 4, timing=timing))
        assert answer == list(stream(reference, prompt, GREEDY, 4))
        return answer, timing.prompt_tokens

    longer = [*ids, *made, 5, 6]
    answer, computed = ask(longer)
    assert computed == 2  # all that was yielded is there
    assert ask(longer) == (answer, 0)  # the session holds more than this, which is dropped
    assert ask([*longer, *answer])[1] == 0
    assert ask([*ids, 9])[1] == 1
    engine.position_wise([7, *ids])
    assert ask([*ids, 9, 9])[1] == len(ids) + 2
    assert list(islice(engine.stream(ids, GREEDY, 90), 6)) == made  # more room than the session had


# ---- rewinding, drafts, session files

REPEATING = SamplerParams(temperature=0.6, repetition_penalty=0.7, seed=8)


def plain(session: Session, n: int) -> list[int]:
    """The next tokens without guesses, one by one; a stop token is the last."""
    out: list[int] = []
    while len(out) < n:
        out.append(session.sample())
        if session.model.is_stop(out[-1]):
            break
        session.feed(out[-1:])
    return out


@pytest.mark.parametrize("params", [GREEDY, REPEATING, SamplerParams(seed=3)])
@pytest.mark.parametrize("draft", ["auto", "off", "always"])
def test_drafts_change_no_text(draft: str, params: SamplerParams, files: SimpleNamespace) -> None:
    with Model.open(files.model_q80_bin) as model, Session(model, draft="off", threads=1) as session:
        session.set_sampler(params)
        session.feed(model.tokenize(TEXT))
        wanted, logits, sampler = plain(session, 40), session.logits, session.sampler
        with Session(model, draft=draft, threads=1) as other:
            other.set_sampler(params)
            other.feed(model.tokenize(TEXT))
            assert list(other.stream(40)) == wanted
            assert (other.logits == logits).all() and other.sampler == sampler and other.tokens == session.tokens
            stats = other.stats
            assert stats.generated == other.length - len(model.tokenize(TEXT)) == stats.evals + stats.accepted
            assert (stats.drafted == 0) if draft == "off" else stats.seconds > 0
            if draft == "always" and params is REPEATING:
                assert stats.drafted > stats.accepted > 0, wanted


def test_a_generator_that_is_left_takes_back_what_nobody_saw(model: Model) -> None:
    with Session(model, threads=1) as session:
        session.set_sampler(REPEATING)
        session.feed(model.tokenize(TEXT))
        wanted = plain(session, 40)
    for n in range(1, 12):
        with Session(model, draft="always", threads=1) as session:
            session.set_sampler(REPEATING)
            session.feed(model.tokenize(TEXT))
            length = session.length
            seen = [p.id for p in islice(session.generate([]), n)]
            assert session.tokens[length:] == seen == wanted[:n]
            assert seen + list(session.stream(40 - n)) == wanted


def test_rewinding(model: Model) -> None:
    ids = model.tokenize(TEXT)
    with Session(model, threads=1) as session:
        logits = session.eval(ids, all_logits=True)
        session.rewind(len(ids))
        assert (session.logits == logits[-1]).all()
        session.rewind(4)
        assert session.tokens == ids[:4]
        with pytest.raises(UserError, match="no logits"):
            _ = session.logits
        session.set_sampler(GREEDY)
        assert session.sample() == logits[3].argmax() and (session.logits == logits[3]).all()
        assert session.keep([*ids[:3], 7, 8]) == 3 == session.length
        assert (session.eval(ids[3:]) == logits[-1]).all()
        assert session.keep([]) == 0


def test_a_session_goes_on_in_another_process(model: Model, files: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with Session(model, threads=1) as session:
        wanted = [p.id for p in session.generate(TEXT, 40, REPEATING)]
    with Session(model, threads=1) as session:
        made = [p.id for p in session.generate(TEXT, 17, REPEATING)]
        session.save(path)
    code = """
import sys
from nano_ds.libnano import Model, Session
with Model.open(sys.argv[1]) as model, Session(model) as session:
    session.load(sys.argv[2])
    print([p.id for p in session.generate([], 23)])
"""
    done = python(code, files.model_bin, path)
    assert made + json.loads(done.stdout.replace("None", "null")) == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["a.session"]

    whole = path.read_bytes()
    with Session(model, threads=1) as session:
        session.load(path)
        length, tokens = session.length, session.tokens
        for damaged, message in (
            (b"", "empty"),
            (whole[:-9], "cut or damaged"),
            (whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], "cut or damaged"),
            (files.model_bin.read_bytes(), "not a session file"),
        ):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=message):
                session.load(path)
            assert session.tokens == tokens
        path.write_bytes(whole)
        adapter = Adapter.open(files.adapter_bin)
        session.set_adapter(adapter)
        with pytest.raises(UserError, match="without an adapter"):
            session.load(path)
        session.feed([5])
        with pytest.raises(UserError, match="different adapters"):
            session.save(path)
    with Session(model, context=length - 1) as session, pytest.raises(UserError, match="has room for"):
        session.load(path)
    with Session(model, cache="f16") as session, pytest.raises(UserError, match="keys and values are f32"):
        session.load(path)
    with Model.open(files.model_q80_bin) as other, Session(other, cache="f32") as session:
        with pytest.raises(UserError, match="another model"):
            session.load(path)
        with pytest.raises(UserError, match="zero byte"):
            session.save("a\0b")
        with pytest.raises(UserError, match="no such folder"):
            session.save(tmp_path / "missing" / "a")
    with pytest.raises(UserError, match="draft 'maybe': must be one of auto, off, always"):
        Session(model, draft="maybe")
    assert path.read_bytes() == whole


# ---- nano-ds eval


def test_eval_of_a_file_agrees_with_pytorch(
    files: SimpleNamespace, model: Model, reference: Any, tokenizer: TrieTokenizer, small_set: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for batches, size, block in ((0, 3, 0), (2, 2, 0), (0, 8, 20)):
        wanted = mean_loss(reference, tokenizer, str(small_set), batches, size, block)
        got = mean_loss_c(model, str(small_set), batches, size, block, threads=1)
        assert got.tokens == wanted.tokens > 100
        assert abs(got.loss - wanted.loss) < 1e-5
        assert abs(got.bits_per_byte - wanted.bits_per_byte) < 1e-5
    printed = []
    for source in (files.model, files.model_bin, files.model_q80_bin, files.model_gguf):
        assert nano_ds(["eval", str(source), "--loss", str(small_set), "--batches", "0", "-j", "1"]) == 0
        printed.append(dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines()))
    assert printed[0] == printed[1] == printed[3] != printed[2]
    assert abs(float(printed[2]["perplexity"]) / float(printed[1]["perplexity"]) - 1) < 0.2


def test_eval_refuses_a_set_of_another_vocabulary(
    model: Model, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: SimpleNamespace
) -> None:
    make_model_dir(tmp_path / "small")
    assert nano_ds(["export", str(tmp_path / "small"), "-o", str(tmp_path / "small.bin")]) == 0
    capsys.readouterr()
    assert nano_ds(["eval", str(tmp_path / "small.bin"), "--loss", str(small_set)]) == 2
    assert "made with a vocabulary of 400 tokens" in capsys.readouterr().err
    assert nano_ds(["eval", str(files.model_bin), "--loss", str(small_set), "--dtype", "bf16"]) == 2
    assert "--dtype: belongs to PyTorch" in capsys.readouterr().err
    for source in (files.model, files.model_bin):
        assert nano_ds(["eval", str(source), "--loss", str(small_set), "--block-size", "97"]) == 2
        assert "--block-size: 97 is more than the model's context of 96" in capsys.readouterr().err
    assert nano_ds(["eval", str(tmp_path / "none.bin"), "--loss", str(small_set)]) == 2
    assert "no such file" in capsys.readouterr().err


def test_cross_entropy_is_exact_for_large_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 300, (6, 50)).astype(np.float32)
    targets = np.array([3, -100, 7, 49, 0, -100])
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none", ignore_index=-100
    ).numpy()
    np.testing.assert_allclose(cross_entropy(logits, targets), wanted[targets >= 0], rtol=1e-12)
