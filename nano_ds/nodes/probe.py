"""Facts of one node, printed as JSON: python -m nano_ds.nodes.probe '{"recipe": …, "full": true}'

Only the standard library is imported at the top, so that a node with half an environment can still say what is missing.
The quick facts take about a second; ``full`` ones import torch and deepspeed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "numpy", "yaml", "safetensors", "tensorboard", "psutil", "ahocorasick_rs", "tqdm")
ROOT = Path(__file__).resolve().parent.parent.parent


def facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that ``nano_ds.nodes.checks`` judges.

    Args:
        request: ``recipe``, ``ds_config``, ``tokenizer``, ``sets`` (folders), ``run_dir``, ``mirror``: paths, optional;
            ``peers``: the other nodes of the run; ``full``: also what takes seconds.
    """
    out: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": sys.executable,
        "python_version": platform.python_version(),
        "missing": [name for name in PACKAGES if not _installed(name)],
        "versions": {name: _version(name) for name in ("torch", "deepspeed")},
        "root": str(ROOT),
        "source": source_hash(),
        "git": _git(),
        "gpus": gpu_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shm": _free("/dev/shm"),
        "compiler": _first(("c++", "g++", "clang++")),
        "nvcc": shutil.which("nvcc") or "",
        "ninja": bool(shutil.which("ninja") or find_spec("ninja")),
    }
    out["versions"]["nano_ds"] = _own_version()
    for key in ("recipe", "ds_config", "tokenizer"):
        if request.get(key):
            out[key] = file_hash(request[key])
    if "sets" in request:
        out["sets"] = {folder: _set_fingerprint(folder) for folder in request["sets"]}
    if request.get("run_dir"):
        out |= _disk("disk", request["run_dir"]) | {"step": newest_step(Path(request["run_dir"]))}
    if request.get("mirror"):
        out |= _disk("mirror", request["mirror"]) | {"mirror_holds": _bytes_of(Path(request["mirror"]))}
    if "psutil" not in out["missing"]:
        out |= _network(request.get("peers", []))
    if request.get("full"):
        out |= _slow(out)
    out["time"] = time.time()
    return out


def source_hash() -> str:
    """Of every Python file that a training process may import from this checkout."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("nano_ds/**/*.py"), *ROOT.glob("launch/*.py")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def file_hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    except OSError as e:
        return f"! {e.strerror}"


def gpu_count() -> int:
    """NVIDIA GPUs by their device files (a Jetson has one of another name), less those that are hidden."""
    found = len(glob.glob("/dev/nvidia[0-9]*")) or int(
        os.path.exists("/dev/nvhost-gpu") or os.path.exists("/dev/nvgpu")
    )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if hidden is None else min(found, len([d for d in hidden.split(",") if d.strip() not in ("", "-1")]))


def newest_step(run_dir: Path) -> int:
    """The newest step in ``run_dir`` that has been committed; 0 when there is none."""
    steps = [p.parent.name.removeprefix("step-") for p in run_dir.glob("checkpoints/step-*/COMMIT")]
    return max((int(s) for s in steps if s.isdigit()), default=0)


def _installed(name: str) -> bool:
    """Whether a package is there, and more than an empty folder."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _own_version() -> str:
    try:
        from nano_ds import __version__

        return __version__
    except ImportError:
        return "missing"


def _git() -> str:
    try:
        from nano_ds.provenance import git_revision

        return git_revision()
    except ImportError:
        return "unknown"


def _first(names: tuple[str, ...]) -> str:
    return next((n for n in names if shutil.which(n)), "")


def _free(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _set_fingerprint(folder: str) -> str:
    """Of a prepared set whose every file is there and has the size and head that its manifest promises."""
    try:
        from nano_ds.shards import TokenSet

        TokenSet.open(folder, "val")
        return TokenSet.open(folder, "train").fingerprint[:12]
    except (ImportError, ValueError, OSError) as e:
        return f"! {e}"


def _disk(key: str, folder: str) -> dict[str, Any]:
    """The disk under a folder that may not be there yet, and whether it can be written to."""
    above = os.path.abspath(folder)
    while not os.path.exists(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    return {f"{key}_free": _free(above), f"{key}_writable": os.path.isdir(above) and os.access(above, os.W_OK)}


def _bytes_of(run: Path) -> int:
    """What the checkpoints of a run or mirror take."""
    total = 0
    with contextlib.suppress(OSError):  # a run that trains may delete some meanwhile
        for path in run.glob("checkpoints/step-*/**/*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _network(peers: list[str]) -> dict[str, Any]:
    from nano_ds.nodes.network import address_seen_by, free_port, own_addresses

    own, address = own_addresses(), address_seen_by(peers)
    interface = next((name for name, addresses in own.items() if address in addresses), "")
    return {"address": address, "interface": interface, "free_port": free_port()}


def _slow(quick: Mapping[str, Any]) -> dict[str, Any]:
    """What only torch and deepspeed themselves know."""
    if {"torch", "deepspeed"} & set(quick["missing"]):
        return {}
    out: dict[str, Any] = {}
    try:
        import torch

        if torch.cuda.is_available():
            out["gpus"] = torch.cuda.device_count()
            each = [torch.cuda.get_device_properties(i) for i in range(out["gpus"])]
            out["devices"] = [f"{p.name}, {p.total_memory / 1e9:.0f} GB" for p in each]
            out["bf16"] = torch.cuda.is_bf16_supported()
        else:
            out["devices"] = []
            out["bf16"] = False
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        out["ops"] = _buildable_ops()
    except Exception as e:
        out["broken"] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    return out


def _buildable_ops() -> dict[str, bool]:
    """DeepSpeed's compiled ops that a recipe here can ask for, and whether this machine could build them."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    out = {}
    for name in ("cpu_adam", "fused_adam", "async_io"):
        builder = ALL_OPS.get(name)
        if builder is not None:
            try:
                out[name] = bool(builder.is_compatible(verbose=False))
            except Exception:
                out[name] = False
    return out


def main() -> int:
    request = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries that greet must not spoil the answer
    found = facts(request)
    print(json.dumps(found), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
