"""The training loop: data to engine to monitor to checkpoints."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import secrets
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nano_ds import checkpoint, hardware, lora
from nano_ds.collectives import World, agree, any_rank, broadcast, gather, peer_lost
from nano_ds.config import Config, to_tree, to_yaml
from nano_ds.copies import Copies, claim_mirror
from nano_ds.data import BlockStream, Loader, Validation
from nano_ds.disks import find_disks
from nano_ds.engine import Engine
from nano_ds.errors import PeerLost, RunFailure, UserError
from nano_ds.generate import stream
from nano_ds.model import Transformer, parameter_count, train_flops_per_token
from nano_ds.monitor import Clock, Monitor, Speed, say
from nano_ds.nodes.silence import limit_silence
from nano_ds.pace import Pace
from nano_ds.provenance import git_revision, versions
from nano_ds.resume import Resume, resumed_seed
from nano_ds.run_dir import check_same_run, lock, write_config
from nano_ds.sampling import SamplerParams
from nano_ds.saving import Saver, rng_name
from nano_ds.schedule import learning_rate
from nano_ds.shards import TokenSet
from nano_ds.start_from import resolved, with_vocabulary
from nano_ds.stop import StopRequest
from nano_ds.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from nano_ds.zero_shards import Layout

RETURNS = 3  # times that a run goes back to the same checkpoint before it gives up


@dataclass
class Progress:
    """What changes while a run goes on; saved with every checkpoint."""

    step: int = 0  # optimiser steps done
    loss: float | None = None  # of this step's batch
    val_loss: float | None = None  # of this step's validation
    lowest: float | None = None  # of all validations
    best: dict[str, float] = field(default_factory=dict)  # step and loss of the best checkpoint
    passed_over: int = 0  # batches left out after going back: the data are this many steps ahead
    guard: list[float] = field(default_factory=list)  # running statistics


def train(config: Config, resume: str, world: World, stop: StopRequest) -> int:
    """Trains to ``train.max_steps`` or until a signal; every rank calls it. Returns the exit code."""
    run_dir = Path(config.run.dir)
    with contextlib.ExitStack() as held:
        try:
            return Run(config, resume, world, run_dir, stop, held).go()
        except RuntimeError as e:
            if not peer_lost(e):
                raise
            raise PeerLost(
                "another process of the run has ended or cannot be reached; its own last lines say why "
                "(the last checkpoint is whole: run it again)"
            ) from e


class Run:
    """One run on this rank; ``held`` keeps its locks."""

    def __init__(
        self,
        config: Config,
        resume: str,
        world: World,
        run_dir: Path,
        stop: StopRequest,
        held: contextlib.ExitStack,
    ):
        self.world, self.run_dir = world, run_dir
        self.checkpoints = run_dir / "checkpoints"
        self.stop = stop
        config = resolved(config)
        self.tokenizer = _tokenizer(config)
        self.config = config = with_vocabulary(config, self.tokenizer)
        self.data_sets = _open_sets(config, "train", self.tokenizer)
        self.length = _length(config, self.data_sets)
        self.data_fingerprint = _fingerprint(config, self.data_sets, self.length)
        weights = [s.weight for s in config.data.sets]
        t = config.train
        mask = config.data.document_mask
        self.stream = BlockStream(self.data_sets, self.length, weights, t.seed, document_mask=mask)
        self.base = _base_fingerprint(config, world)
        # Found before the model is built: nothing is worse than a resume that fails after minutes.
        self.disks = find_disks(self.checkpoints, world)
        self._lock(held)
        mirror = Path(config.run.mirror) if config.run.mirror else None
        self.start = Resume(resume, run_dir, mirror, world, self.disks).choose(self._check)
        # A branch from another run's checkpoint is a run of its own.
        own = self.start is not None and self.start.path.parent.resolve() == self.checkpoints.resolve()
        saved_id = self.start.state.get("run_id") if self.start and own else None
        self.run_id: str = saved_id or broadcast(secrets.token_hex(8), world)
        if mirror is not None:
            agree(lambda: claim_mirror(mirror, self.run_id, held), world, here=world.is_main)
        torch.manual_seed(t.seed)
        model = Transformer(config.model)
        if t.init_from and (self.start is None or config.lora.rank):
            _load_weights(model, t.init_from)
        if config.lora.rank:
            lora.inject(model, config.lora.rank, config.lora.alpha, config.lora.targets, config.lora.dropout)
            lora.only_adapters_train(model)
        self.engine = Engine(model, config, world)
        torch.manual_seed(t.seed + 1 + world.rank)  # dropout differs between ranks
        self.progress = Progress()
        self.returns = 0  # to a checkpoint, since the last save
        if self.start is not None:
            self._restore(self.start)
        self.validation = self._make_validation(weights)
        copies = Copies(self.checkpoints, mirror, t, world, self.disks)
        if own and self.start is not None:
            copies.catch_up(self.start.step)
        self.saver = Saver(self.checkpoints, config, world, self.disks, self.engine, self.tokenizer, copies)
        limit_silence()  # of the connections made since the start, too

    def _make_validation(self, weights: list[float]) -> Validation | None:
        t = self.config.train
        if not t.eval_every:
            return None
        sets = [
            (s, w) for s, w in zip(_open_sets(self.config, "val", self.tokenizer), weights, strict=True) if s.tokens
        ]
        if not sets:
            raise UserError(
                "train.eval_every: no set has validation data; prepare with data.val_fraction above 0 or set 0"
            )
        mask = self.config.data.document_mask
        stream = BlockStream([s for s, _ in sets], self.length, [w for _, w in sets], shuffle=False, document_mask=mask)
        return Validation(
            stream,
            eval_batches=t.eval_batches,
            batch_size=t.batch_size,
            micro_batch=self.engine.micro_batch_size,
        )

    def _lock(self, held: contextlib.ExitStack) -> None:
        """Holds the run's folder on every disk: two runs may share a disk that is not the first of both."""

        def hold() -> None:
            try:
                held.enter_context(lock(self.run_dir))
            except UserError as e:
                host = "" if self.disks.shared else f"{self.disks.names[self.world.rank]}: "
                raise UserError(f"{host}{e}") from None

        agree(hold, self.world, here=self.disks.leads)

    def _check(self, found: checkpoint.Checkpoint) -> None:
        """Raises UserError when this run cannot go on from ``found``."""
        marks = self.data_fingerprint, self.tokenizer.fingerprint, self.base
        check_same_run(found.path, found.state, self.config, *marks)

    def _restore(self, start: checkpoint.Checkpoint) -> None:
        saved = Layout.of(start.state)
        converted = self.engine.load(start.path, saved, start.state.get("engine_steps", start.step))
        same_ranks = saved.world_size == self.world.size
        if same_ranks:
            rng = torch.load(start.path / rng_name(self.world.rank), weights_only=True)
            torch.set_rng_state(rng["cpu"])
            if self.world.device.type == "cuda" and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"], self.world.device)
        else:
            torch.manual_seed(resumed_seed(self.config.train.seed, start.step, self.world.rank))
        if converted and self.world.is_main:
            redrawn = (self.config.model.dropout or self.config.lora.dropout) and not same_ranks
            say(f"converts {converted}" + ("; dropout draws other numbers" if redrawn else ""))
        self.progress = Progress(**start.state["progress"])
        self.engine.guard.load(self.progress.guard)

    def go(self) -> int:
        t, p = self.config.train, self.progress
        if p.step >= t.max_steps:
            if self.world.is_main:
                say(f"{self.run_dir}: already at step {p.step} of {t.max_steps}; raise train.max_steps to go on")
            self.saver.copies.finish()
            return 0
        self.monitor = None
        if self.world.is_main:
            write_config(self.run_dir, self.config)
            self.monitor = Monitor(self.run_dir, t.max_steps, p.step)
            self.monitor.facts(self._facts(), to_yaml(self.config))
        try:
            while self._stretch():
                self._go_back()
            self.saver.copies.finish()
            self.engine.comms_summary()
        finally:
            if self.monitor:
                self.monitor.close()
        if self.world.is_main:
            self._last_words()
        return 0

    def _stretch(self) -> bool:
        """Trains on from where the run is, to its end or a signal; True when it must go back first."""
        t, p = self.config.train, self.progress
        with Loader(
            self.stream,
            step=p.step + p.passed_over,
            rank=self.world.rank,
            world=self.world.size,
            micro_batch=self.engine.micro_batch_size,
            accum=self.engine.accumulation,
            batch_size=t.batch_size,
        ) as loader:
            return self._loop(loader)

    def _loop(self, loader: Loader) -> bool:
        t, p = self.config.train, self.progress
        peak = hardware.peak_flops(self.world.device, self.engine.bf16)
        tokens = t.batch_size * self.length
        speed = Speed(tokens, self._flops_per_token(), peak, self.world.size)
        clock, logged = Clock(), p.step
        pace = Pace(self.world, tokens)
        gc.collect()
        gc.freeze()  # what lives as long as the run need not be searched again and again
        while p.step < t.max_steps:
            lr = learning_rate(self.config.optim, p.step, t.max_steps)
            with pace:
                loss = self.engine.step(loader.next_step(), lr)
            p.step += 1
            if p.step % t.log_every == 0 or p.step == t.max_steps or p.step == logged + 1 == 1:
                seconds = clock.lap()
                values = {"step": p.step, "loss": loss.item(), "lr": lr, "grad_norm": float(self.engine.grad_norm)}
                values |= speed.measure(p.step - logged, seconds, t.max_steps - p.step)
                values |= pace.report(values["step_s"])
                values["tokens"] = p.step * tokens
                values["memory_mb"] = hardware.peak_memory_mb(self.world.device)
                values["skipped"] = self.engine.guard.verdict().total
                logged = p.step
                if self.monitor:
                    self.monitor.step(values)
            verdict = self.engine.guard.verdict()
            if verdict.skipped and self.monitor:
                self.monitor.skipped(p.step, verdict.why, verdict.total)
            pause = time.perf_counter()
            stopping = any_rank(self.stop.asked, self.world)
            if t.guard_patience and verdict.in_a_row >= t.guard_patience and not stopping:
                return True
            last = p.step == t.max_steps
            # In the middle of a bad stretch only the last chance to save is taken.
            due = t.checkpoint_every and p.step % t.checkpoint_every == 0 and not verdict.in_a_row
            saving = bool(stopping or last or due)
            if saving or (t.drift_every and p.step % t.drift_every == 0):
                self.engine.check_drift(self.disks.names)
            p.val_loss = None
            if self.validation and not stopping and (p.step % t.eval_every == 0 or saving):
                self._validate(self.validation)
            if saving:
                p.loss = loss.item()
                self._save(last or stopping)
            clock.pause(pause)
            if stopping and not last:
                break
        return False

    def _go_back(self) -> None:
        """Loads the newest checkpoint and leaves the batches since then out.

        Raises:
            RunFailure: there is no checkpoint to go back to, or going back has not helped.
        """
        t, p = self.config.train, self.progress
        fix = "lower optim.lr or lengthen optim.warmup_steps, and look at the data"
        trouble = f"step {p.step}: {t.guard_patience} steps in a row were skipped"
        self.returns += 1
        if self.returns > RETURNS:
            raise RunFailure(f"{trouble}, also after going back {RETURNS} times; {fix} (the last checkpoint is whole)")
        self.saver.copies.finish()
        found = Resume("auto", self.run_dir, None, self.world, self.disks).choose(self._check)
        if found is None:
            raise RunFailure(f"{trouble} and there is no checkpoint to go back to; {fix}")
        done = p.step + p.passed_over
        self._restore(found)
        self.progress.passed_over = done - found.step
        if self.monitor:
            self.monitor.back_to(found.step)
            say(f"{trouble}: goes back to step {found.step} and past the batches up to there")

    def _validate(self, validation: Validation) -> None:
        p = self.progress
        p.val_loss = loss = self.engine.evaluate(validation.batches(self.world.rank, self.world.size))
        best = math.isfinite(loss) and (p.lowest is None or loss < p.lowest)
        p.lowest = loss if best else p.lowest
        if self.monitor:
            self.monitor.validation(p.step, loss, loss / math.log(2) / validation.bytes_per_token, best)
        prompt, text = self._sample()
        if self.monitor and text:
            self.monitor.sample(p.step, prompt, text)

    def _sample(self) -> tuple[str, str]:
        """A continuation by the model as it is; every rank makes the same, since ZeRO-3 needs all of them."""
        t = self.config.train
        if not t.sample_tokens or not self.config.model.is_causal:
            return "", ""
        ids = self.tokenizer.encode(t.sample_prompt) or [self.tokenizer.eos_id]
        room = min(t.sample_tokens, self.config.model.block_size - len(ids))
        if room < 1:
            return "", ""
        params = SamplerParams(temperature=0.8, top_k=40, repetition_penalty=1.1, seed=t.seed)
        # No early stop: with ZeRO-3 every rank has to run the same number of forward passes.
        self.engine.model.eval()
        decoder = StreamDecoder(self.tokenizer)
        text = "".join([decoder.feed(i) for i in stream(self.engine.model, ids, params, room)]) + decoder.finish()
        return t.sample_prompt, text

    def _save(self, last: bool) -> None:
        p = self.progress
        p.guard = self.engine.guard.save()
        self.returns = 0
        if p.val_loss is not None and math.isfinite(p.val_loss) and (not p.best or p.val_loss < p.best["loss"]):
            p.best = {"step": p.step, "loss": p.val_loss}
        self.saver.save(p.step, self._state(), int(p.best["step"]) if p.best else None, last)

    def _state(self) -> dict[str, Any]:
        p = self.progress
        samples = p.step * self.config.train.batch_size
        return {
            "step": p.step,
            "samples": samples,
            "tokens": samples * self.length,
            "progress": p.__dict__,
            "world_size": self.world.size,
            "zero_stage": self.engine.stage,
            "bf16": self.engine.bf16,
            "engine_steps": self.engine.steps,
            "run_id": self.run_id,
            "data": self.data_fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "base": self.base,
            "git": git_revision(),
            "versions": versions(),
            "config": to_tree(self.config),
        }

    def _flops_per_token(self) -> int:
        shape = replace(self.config.model, block_size=self.length)
        return train_flops_per_token(shape, frozen=bool(self.config.lora.rank))

    def _facts(self) -> dict[str, str]:
        c, t = self.config, self.config.train
        parts = parameter_count(c.model)
        tokens = t.batch_size * self.length
        samples = sum(self.stream.blocks)
        own = " by document" if self.stream.document_mask else ""
        if self.stream.packed:
            shards = [s for k in self.stream.sets for s in k.shards if s.row]
            total, padding = (sum(n) for n in zip(*((len(s.tokens), s.padding) for s in shards), strict=True))
            own = f", questions and answers packed with {padding / total:.1%} padding"
        lora_facts = {}
        if c.lora.rank:
            count = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.trained.values())
            names = ", ".join(c.lora.targets)
            lora_facts["adapters"] = f"{count:,} parameters: rank {c.lora.rank} on {names}; the rest stays as it is"
        kind = "bf16 with fp32 master weights" if self.engine.bf16 else "fp32"
        fallback = ""
        if t.dtype == "auto" and not self.engine.bf16:
            fallback = " (auto: this device has no fast bf16)"
        return {
            "run": str(self.run_dir) + (f", goes on from step {self.progress.step}" if self.start else ""),
            "device": f"{self.world.size} x {hardware.device_name(self.world.device)}",
            "numbers": kind + fallback,
            "ZeRO": f"stage {self.engine.stage} ({c.run.deepspeed_config})",
            "parameters": f"{parts['total']:,} ({parts['embedding'] + parts['head']:,} of them in the vocabulary)",
            **lora_facts,
            "FLOPs per token": f"{self._flops_per_token() / 1e6:,.1f} M",
            "data": f"{samples:,} samples of {self.length} tokens{own} in {len(c.data.sets)} set(s)",
            "step": f"{t.batch_size} samples = {tokens:,} tokens: {self.world.size} device(s) x micro batch "
            f"{self.engine.micro_batch_size} x {self.engine.accumulation} accumulation",
            "length": f"{t.max_steps:,} steps = {t.max_steps * tokens:,} tokens = "
            f"{t.max_steps * t.batch_size / samples:.2f} epochs",
            "watch": f"tensorboard --logdir {self.run_dir}",
        }

    def _last_words(self) -> None:
        p, t = self.progress, self.config.train
        if p.step < t.max_steps:
            say(f"stopped at step {p.step} of {t.max_steps}; the same command goes on from here")
            return
        best = f"; best validation loss {p.best['loss']:.4f} at step {int(p.best['step'])}" if p.best else ""
        say(f"trained {p.step} steps{best}")
        if self.saver.copies.problem:
            say(f"the copy elsewhere is not up to date: {self.saver.copies.problem}")
        made = self.run_dir / ("adapter" if self.config.lora.rank else "model")
        say(f"next: nano-ds consolidate {self.run_dir} -o {made}")


def check_data(config: Config) -> None:
    """Raises UserError when tokenizer or data sets cannot be used: said once, before every process would say it."""
    config = resolved(config)
    tokenizer = _tokenizer(config)
    config = with_vocabulary(config, tokenizer)
    _length(config, _open_sets(config, "train", tokenizer))


def _tokenizer(config: Config) -> Tokenizer:
    if not config.model.is_causal:
        raise UserError(
            "model.is_causal: false would let the model see the very tokens that it has to predict; "
            "training of non-causal models (tasks) is not there yet"
        )
    if not config.data.sets:
        raise UserError("data.sets: the recipe names no data; add a set with `dir:` (see recipes/demo.yaml)")
    path = config.data.tokenizer
    if not path or not Path(path).is_file():
        raise UserError(
            f"{path or 'data.tokenizer'}: there is no tokenizer yet; run `nano-ds prepare` with this recipe first"
        )
    return load_tokenizer(path)


def _open_sets(config: Config, split: str, tokenizer: Tokenizer) -> list[TokenSet]:
    made = []
    for i, s in enumerate(config.data.sets):
        found = TokenSet.open(s.dir, split, tokenizer.fingerprint)
        kind = "sft" if found.block_size else "text"
        if kind != s.kind:
            raise UserError(
                f"data.sets.{i}.kind: is {s.kind}, but {s.dir} was prepared as {kind}; put one of them right"
            )
        made.append(found)
    return made


def _length(config: Config, sets: list[TokenSet]) -> int:
    """Tokens of a training sequence: what the recipe says, else that of packed sets, else the model's context."""
    packed = next((s for s in sets if s.block_size), None)
    length = config.data.block_size or (packed.block_size if packed else config.model.block_size)
    if length > config.model.block_size:
        assert packed is not None
        raise UserError(
            f"{packed.folder}: its documents are packed into blocks of {length} tokens, more than the model's context "
            f"of {config.model.block_size}; prepare it again with data.block_size={config.model.block_size} or less"
        )
    return length


def _fingerprint(config: Config, sets: list[TokenSet], length: int) -> str:
    """Of everything that decides the stream of samples beside seed and batch size."""
    facts = [[s.fingerprint, c.weight] for s, c in zip(sets, config.data.sets, strict=True)]
    mask = ["document mask"] if config.data.document_mask else []
    return hashlib.sha256(json.dumps([facts, length, *mask]).encode()).hexdigest()


def _base_fingerprint(config: Config, world: World) -> str:
    """Of the model that adapters are trained on; empty where all weights are trained."""
    if not config.lora.rank:
        return ""
    from nano_ds.model_dir import ModelDir

    every = gather(ModelDir(config.train.init_from).fingerprint, world)
    if len(set(every)) > 1:
        raise UserError(f"train.init_from: {config.train.init_from} is not the same model on every machine")
    return str(every[0])


def _load_weights(model: Transformer, folder: str) -> None:
    from nano_ds.model_dir import ModelDir

    ModelDir(folder).load_into(model)
