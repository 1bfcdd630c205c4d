"""Judges what the nodes said: a row per check, with a mark and, where something is wrong, what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nano_ds.nodes.allreduce import Measured
from nano_ds.nodes.survey import Node

OK, WARN, FAIL = "ok", "warn", "FAIL"
NOTHING, UNKNOWN = "-", "?"


@dataclass(frozen=True)
class Row:
    """One check. ``cells``: one per node, ``?`` where it could not be made; ``failing``: the hosts that fail it.

    ``mark`` is ``?`` when nothing is wrong as far as is known, but not everything is known.
    """

    name: str
    mark: str
    cells: tuple[str, ...]
    fixes: tuple[str, ...] = ()
    failing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wanted:
    """What the run needs of its nodes."""

    checkpoint_bytes: int = 0  # of one checkpoint
    keep: int = 1  # checkpoints that stay
    bf16: bool = False  # the recipe insists on it
    ops: tuple[str, ...] = ()  # DeepSpeed ops that have to be built
    backend: str = "auto"


@dataclass
class _Table:
    nodes: Sequence[Node]
    reference: Node | None
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        name: str,
        cell: Callable[[Mapping[str, Any]], str],
        wrong: Callable[[Node], tuple[str, str] | None] = lambda n: None,
    ) -> None:
        """A row; ``wrong`` gives the mark and the fix for a node that does not pass."""
        cells, fixes, failing, marks = [], [], set(), {OK}
        for node in self.nodes:
            if not node.facts:
                cells.append(UNKNOWN)
                continue
            cells.append(cell(node.facts))
            found = wrong(node)
            if found:
                marks.add(found[0])
                if found[1] not in fixes:
                    fixes.append(found[1])
                if found[0] == FAIL:
                    failing.add(node.host)
        mark = FAIL if FAIL in marks else WARN if WARN in marks else UNKNOWN if UNKNOWN in cells else OK
        self.rows.append(Row(name, mark, tuple(cells), tuple(fixes), frozenset(failing)))

    def note(self, name: str, wrong: Callable[[Node], tuple[str, str] | None]) -> None:
        """Puts better reasons into the last row, where ``wrong`` knows one."""
        known = {n.host: found for n in self.nodes if n.facts and (found := wrong(n))}
        if known:
            row = self.rows.pop()
            kept = [f for f in row.fixes if not any(f.startswith(f"{host}: ") for host in known)]
            fixes = tuple(dict.fromkeys([*(f for _, f in known.values()), *kept]))
            mark = FAIL if FAIL in (row.mark, *(m for m, _ in known.values())) else WARN
            bad = row.failing | {h for h, (m, _) in known.items() if m == FAIL}
            self.rows.append(Row(name, mark, row.cells, fixes, frozenset(bad)))

    def same(self, name: str, value: Callable[[Mapping[str, Any]], str], fix: str, as_here: bool = True) -> None:
        """A row that fails on the nodes that differ from this machine, or else from most of the others."""
        there = [n.facts for n in self.nodes if n.facts]
        if as_here and self.reference is not None and self.reference.facts:
            wanted = value(self.reference.facts)
        elif there:
            known = [value(f) for f in there if value(f) != UNKNOWN]
            wanted = Counter(known).most_common(1)[0][0] if known else UNKNOWN
        else:
            wanted = ""

        def wrong(node: Node) -> tuple[str, str] | None:
            has = value(node.facts)
            return None if has in (wanted, UNKNOWN) else (FAIL, fix.format(host=node.host, has=has, wanted=wanted))

        self.add(name, value, wrong)


def judge(nodes: Sequence[Node], wanted: Wanted, reference: Node | None = None) -> list[Row]:
    """Rows for nodes that were asked with ``survey``.

    Args:
        nodes: the columns; several are also compared with each other.
        wanted: what the run needs.
        reference: this machine, where the others were reached from over ssh; None: it is the only column.
    """
    t = _Table(nodes, reference)
    if reference is not None or any(n.problem for n in nodes):
        t.rows.append(_reached(nodes, "ssh" if reference is not None else "answers"))
    t.add("packages", _packages, _missing)
    many = len(nodes) > 1 or reference is not None
    if many:
        t.same("folder", lambda f: f["root"], "{host}: has the project at {has}, here it is at {wanted}; use one path")
    python = "{host}: Python {has} instead of {wanted}; make its environment with the same Python"
    t.same("Python", lambda f: f["python_version"], python)
    for name in ("torch", "deepspeed"):
        fix = f"{{host}}: {name} {{has}} instead of {{wanted}}; `pip install {name}=={{wanted}}` there"
        t.same(name, _version_of(name), fix)
    checkout = "{host}: nano_ds {has} instead of {wanted}; bring its checkout to the same revision"
    t.same("nano_ds", _version_of("nano_ds"), checkout)
    t.add("git revision", lambda f: f["git"])
    if many:
        differ = "{host}: its nano_ds/ or launch/ differ from those here; `git pull` there, or rsync them from here"
        t.same("source files", lambda f: f["source"], differ)
        for key, name in (("recipe", "recipe"), ("ds_config", "DeepSpeed JSON")):
            if any(key in n.facts for n in nodes):
                t.same(name, _hash(key), f"{{host}}: the {name} there: {{has}}, here: {{wanted}}; copy it from here")
    if any("tokenizer" in n.facts for n in nodes):
        _data_rows(t)
    t.add("accelerator", _accelerator, lambda n: _slots(n, nodes, wanted))
    if any("bf16" in n.facts for n in nodes):
        t.add("bf16", _has_bf16, lambda n: _bf16(n, wanted))
    t.add("memory", lambda f: f"{f['memory'] / 1e9:.0f} GB, {f['cores']} cores")
    if any("ops" in n.facts or "broken" in n.facts for n in nodes):
        t.add(
            "compiler", lambda f: " + ".join(filter(None, [f["compiler"], f["nvcc"] and "nvcc"])) or "none", _compiler
        )
        t.add("ops it could build", _ops, lambda n: _needed_ops(n, wanted))
    if any("disk_free" in n.facts for n in nodes):
        t.add("free disk", lambda f: size(f["disk_free"]), lambda n: _disk(n, wanted))
    if any("mirror_writable" in n.facts for n in nodes):
        t.add(
            "mirror", lambda f: size(f["mirror_free"]) if "mirror_free" in f else NOTHING, lambda n: _mirror(n, wanted)
        )
    t.add("clock", lambda f: _clock(f, nodes), _skew)
    t.add("open files", lambda f: f"{f['nofile']:,}", _nofile)
    t.add("/dev/shm", lambda f: size(f["shm"]), _shm)
    if len(nodes) > 1 and any("interface" in n.facts for n in nodes):
        t.add("network", _network, _no_network)
    return t.rows


def failing(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.mark == FAIL]


def size(count: int | None) -> str:
    if count is None:
        return "none"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}" if count < 10 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _reached(nodes: Sequence[Node], name: str = "ssh") -> Row:
    bad = [n for n in nodes if n.problem]
    cells = tuple(n.problem or "yes" for n in nodes)
    return Row(name, FAIL if bad else OK, cells, tuple(n.fix for n in bad), frozenset(n.host for n in bad))


def _packages(f: Mapping[str, Any]) -> str:
    if f["missing"]:
        return "no " + ", ".join(f["missing"])
    return "broken" if f.get("broken") else "all"


def _missing(node: Node) -> tuple[str, str] | None:
    f = node.facts
    if f["missing"]:
        command = f"{f['python']} -m pip install -r {f['root']}/requirements.txt"
        return FAIL, f"{node.host}: {', '.join(f['missing'])} missing; run `{command}` there"
    if f.get("broken"):
        return FAIL, f"{node.host}: torch or deepspeed does not start: {f['broken']}; install them again"
    return None


def _version_of(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda f: str(f["versions"][name])


def _hash(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda f: str(f.get(key, NOTHING)).removeprefix("! ")


def _data_rows(t: _Table) -> None:
    other = "{host}: another tokenizer than on the other nodes; copy data.tokenizer from one of them"
    t.same("tokenizer", _hash("tokenizer"), other, as_here=False)
    t.note("tokenizer", lambda n: _absent(n, str(n.facts.get("tokenizer", "")), "the tokenizer"))
    for folder in next(n.facts["sets"] for n in t.nodes if "sets" in n.facts):

        def there(f: Mapping[str, Any], folder: str = folder) -> str:
            found = str(f.get("sets", {}).get(folder, NOTHING))
            if f["missing"]:
                return UNKNOWN  # it could not look; the packages have a row of their own
            return "unusable" if found.startswith("! ") else found

        def wrong(node: Node, folder: str = folder) -> tuple[str, str] | None:
            found = "" if node.facts["missing"] else str(node.facts.get("sets", {}).get(folder, ""))
            return _absent(node, found, folder)

        other = f"{{host}}: {folder} holds other data than on the other nodes; copy it from one of them"
        t.same(f"data {folder}", there, other, as_here=False)
        t.note(f"data {folder}", wrong)


def _absent(node: Node, found: str, what: str) -> tuple[str, str] | None:
    if not found.startswith("! "):
        return None
    why = found[2:]
    more = "" if "nano-ds prepare" in why else "; copy it there, or run `nano-ds prepare` there with this recipe"
    named = why if what in why else f"{what}: {why}"
    return FAIL, f"{node.host}: {named}{more}"


def _accelerator(f: Mapping[str, Any]) -> str:
    if f.get("devices"):
        kinds = Counter(f["devices"])
        return "; ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{f['gpus']} GPU(s)" if f["gpus"] else "CPU"


def _slots(node: Node, nodes: Sequence[Node], wanted: Wanted) -> tuple[str, str] | None:
    gpus, cores = node.facts["gpus"], node.facts["cores"]
    if wanted.backend == "gloo" and not gpus:
        return None
    if gpus and node.slots > gpus:
        return FAIL, f"{node.host}: slots={node.slots} in the hostfile and {gpus} GPU(s); use slots={gpus}"
    if not gpus and any(n.facts.get("gpus") for n in nodes):
        return FAIL, f"{node.host}: no GPU found, while other nodes have some; install its driver or leave it out"
    if not gpus and node.slots > cores:
        return WARN, f"{node.host}: slots={node.slots} on {cores} core(s) is slower than slots={cores}"
    return None


def _has_bf16(f: Mapping[str, Any]) -> str:
    return UNKNOWN if "bf16" not in f else "yes" if f["bf16"] else "no (fp32)"


def _bf16(node: Node, wanted: Wanted) -> tuple[str, str] | None:
    if wanted.bf16 and node.facts.get("gpus") and not node.facts.get("bf16"):
        return WARN, f"{node.host}: its GPU has no fast bf16; train.dtype=auto takes fp32"
    return None


def _compiler(node: Node) -> tuple[str, str] | None:
    if not node.facts["compiler"]:
        return WARN, f"{node.host}: offload needs a compiler: `apt-get install g++`; nothing else does"
    return None


def _ops(f: Mapping[str, Any]) -> str:
    return ", ".join(name for name, can in f["ops"].items() if can) or "none" if "ops" in f else UNKNOWN


def _needed_ops(node: Node, wanted: Wanted) -> tuple[str, str] | None:
    lacking = [op for op in wanted.ops if not node.facts.get("ops", {}).get(op, not node.facts.get("ops"))]
    if lacking:
        hint = (
            "`apt-get install libaio-dev`"
            if "async_io" in lacking
            else "`apt-get install g++`, and `pip install ninja`"
        )
        return FAIL, f"{node.host}: cannot build {', '.join(lacking)}, which this DeepSpeed JSON needs: {hint}"
    return None


def _disk(node: Node, wanted: Wanted) -> tuple[str, str] | None:
    f = node.facts
    if not f.get("disk_writable", True):
        return FAIL, f"{node.host}: cannot write to run.dir; change its permissions or choose another"
    free, one = f.get("disk_free"), wanted.checkpoint_bytes
    if free is None or free < one:
        return FAIL, f"{node.host}: a checkpoint needs {size(one)} and {size(free)} are free; make room or move run.dir"
    if free < one * (wanted.keep + 1):
        return (
            WARN,
            f"{node.host}: {wanted.keep} checkpoints and one being written need {size(one * (wanted.keep + 1))}",
        )
    return None


def _mirror(node: Node, wanted: Wanted) -> tuple[str, str] | None:
    """Warnings only: a run goes on when its copies fail."""
    f = node.facts
    if "mirror_writable" not in f:
        return None
    if not f["mirror_writable"]:
        return WARN, f"{node.host}: cannot write to run.mirror, so nothing would be copied; choose another folder"
    # A new copy may take the place of the oldest, never of the only one.
    count = max(2, wanted.keep)
    need, room = wanted.checkpoint_bytes * count, (f["mirror_free"] or 0) + f["mirror_holds"]
    if room < need:
        return WARN, f"{node.host}: {count} checkpoints need {size(need)}, run.mirror has {size(room)}; make room there"
    return None


def _clock(f: Mapping[str, Any], nodes: Sequence[Node]) -> str:
    skew = next(n.skew for n in nodes if n.facts is f)
    return f"{skew:+.1f} s" if abs(skew) >= 0.1 else "agrees"


def _skew(node: Node) -> tuple[str, str] | None:
    if abs(node.skew) > 2:
        return (
            WARN,
            f"{node.host}: its clock is {node.skew:+.1f} s off; `timedatectl set-ntp true` (logs would disagree)",
        )
    return None


def _nofile(node: Node) -> tuple[str, str] | None:
    if node.facts["nofile"] < 1024:
        return WARN, f"{node.host}: raise the limit of open files: `ulimit -n 65536` (/etc/security/limits.conf)"
    return None


def _shm(node: Node) -> tuple[str, str] | None:
    shm = node.facts["shm"]
    if node.facts["gpus"] > 1 and (shm is None or shm < 512e6):
        return WARN, f"{node.host}: NCCL needs more shared memory between GPUs; in Docker `--shm-size=1g`"
    return None


def _network(f: Mapping[str, Any]) -> str:
    return f"{f.get('interface') or '?'} {f.get('address') or ''}".strip()


def _no_network(node: Node) -> tuple[str, str] | None:
    if not node.facts.get("address"):
        return FAIL, f"{node.host}: has no network address besides the loopback; connect it"
    return None


def network_rows(found: Measured, hosts: Sequence[str], address: str, has_run_dir: bool) -> list[Row]:
    """The rows of a measured all-reduce."""
    if found.problem:
        fix = f"{found.host}: {found.problem}; open all TCP ports between the nodes; {address} must be {hosts[0]}"
        return [Row("all-reduce", FAIL, (), (fix,), frozenset({found.host}))]
    speed = f"{found.latency * 1e6:,.0f} us, {found.bandwidth * 8 / 1e9:.2f} Gbit/s ({found.backend})"
    rows = [Row("all-reduce", OK, (speed,))]
    if has_run_dir:
        rows.append(_run_dir_row(found, hosts))
    return rows


def _run_dir_row(found: Measured, hosts: Sequence[str]) -> Row:
    name, every = "run directory", tuple(range(len(hosts)))
    if all(sees == every for sees in found.disks):
        return Row(name, OK, ("shared",) * len(hosts))
    if all(sees == (i,) for i, sees in enumerate(found.disks)):
        return Row(name, OK, ("its own disk",) * len(hosts))
    cells = tuple("sees " + (", ".join(hosts[i] for i in sees) or "nothing") for sees in found.disks)
    return Row(name, WARN, cells, ("run.dir is shared by some nodes only; share it with all of them, or with none",))
