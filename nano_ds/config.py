"""The one schema of a run: frozen dataclasses, YAML in, every problem reported at once.

A recipe is a YAML file whose sections and keys are exactly the fields below. Any key can be overridden on the command
line as ``section.key=value``; list items are reached by index (``data.sets.0.weight=2``).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nano_ds.errors import UserError

T = TypeVar("T")
LORA_LAYERS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


class ConfigError(UserError):
    """Every problem found in a recipe and its overrides, one line each."""

    def __init__(self, source: str, problems: list[str]):
        self.problems = problems
        lines = problems if len(problems) == 1 else ["", *(f"  - {p}" for p in problems)]
        super().__init__(f"{source}: " + "\n".join(lines))


def opt(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field with its one-line help and its limits (``low`` and ``high`` are inclusive)."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the Transformer. Names and defaults are those of existing Nano models."""

    block_size: int = opt(256, "context length in tokens; attention memory grows with it", low=1, high=1 << 20)
    vocab_size: int = opt(10000, "tokens in the vocabulary; `train` takes it from the tokenizer", low=1, high=1 << 24)
    n_layer: int = opt(4, "depth: Transformer blocks", low=1, high=1024)
    n_head: int = opt(4, "query heads", low=1, high=4096)
    n_kv_head: int = opt(4, "key and value heads; must divide n_head (fewer = smaller KV cache)", low=1, high=4096)
    n_embd: int = opt(256, "width of the residual stream", low=1, high=1 << 16)
    n_hidden: int | None = opt(None, "width of the feed-forward; 8/3 n_embd rounded up to 64 when absent", low=1)
    head_dim: int | None = opt(None, "width of one head; n_embd / n_head when absent", low=1)
    dropout: float = opt(0.0, "drop probability while training; 0 to pretrain, 0.1 to fine-tune", low=0, high=0.95)
    bias: bool = opt(False, "biases on every linear layer")
    qkv_bias: bool = opt(False, "biases on the query, key and value projections only (Qwen2)")
    qk_norm: bool = opt(False, "RMSNorm over each query and key head (Qwen3)")
    use_rope: bool = opt(True, "rotary positions; false: learned position embeddings")
    rope_theta: float = opt(10000.0, "base of the rotary frequencies", low=1)
    rope_interleaved: bool = opt(True, "rotate pairs (2j, 2j+1) as Nano does; false: halves (Qwen)")
    norm_eps: float = opt(1e-5, "epsilon of RMSNorm", low=0)
    is_causal: bool = opt(True, "causal attention; false: every position sees every other")
    tie_embeddings: bool = opt(True, "one matrix for token embedding and output")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_hidden or -(-8 * self.n_embd // 3 // 64) * 64

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.n_embd // self.n_head

    def problems(self) -> Iterable[str]:
        if self.n_head % self.n_kv_head:
            yield f"model.n_kv_head: {self.n_kv_head} does not divide n_head {self.n_head}"
        if self.head_dim is None and self.n_embd % self.n_head:
            yield f"model.n_head: {self.n_head} does not divide n_embd {self.n_embd}; change one or set head_dim"
        if self.use_rope and self.head_width % 2:
            yield f"model.head_dim: rotary positions need an even head width, not {self.head_width}"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One prepared set of token shards and, for `nano-ds prepare`, where its text comes from."""

    dir: str = opt("", "folder of token shards that `nano-ds prepare` writes")
    kind: str = opt(
        "text",
        "text: plain documents; sft: questions and answers (JSONL), loss on the answers only",
        choices=("text", "sft"),
    )
    weight: float = opt(1.0, "share of the samples relative to the other sets", low=0)
    text: tuple[str, ...] = opt(
        (), "text files, folders, .jsonl files or builtin:python-docs, for `prepare` (sft: .jsonl)"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the model reads."""

    tokenizer: str = opt(
        "", "tokenizer.json of the run; `prepare` builds it when it does not exist (absent: that of train.init_from)"
    )
    tokenizer_kind: str = opt(
        "trie", "what `prepare` builds: longest match (trie) or byte-level BPE (bpe)", choices=("trie", "bpe")
    )
    tokenizer_vocab_size: int = opt(4096, "size of the vocabulary that `prepare` builds", low=263, high=1 << 20)
    sets: tuple[DataSet, ...] = opt((), "prepared sets, mixed by weight into one stream")
    block_size: int | None = opt(
        None, "tokens of a training sequence, at most model.block_size (absent: that, or the size sft sets have)", low=2
    )
    document_mask: bool = opt(
        False, "text: attention stays inside each document and positions restart there; sft sets always do so"
    )
    val_fraction: float = opt(0.02, "share of the documents kept for validation (by hash of the text)", low=0, high=0.5)

    def problems(self) -> Iterable[str]:
        if self.sets and not sum(s.weight for s in self.sets) > 0:
            yield "data.sets: the weights add up to nothing; give at least one set a positive weight"
        for i, s in enumerate(self.sets):
            if not s.dir:
                yield f"data.sets.{i}.dir: every set needs the folder of its shards"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters instead of all weights. With a rank above 0 the weights of train.init_from stay as they are."""

    rank: int = opt(0, "columns of an adapter, 4 to 64; 0: no adapters, all weights are trained", low=0, high=1 << 12)
    alpha: float = opt(32.0, "strength: the adapter counts alpha / rank times", low=0)
    dropout: float = opt(0.0, "drop probability of an adapter's input while training", low=0, high=0.95)
    targets: tuple[str, ...] = opt(
        ("wq", "wk", "wv", "wo"), "linear layers that get one; w1, w2, w3 are those of the feed-forward"
    )

    def problems(self) -> Iterable[str]:
        if unknown := [t for t in self.targets if t not in LORA_LAYERS]:
            yield f"lora.targets: {', '.join(unknown)} is none of {', '.join(LORA_LAYERS)}"
        if self.rank and not self.targets:
            yield "lora.targets: is empty; name at least one layer, such as wq"
        if self.rank and not self.alpha > 0:
            yield "lora.alpha: 0 would switch the adapters off; use rank or twice the rank"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move. The rate is a pure function of the step, so a restart changes nothing."""

    lr: float = opt(6e-4, "peak learning rate; smaller models take larger ones", low=0)
    min_lr: float = opt(6e-5, "learning rate at the end of the decay", low=0)
    schedule: str = opt("cosine", "shape after the warm-up", choices=("cosine", "wsd", "constant"))
    warmup_steps: int = opt(100, "steps of linear warm-up from zero", low=0)
    decay_steps: int | None = opt(None, "step at which min_lr is reached; train.max_steps when absent", low=1)
    wsd_decay: float = opt(0.2, "wsd: share of the steps spent on the final decay", low=0, high=1)
    weight_decay: float = opt(0.1, "decoupled weight decay on matrices (never on norms and biases)", low=0)
    beta1: float = opt(0.9, "AdamW: decay of the first moment", low=0, high=0.9999)
    beta2: float = opt(0.95, "AdamW: decay of the second moment", low=0, high=0.99999)
    eps: float = opt(1e-8, "AdamW: added to the denominator", low=0)
    grad_clip: float = opt(1.0, "largest global gradient norm; 0 switches clipping off", low=0)

    def problems(self) -> Iterable[str]:
        if self.min_lr > self.lr:
            yield f"optim.min_lr: {self.min_lr} is above optim.lr {self.lr}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how much at once, what is written when."""

    seed: int = opt(39, "seed of weights, dropout and the order of samples", low=0, high=(1 << 63) - 1)
    batch_size: int = opt(32, "sequences per optimiser step over all devices; fixes what is learned", low=1)
    micro_batch_size: int | None = opt(
        None, "sequences per device at once; lower this first when out of memory (absent: batch_size / devices)", low=1
    )
    max_steps: int = opt(1000, "optimiser steps of the whole run", low=1)
    dtype: str = opt("auto", "auto: bf16 where the GPU has it, else fp32", choices=("auto", "fp32", "bf16"))
    init_from: str = opt(
        "", "model directory to start from instead of random weights; its shape replaces model.* except dropout"
    )
    log_every: int = opt(10, "steps between log lines", low=1)
    eval_every: int = opt(100, "steps between validations; 0: never", low=0)
    eval_batches: int = opt(8, "global batches of each validation", low=1)
    checkpoint_every: int = opt(200, "steps between checkpoints; 0: only at the end and on a signal", low=0)
    keep_last: int = opt(2, "newest checkpoints to keep", low=1)
    keep_every: int = opt(0, "keep every checkpoint whose step is a multiple of this for good; 0: none", low=0)
    keep_best: bool = opt(True, "keep the checkpoint with the lowest validation loss")
    guard_z: float = opt(
        8.0, "skip a step whose loss or gradient norm is this many deviations above usual; 0: only if not finite", low=0
    )
    guard_patience: int = opt(
        5,
        "skipped steps in a row after which the run goes back to its checkpoint and past the batches; 0: never",
        low=0,
    )
    drift_every: int = opt(100, "steps between comparisons of the parameters of all ranks; 0: never", low=0)
    compile: bool = opt(False, "torch.compile the model; pays on GPUs after a minute")
    sdp_kernel: str = opt(
        "auto", "attention kernel PyTorch may use", choices=("auto", "flash", "efficient", "cudnn", "math")
    )
    sample_prompt: str = opt("", "prompt of the text sampled at each validation (empty: starts a document)")
    sample_tokens: int = opt(64, "tokens of that sample; 0: none", low=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and how DeepSpeed is set up."""

    dir: str = opt("runs/default", "folder of the run: config, log, TensorBoard, checkpoints")
    mirror: str = opt("", "second folder (another disk) that gets a copy of every checkpoint; --mirror sets it")
    deepspeed_config: str = opt("ds_configs/zero1.json", "DeepSpeed JSON; --deepspeed_config wins")
    backend: str = opt("auto", "collectives between processes", choices=("auto", "nccl", "gloo"))

    def problems(self) -> Iterable[str]:
        if not self.dir:
            yield "run.dir: is empty; name a folder such as runs/mine"
        elif self.mirror:
            own, copy = Path(self.dir).resolve(), Path(self.mirror).resolve()
            if own == copy or own in copy.parents or copy in own.parents:
                yield f"run.mirror: {self.mirror} and run.dir {self.dir} lie in one another; name a folder elsewhere"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole recipe."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def problems(self) -> Iterable[str]:
        t = self.train
        if t.micro_batch_size and t.batch_size % t.micro_batch_size:
            yield f"train.micro_batch_size: {t.micro_batch_size} does not divide train.batch_size {t.batch_size}"
        if self.lora.rank and not t.init_from:
            yield "lora.rank: an adapter needs the model that it adapts; set train.init_from to a model directory"
        if not t.init_from and (self.data.block_size or 0) > self.model.block_size:
            yield f"data.block_size: {self.data.block_size} is more than model.block_size {self.model.block_size}"


def load_config(recipe: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Reads a recipe and applies ``section.key=value`` overrides.

    Raises:
        ConfigError: naming every unknown key (with the nearest valid one), wrong type and impossible value at once.
        UserError: the file is missing, not UTF-8 or not YAML.
    """
    tree: dict[str, Any] = {}
    source = "defaults"
    if recipe is not None:
        source = str(recipe)
        tree = _read_yaml(Path(recipe))
    problems: list[str] = []
    for text in overrides:
        _apply_override(tree, text, problems)
    config = from_tree(Config, tree, source, problems)
    return config


def from_tree(cls: type[T], tree: Any, source: str, problems: list[str] | None = None) -> T:
    """Builds dataclass ``cls`` from plain mappings; raises ConfigError with every problem found."""
    problems = [] if problems is None else problems
    made = _build(cls, tree, "", problems)
    if problems or made is None:
        raise ConfigError(source, problems)
    return made


def to_tree(config: Any) -> dict[str, Any]:
    """The plain form of a config, as written to ``config.yaml``."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    tree = plain(dataclasses.asdict(config))
    assert isinstance(tree, dict)
    return tree


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)


def describe_fields() -> str:
    """Help text of every recipe key: name, default, meaning (for ``nano-ds train --help``)."""
    lines: list[str] = []

    def section(prefix: str, cls: Any) -> None:
        for f in dataclasses.fields(cls):
            default = f.default if f.default is not None else "absent"
            choices = f.metadata.get("choices")
            note = f" [{'|'.join(choices)}]" if choices else ""
            lines.append(f"  {prefix + f.name:<28} {default!s:<12} {f.metadata['help']}{note}")

    for f in dataclasses.fields(Config):
        cls = typing.get_type_hints(Config)[f.name]
        lines.append(f"{f.name}: {(cls.__doc__ or '').splitlines()[0]}")
        section(f"{f.name}.", cls)
        if cls is DataConfig:
            section("data.sets.N.", DataSet)
    return "\n".join(lines)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in Path("recipes").glob("*.yaml")], 1, 0.4)
        hint = f"did you mean recipes/{near[0]}?" if near else "recipes are YAML files, see recipes/"
        raise UserError(f"{path}: no such recipe; {hint}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as e:
        detail = " ".join(str(e).split())
        raise UserError(f"{path}: not a YAML recipe: {detail}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot read the recipe: {e.strerror}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections ({', '.join(_names(Config))}), not a {_kind(tree)}")
    return tree


def _apply_override(tree: dict[str, Any], text: str, problems: list[str]) -> None:
    key, eq, raw = text.partition("=")
    if not eq or not key:
        problems.append(f"override {text!r}: write it as section.key=value, for example train.max_steps=100")
        return
    try:
        value = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError:
        value = raw
    node: Any = tree
    *parents, leaf = key.split(".")
    for part in parents:
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                problems.append(f"{key}: no item {part!r} in a list of {len(node)}")
                return
            node = node[int(part)]
            continue
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, (dict, list)):
            problems.append(f"{key}: {part!r} is a value, not a section")
            return
        node = child
    if isinstance(node, list):
        if not leaf.isdigit() or int(leaf) >= len(node):
            problems.append(f"{key}: no item {leaf!r} in a list of {len(node)}")
            return
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _names(cls: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _kind(value: Any) -> str:
    return {dict: "mapping", list: "list", str: "text", bool: "boolean"}.get(type(value), type(value).__name__)


def _build(cls: Any, tree: Any, prefix: str, problems: list[str]) -> Any:
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'recipe'}: expected a mapping of keys, not a {_kind(tree)}")
        return None
    hints = typing.get_type_hints(cls)
    names = _names(cls)
    before = len(problems)
    values: dict[str, Any] = {}
    for key, raw in tree.items():
        if key not in names:
            problems.append(f"{prefix}{key}: unknown key; {_suggest(str(key), names, prefix)}")
            continue
        f = next(f for f in dataclasses.fields(cls) if f.name == key)
        value = _convert(hints[key], raw, f"{prefix}{key}", f.metadata, problems)
        if value is not _BAD:
            values[key] = value
    if len(problems) > before:
        return None
    made = cls(**values)
    if hasattr(made, "problems"):
        problems.extend(made.problems())
    return made


def _suggest(key: str, names: list[str], prefix: str) -> str:
    near = difflib.get_close_matches(key, names, 1, 0.5)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    everywhere = {n: f"{s}.{n}" for s in _names(Config) for n in _names(typing.get_type_hints(Config)[s])}
    if key in everywhere:
        return f"it belongs to another section: {everywhere[key]}"
    near = difflib.get_close_matches(key, list(everywhere), 1, 0.6)
    return f"did you mean {everywhere[near[0]]}?" if near else f"valid here: {', '.join(names)}"


_BAD = object()


def _convert(hint: Any, raw: Any, key: str, meta: Mapping[str, Any], problems: list[str]) -> Any:
    """The value of one key in its declared type, or _BAD with a problem added."""
    if dataclasses.is_dataclass(hint):
        made = _build(hint, raw, key + ".", problems)
        return _BAD if made is None else made
    if typing.get_origin(hint) is tuple:
        return _convert_list(typing.get_args(hint)[0], raw, key, problems)
    if isinstance(hint, types.UnionType):
        if raw is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    value = _scalar(hint, raw)
    if value is _BAD:
        article = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
        problems.append(f"{key}: expected {article}, not {raw!r}")
        return _BAD
    if meta.get("choices") and value not in meta["choices"]:
        problems.append(f"{key}: {value!r} is none of {', '.join(meta['choices'])}")
        return _BAD
    low, high = meta.get("low"), meta.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        problems.append(f"{key}: {value} is out of range, it must be {limits}")
        return _BAD
    return value


def _convert_list(item: Any, raw: Any, key: str, problems: list[str]) -> Any:
    if isinstance(raw, str) and item is str:
        raw = [raw] if raw else []
    if not isinstance(raw, (list, tuple)):
        problems.append(f"{key}: expected a list, not {raw!r}")
        return _BAD
    made = [_convert(item, r, f"{key}.{i}", {}, problems) for i, r in enumerate(raw)]
    return _BAD if any(m is _BAD for m in made) else tuple(made)


def _scalar(hint: Any, raw: Any) -> Any:
    if hint is bool:
        return raw if isinstance(raw, bool) else _BAD
    if isinstance(raw, bool):
        return _BAD
    if hint is int:
        if isinstance(raw, float) and raw.is_integer():
            return int(raw)
        return _number(raw, int) if isinstance(raw, str) else raw if isinstance(raw, int) else _BAD
    if hint is float:
        # YAML 1.1 reads 6e-4 as text; people write it all the time.
        value = _number(raw, float) if isinstance(raw, (str, int, float)) else _BAD
        return value if isinstance(value, float) and math.isfinite(value) else _BAD
    return str(raw) if isinstance(raw, (str, int, float)) else _BAD


def _number(raw: Any, kind: Any) -> Any:
    try:
        return kind(raw)
    except ValueError:
        return _BAD
