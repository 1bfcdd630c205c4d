"""What a run shows: one console line per logged step, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nano_ds.files import atomic_write


def duration(seconds: float) -> str:
    """3725 -> '1h02m'; 65 -> '1m05s'."""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


class Speed:
    """Tokens per second, MFU and time left from two readings of the clock."""

    def __init__(self, tokens_per_step: int, flops_per_token: int, peak_flops: float | None, devices: int):
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.peak = peak_flops * devices if peak_flops else None

    def measure(self, steps: int, seconds: float, steps_left: int) -> dict[str, float]:
        """``steps`` steps took ``seconds``; ``mfu`` (0 to 1) only where the peak is known."""
        tokens_per_s = steps * self.tokens_per_step / seconds
        out = {"tokens_per_s": tokens_per_s, "step_s": seconds / steps, "eta_s": steps_left * seconds / steps}
        if self.peak:
            out["mfu"] = tokens_per_s * self.flops_per_token / self.peak
        return out


class Monitor:
    """Writers of one run; only the main rank has one."""

    def __init__(self, run_dir: Path, max_steps: int, resumed_at: int = 0):
        self.run_dir, self.max_steps = run_dir, max_steps
        self._open(resumed_at)

    def _open(self, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        log = self.run_dir / "log.jsonl"
        _forget_after(log, resumed_at)
        self.log = open(log, "a", encoding="utf-8")  # noqa: SIM115
        purge = resumed_at + 1 if resumed_at else None
        self.board = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=purge, max_queue=1000, flush_secs=10)

    def back_to(self, step: int) -> None:
        """Forgets what was shown after ``step``: it will be done again."""
        self.close()
        self._open(step)

    def skipped(self, step: int, why: str, total: int) -> None:
        """A step that the guard kept from the weights."""
        self._write({"step": step, "skipped": total, "why": why})
        say(f"step {step} skipped: {why} ({total} skipped so far)")

    def facts(self, facts: Mapping[str, str], config_yaml: str) -> None:
        """The start-up block, on the console and in TensorBoard's text tab."""
        width = max(map(len, facts))
        say("\n".join(f"  {k:<{width}}  {v}" for k, v in facts.items()))
        table = "\n".join(f"| {k} | {v} |" for k, v in facts.items())
        self.board.add_text("run/facts", f"| | |\n|---|---|\n{table}", 0)
        self.board.add_text("run/config", "    " + config_yaml.replace("\n", "\n    "), 0)

    def step(self, values: Mapping[str, Any]) -> None:
        """One logged step: ``step``, ``loss``, ``lr``, ``grad_norm``, ``tokens_per_s``, ``memory_mb``, …

        Names with a slash are scalars of TensorBoard as they are (pace.py); ``slow`` is said at the end of the line.
        """
        step = int(values["step"])
        self._write(values)
        for key in ("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_mb", "step_s", "skipped"):
            if key in values:
                self.board.add_scalar(f"train/{key}", values[key], step)
        for key in values:
            if "/" in key:
                self.board.add_scalar(key, values[key], step)
        slow = f" | {values['slow']}" if "slow" in values else ""
        mfu = f" | MFU {values['mfu']:5.1%}" if "mfu" in values else ""
        say(
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps} | loss {values['loss']:7.4f} | "
            f"lr {values['lr']:.2e} | norm {values['grad_norm']:6.3f} | {values['tokens_per_s']:,.0f} tok/s{mfu} | "
            f"ETA {duration(values['eta_s'])}{slow}"
        )

    def validation(self, step: int, loss: float, bits_per_byte: float, best: bool) -> None:
        self._write({"step": step, "val_loss": loss, "val_bpb": bits_per_byte})
        self.board.add_scalar("val/loss", loss, step)
        self.board.add_scalar("val/bits_per_byte", bits_per_byte, step)
        say(f"validation at step {step}: loss {loss:.4f}, {bits_per_byte:.4f} bits per byte" + (" (best)" * best))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A piece of generated text."""
        self.board.add_text("val/sample", f"**{_markdown(prompt)}**{_markdown(text)}", step)
        one_line = json.dumps(prompt + text, ensure_ascii=False)
        say(f"sample: {one_line[:200]}")

    def _write(self, values: Mapping[str, Any]) -> None:
        sound = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self.log.write(json.dumps(sound) + "\n")
        self.log.flush()

    def close(self) -> None:
        self.log.close()
        self.board.close()


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;").replace("\n", "  \n")


def _forget_after(path: Path, step: int) -> None:
    """Drops the log lines of steps that a resumed run will do again, and a line torn by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path, "w") as f:
        f.writelines(kept)


def say(text: str) -> None:
    """A line for the person at the terminal (stderr: stdout is for results)."""
    print(text, file=sys.stderr, flush=True)


class Clock:
    """Wall-clock seconds between readings, with pauses (validation, checkpoints) left out."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.paused = 0.0

    def lap(self) -> float:
        """Seconds of work since the last lap."""
        now = time.perf_counter()
        seconds = now - self.start - self.paused
        self.start, self.paused = now, 0.0
        return max(seconds, 1e-9)

    def pause(self, since: float) -> None:
        """Leaves out the time since ``since`` (a ``time.perf_counter()`` reading)."""
        self.paused += time.perf_counter() - since
