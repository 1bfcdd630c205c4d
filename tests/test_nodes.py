"""The machines of a run: how they are named, asked, judged and reached, and what happens when a process dies."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import ROOT
from test_training import recipe, rows

from nano_ds import cli
from nano_ds.config import load_config
from nano_ds.errors import UserError
from nano_ds.nodes import checks, launcher, probe, reap, ssh, survey, table, wire
from nano_ds.nodes.allreduce import Measured
from nano_ds.nodes.attempt import Attempt
from nano_ds.nodes.environment import adopt_launcher, for_nodes, write_env_file
from nano_ds.nodes.hostfile import read_hostfile, write_hostfile
from nano_ds.nodes.launcher import Place
from nano_ds.nodes.network import choose_interface, interface_towards, own_addresses
from nano_ds.stop import SUPERVISOR, StopRequest, supervisor_id

# --- hostfiles, arguments and environments arrive unchanged through DeepSpeed's own code


def test_deepspeed_reads_the_hostfiles_as_we_do(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    for path in sorted((ROOT / "hostfiles").iterdir()):
        hosts = read_hostfile(str(path))
        assert dict(fetch_hostfile(str(path))) == hosts, path
        write_hostfile(tmp_path / "again", hosts)
        assert dict(fetch_hostfile(str(tmp_path / "again"))) == hosts


def test_lines_that_name_no_host_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("\ufeffnode1 slots=2\n10.0.0.7 slots=007 # seven\nfe80::1%eth0 slots=1\nmy_alias.lan slots=1\n")
    assert read_hostfile(str(path)) == {"node1": 2, "10.0.0.7": 7, "fe80::1%eth0": 1, "my_alias.lan": 1}
    for line in (
        "a slots=0",
        "a slots=00",
        "a slots=²",
        "a slots=٣",
        "a slots=-1",
        "a slots=1 2",
        "a",
        "a slots=" + "9" * 5000,
    ):
        path.write_text(f"node1 slots=1\n{line}\n")
        with pytest.raises(UserError, match=r"hosts:2: .* is no host; write"):
            read_hostfile(str(path))
    for name in ("-oProxyCommand=x", "--", "a,b", "node[1-3]", "a;b", "$(x)", "me@node", "fe80::1%$x", "1::2::3", "ñ"):
        path.write_text(f"{name} slots=1\n")
        with pytest.raises(UserError, match="is no host name or address"):
            read_hostfile(str(path))


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="needs pdsh (apt-get install pdsh)")
def test_arguments_survive_pdsh_and_the_shell_behind_it() -> None:
    from deepspeed.launcher.multinode_runner import PDSHRunner

    args = ["run.dir=runs/a b", "data.sets=[]", "x=$HOME", 'y="q" $(z) `w`', "p=50%h%", "a;b|c&d", "it's", "\\t\\", ""]
    sent = PDSHRunner.parse_user_args(Namespace(args=Namespace(user_args=[launcher.for_pdsh(a) for a in args])))
    show = [sys.executable, "-c", "'import sys, json; print(json.dumps(sys.argv[1:]))'"]
    command = ["pdsh", "-R", "exec", "-w", "anywhere", "sh", "-c", " ".join([*show, *sent])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout.removeprefix("anywhere: ")) == args, done.stderr


def test_the_environment_of_a_run_is_a_file_that_deepspeed_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("# mine\n\nMY_OWN=1\nOMP_NUM_THREADS=9\n")
    env = {"OMP_NUM_THREADS": "2", "PATH": "/bin", "NCCL_DEBUG": "INFO", "DS_ENV_FILE": ".deepspeed_env"}
    write_env_file(tmp_path / "made", for_nodes(env, {wire.RUN: "abc"}))
    pairs = dict(line.split("=", maxsplit=1) for line in (tmp_path / "made").read_text().splitlines())
    wanted = {
        "MY_OWN": "1",
        "OMP_NUM_THREADS": "2",
        "NCCL_DEBUG": "INFO",
        "OMP_WAIT_POLICY": "passive",
        wire.RUN: "abc",
    }
    assert wanted.items() <= pairs.items()
    assert not {"PATH", "DS_ENV_FILE"} & set(pairs)


def test_ranks_are_known_under_open_mpi_too() -> None:
    env = {
        f"OMPI_COMM_WORLD_{k}": v for k, v in {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}.items()
    }
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        adopt_launcher(dict(env))
    env["MASTER_ADDR"] = "10.0.0.1"
    adopt_launcher(env)
    assert [env[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")] == ["3", "4", "1", "2"]
    alone: dict[str, str] = {}
    adopt_launcher(alone)
    assert (alone["WORLD_SIZE"], alone["MASTER_ADDR"]) == ("1", "127.0.0.1")


def test_interfaces() -> None:
    assert interface_towards("127.0.0.1") is None
    for name, addresses in own_addresses().items():
        for address in addresses:
            if not address.startswith(("127.", "fe80", "::1")):
                assert interface_towards(address) == name
                env = {"MASTER_ADDR": address, "NCCL_SOCKET_IFNAME": "mine"}
                choose_interface(env)
                assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == (name, "mine")
    env = {"MASTER_ADDR": "localhost"}
    choose_interface(env)
    assert env == {"MASTER_ADDR": "localhost"}


def test_lines_of_ranks_are_told_apart() -> None:
    read, write = os.pipe()
    stream = wire.Tagged(write, 12)
    print("half", end="", file=stream)
    print(" a line\nand another", file=stream)
    stream.event({"event": "end", "code": 1})
    os.close(write)
    with open(read, encoding="utf-8") as f:
        first, second, third = f.read().splitlines()
    assert wire.parse(first) == wire.Line(12, "half a line")
    assert wire.parse(f"node-b.lan: {second}") == wire.Line(12, "and another")
    assert wire.parse(third) == wire.Line(12, "", {"event": "end", "code": 1})
    assert wire.parse(f"...{third}") == wire.parse(third)  # a library left its line open
    assert wire.parse("node-b: some library speaks") is None


NOISE = """\
[E1125 03:30:49.646447362 socket.cpp:1028] [c10d] The client socket has timed out after 5000ms while trying to connect
[W1125 03:30:49.647458201 TCPStore.cpp:340] [c10d] TCP client failed to connect/validate to host 127.0.0.1:29877
Exception raised from throwTimeoutError at /torch/csrc/distributed/c10d/socket.cpp:1030 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x9d (0x7f2651127b8d in /lib/libc10.so)
frame #10: <unknown function> + 0x3d2825 (0x7f264fbd2825 in /lib/libtorch_python.so)
<omitting python frames>
frame #27: _start + 0x21 (0x56531a8d3081 in /bin/python)

"""
CAUSES = """\
[E1125 03:30:49.646447362 ProcessGroupNCCL.cpp:632] [Rank 1] Watchdog caught collective operation timeout
terminate called after throwing an instance of 'c10::DistBackendError'
"""


@pytest.mark.parametrize("host", ["", "node2: "])
def test_stacks_of_torchs_inside_stay_in_the_log(host: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [host + line for line in (NOISE + CAUSES).splitlines()]
    command = [sys.executable, "-c", f"print({chr(10).join(lines)!r}); raise SystemExit(1)"]
    place = Place({"node1": 1, "node2": 1}, node_rank=1)
    outcome = Attempt(launcher.Launch(command, dict(os.environ), "none", place), tmp_path / "log").run()
    shown = capsys.readouterr().err
    assert [line.removeprefix("node2: ") for line in shown.splitlines()] == CAUSES.splitlines()
    assert outcome.code == 1 and all(line in (tmp_path / "log").read_text() for line in lines)


# --- the doctor


@pytest.fixture(scope="module")
def here(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> survey.Node:
    """The true facts of this machine."""
    request = {
        "recipe": str(recipe(tmp_path_factory.mktemp("doctor"), small_set)),
        "ds_config": str(ROOT / "ds_configs" / "zero1.json"),
        "tokenizer": str(small_set / "tokenizer.json"),
        "sets": [str(small_set)],
        "run_dir": str(tmp_path_factory.mktemp("runs") / "a"),
        "peers": ["node2"],
    }
    node = survey.this_machine(request, "node1", 1)
    assert node.facts and not node.problem, node
    return node


def changed(node: survey.Node, host: str, change: Callable[[dict[str, Any]], object]) -> survey.Node:
    facts = json.loads(json.dumps(dict(node.facts)))
    change(facts)
    return replace(node, host=host, facts=facts)


def test_like_nodes_pass(here: survey.Node) -> None:
    found = checks.judge([here, replace(here, host="node2")], checks.Wanted(), here)
    assert checks.failing(found) == []
    text = table.text(found, ["node1", "node2"])
    for word in ("node2", "ssh", "torch", "git revision", "tokenizer", "free disk", "clock", "network"):
        assert word in text


DIFFERENCES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "torch": (lambda f: f["versions"].update(torch="1.0"), "pip install torch=="),
    "deepspeed": (lambda f: f["versions"].update(deepspeed="0.1"), "0.1 instead of"),
    "packages": (lambda f: f.update(missing=["numpy"]), "pip install -r"),
    "Python": (lambda f: f.update(python_version="3.8.1"), "Python 3.8.1 instead of"),
    "folder": (lambda f: f.update(root="/elsewhere"), "has the project at /elsewhere"),
    "source files": (lambda f: f.update(source="0"), "git pull"),
    "recipe": (lambda f: f.update(recipe="! No such file or directory"), "No such file"),
    "DeepSpeed JSON": (lambda f: f.update(ds_config="0"), "copy it from here"),
    "tokenizer": (lambda f: f.update(tokenizer="! No such file or directory"), "nano-ds prepare"),
    "accelerator": (lambda f: f.update(gpus=1), "no GPU found, while other nodes have some"),
    "free disk": (lambda f: f.update(disk_free=1000), "1 kB are free"),
    "network": (lambda f: f.update(address=None), "no network address"),
}


@pytest.mark.parametrize("row", DIFFERENCES)
def test_a_node_that_differs_fails_its_row_alone_with_a_fix(row: str, here: survey.Node) -> None:
    change, fix = DIFFERENCES[row]
    other = changed(here, "node2", change)
    found = checks.failing(checks.judge([here, other], checks.Wanted(checkpoint_bytes=10**6), here))
    assert [r.name for r in found] == [row]
    assert fix in " ".join(found[0].fixes)
    # A node without GPU among others with some is the one to look at.
    assert found[0].failing == ({"node1"} if row == "accelerator" else {"node2"})


def test_what_was_never_checked_is_not_called_ok(here: survey.Node) -> None:
    dark = survey.Node("node2", 1, problem="unreachable", fix="is it up?")
    found = {r.name: r for r in checks.judge([here, dark], checks.Wanted(), here)}
    assert found["ssh"].mark == checks.FAIL and found["ssh"].failing == {"node2"}
    others = [r for r in found.values() if r.name != "ssh"]
    assert {r.mark for r in others} == {checks.UNKNOWN} and {r.cells[1] for r in others} == {checks.UNKNOWN}
    only = checks.judge([dark], checks.Wanted(), here)
    assert "ok" not in table.text(only, ["node2"])
    full = changed(here, "node1", lambda f: f.update(ops={"cpu_adam": True}, bf16=False, devices=[]))
    half = changed(here, "node2", lambda f: f.update(broken="OSError"))
    found = {r.name: r for r in checks.judge([full, half], checks.Wanted(), full)}
    assert found["packages"].mark == checks.FAIL
    assert [found[name].cells[1] for name in ("bf16", "ops it could build")] == [checks.UNKNOWN] * 2


def test_the_mirror_is_checked_where_rank_0_writes_it(here: survey.Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = checks.Wanted(checkpoint_bytes=1 << 20)

    def row(mirror: str, **facts: object) -> checks.Row:
        config = load_config(None, [f"run.mirror={mirror}"])
        assert "mirror" not in survey.request_for(None, config)  # no start depends on it
        found = probe.facts({"mirror": survey.request_for(None, config, full=True)["mirror"]}) | facts
        first = changed(here, "node1", lambda f: f.update(found))
        return next(r for r in checks.judge([first, replace(here, host="node2")], wanted, here) if r.name == "mirror")

    good = row(str(tmp_path / "not" / "yet"))
    assert good.mark == checks.OK and good.cells[1] == checks.NOTHING
    bad = row(str(tmp_path / "file" / "mirror"))
    assert bad.mark == checks.WARN and "cannot write to run.mirror" in bad.fixes[0] and not bad.failing
    full = row(str(tmp_path), mirror_free=1 << 20)
    assert full.mark == checks.WARN and "2 checkpoints need 2.1 MB, run.mirror has 1.0 MB" in full.fixes[0]
    held = tmp_path / "checkpoints" / "step-00000010" / "zero"
    held.mkdir(parents=True)
    (held / "weights.pt").write_bytes(bytes(1 << 20))
    assert row(str(tmp_path), mirror_free=1 << 20).mark == checks.OK  # the oldest copies make room


def test_data_that_differ_are_found_on_the_node_that_is_alone_with_them(here: survey.Node) -> None:
    folder = next(iter(here.facts["sets"]))
    odd = changed(here, "node1", lambda f: f["sets"].update({folder: "0123"}))
    nodes = [odd, replace(here, host="node2"), replace(here, host="node3")]
    (row,) = checks.failing(checks.judge(nodes, checks.Wanted(), here))
    assert row.name == f"data {folder}" and row.failing == {"node1"}
    broken = changed(here, "node2", lambda f: f["sets"].update({folder: f"! {folder}: no such folder"}))
    (row,) = checks.failing(checks.judge([here, broken], checks.Wanted(), here))
    assert row.failing == {"node2"} and "nano-ds prepare" in row.fixes[0]


def test_more_slots_than_gpus_and_clocks_that_disagree(here: survey.Node) -> None:
    gpu = changed(here, "node1", lambda f: f.update(gpus=1))
    (row,) = checks.failing(checks.judge([replace(gpu, slots=2)], checks.Wanted()))
    assert "use slots=1" in row.fixes[0]
    late = checks.judge([here, replace(here, host="node2", skew=-60.0)], checks.Wanted(), here)
    (row,) = (r for r in late if r.name == "clock")
    assert row.mark == checks.WARN and row.fixes[0].startswith("node2: its clock")


def test_shared_and_separate_run_directories() -> None:
    hosts = ["a", "b", "c"]

    def row(*disks: tuple[int, ...]) -> checks.Row:
        return checks.network_rows(Measured(1e-4, 1e9, "gloo", disks), hosts, "10.0.0.1", True)[1]

    assert row((0, 1, 2), (0, 1, 2), (0, 1, 2)).cells == ("shared",) * 3
    assert row((0,), (1,), (2,)).cells == ("its own disk",) * 3
    assert row((0, 1), (0, 1), (2,)).mark == checks.WARN
    failed = checks.network_rows(Measured(problem="only 1 of 3 came", host="a"), hosts, "10.0.0.1", True)
    assert [r.mark for r in failed] == [checks.FAIL] and "10.0.0.1" in failed[0].fixes[0]


def local(words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "short", "fix"),
    [
        ("cd /no/such/folder && exec true", "no such folder", "same path"),
        ("exec /no/such/python -m nano_ds", "no such Python", "same environment"),
        (f"cd / && {sys.executable} -I -m nano_ds.nodes.nothing", "no nano_ds", "same revision"),
        (f"{sys.executable} -c 'import no_such_package'", "no no_such_package", "requirements.txt"),
    ],
)
def test_a_node_that_cannot_answer_is_told_what_it_lacks(words: str, short: str, fix: str) -> None:
    problem, advice = ssh.diagnose("node2", local(words))
    assert problem == short and fix in advice


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_a_host_that_refuses_ssh_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", f"-F /dev/null -p {launcher.free_port()}")
    (node,) = survey.ask_all(Place({"127.0.0.1": 1}), {})
    assert node.problem == "ssh refused" and "start the ssh server on 127.0.0.1" in node.fix
    (row,) = checks.failing(checks.judge([node], checks.Wanted(), node))
    assert row.name == "ssh" and row.fixes == (node.fix,)


def nano_ds(*args: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nano_ds", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, **more)


def test_doctor_of_this_machine(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set)
    done = nano_ds("doctor", "-c", path, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["would_start"], done.stdout
    assert {"torch", "bf16", "ops it could build", "free disk", "tokenizer"} <= {r["name"] for r in found["rows"]}
    done = nano_ds("doctor", "-c", path, f"data.sets.0.dir={tmp_path / 'none'}", f"run.mirror={path}/m")
    assert "cannot write to run.mirror" in done.stdout
    assert done.returncode == 1 and "nano-ds prepare" in done.stdout and "a run would not start" in done.stderr


def test_doctor_and_train_agree_on_a_hostfile_of_this_machine(
    here: survey.Node,
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_ssh(*args: object) -> list[survey.Node]:
        raise AssertionError("asked over ssh")

    monkeypatch.setattr(survey, "ask_all", no_ssh)
    monkeypatch.setattr(survey, "this_machine", lambda request, name, slots: replace(here, host=name, slots=slots))
    path = str(recipe(tmp_path, small_set))
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    assert cli.main(["doctor", "--hostfile", str(hosts), "-c", path]) == 0
    assert "ssh" not in capsys.readouterr().out
    hosts.write_text("localhost slots=3\n")
    for command, code in (("doctor", 1), ("train", 2)):
        assert cli.main([command, "--hostfile", str(hosts), "-c", path]) == code
        said = capsys.readouterr()
        assert "8 sequences cannot be shared by 3 devices" in said.out + said.err


# --- processes


@pytest.fixture
def sleepers() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(token: str, **more: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"], env={**os.environ, wire.RUN: token}, **more))
        return started[-1]

    yield start
    for p in started:
        p.kill()
        p.wait()


def test_a_run_is_ended_by_its_token_wherever_its_processes_are(
    sleepers: Callable[..., subprocess.Popen[bytes]],
) -> None:
    ours = [sleepers("token-one"), sleepers("token-one", start_new_session=True)]
    other = sleepers("token-two")
    assert reap.send("token-one", signal.SIGTERM, trainers=True) == []  # `sleep` trains nothing
    command = [sys.executable, "-m", "nano_ds.nodes.reap", "token-one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(json.loads(done.stdout)) == sorted(p.pid for p in ours)
    assert [p.wait(10) for p in ours] == [-signal.SIGKILL] * 2
    assert other.poll() is None


def test_processes_notice_that_whoever_started_them_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        monkeypatch.setenv(SUPERVISOR, supervisor_id())
        assert not StopRequest().asked
        gone = subprocess.Popen(["true"])
        gone.wait()
        machine = supervisor_id().rpartition(":")[0]
        monkeypatch.setenv(SUPERVISOR, f"{machine}:{gone.pid}")
        assert StopRequest().asked
        # The number means nothing on another machine.
        monkeypatch.setenv(SUPERVISOR, f"elsewhere:{gone.pid}")
        assert not StopRequest().asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Started:
    """`nano-ds train` in the background."""

    def __init__(self, run_dir: Path, *args: str | Path):
        command = [sys.executable, "-m", "nano_ds", "train", *map(str, args)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.run_dir = run_dir
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)

    def wait_for_rows(self, count: int) -> None:
        log = self.run_dir / "log.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < count:
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.02)

    def pid_of(self, rank: int) -> int:
        """The process id that the newest process of this rank told the supervisor."""
        lines = (self.run_dir / "launch.log").read_text().splitlines()
        starts = [line for line in lines if line.startswith(f"[rank {rank}] ") and '"start"' in line]
        pid: int = json.loads(starts[-1].partition("] ")[2])["pid"]
        return pid

    def finish(self) -> tuple[int, str]:
        try:
            text = self.process.communicate(timeout=180)[1]
        finally:
            self.process.kill()
        return self.process.returncode, text


def test_a_killed_rank_starts_the_run_again_from_its_last_checkpoint(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, eval_every=0, max_steps=60)
    common = ("-c", path, "--processes", "2", "model.dropout=0.1")
    code, text = Started(tmp_path / "whole", *common, f"run.dir={tmp_path / 'whole'}").finish()
    assert code == 0, text
    started = Started(tmp_path / "run", *common, "--restarts", "2", "--backoff", "0.2")
    started.wait_for_rows(20)
    os.kill(started.pid_of(1), signal.SIGKILL)
    code, text = started.finish()
    assert code == 0 and "Traceback" not in text, text
    summary = [line for line in text.splitlines() if line.startswith("nano-ds train: ")]
    assert len(summary) == 2 and "starts again from step" in summary[1], text
    assert "rank 1" in summary[0] and "SIGKILL" in summary[0]
    assert rows(tmp_path / "run", "loss") == rows(tmp_path / "whole", "loss")
    attempts = [json.loads(line) for line in (tmp_path / "run" / "restarts.jsonl").read_text().splitlines()]
    assert [a["code"] for a in attempts] == [1, 0]
    assert attempts[0]["cause"] in summary[0] and attempts[0]["to_step"] >= 15
    assert (attempts[1]["from_step"], attempts[1]["to_step"]) == (attempts[0]["to_step"], 60)


def test_a_signal_saves_on_every_rank_and_is_no_reason_to_start_again(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, eval_every=0, checkpoint_every=0, max_steps=4000)
    started = Started(tmp_path / "run", "-c", path, "--processes", "2", "--restarts", "3")
    started.wait_for_rows(5)
    started.process.send_signal(signal.SIGTERM)
    code, text = started.finish()
    assert code == 0 and "stopped at step" in text and "starts again" not in text, text
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")]


def test_a_run_that_gets_nowhere_is_given_up_with_its_attempts(small_set: Path, tmp_path: Path) -> None:
    """No file may grow beyond 100 kB, so no checkpoint can be written."""
    path = recipe(tmp_path, small_set, eval_every=0, max_steps=20)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = nano_ds("train", "-c", path, "--restarts", "1", "--backoff", "0.1", preexec_fn=limit)
    assert done.returncode == 1 and "gave up after 1 restarts" in done.stderr, done.stderr
    assert "how it ended" in done.stderr and "cannot write the checkpoint of step 15" in done.stderr
    attempts = [json.loads(line) for line in (tmp_path / "run" / "restarts.jsonl").read_text().splitlines()]
    assert [(a["code"], a["from_step"], a["to_step"]) for a in attempts] == [(1, 0, 0)] * 2


def test_a_mistake_is_said_once_and_never_tried_again(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set)
    done = nano_ds("train", "-c", path, "--processes", "2", "--restarts", "3", "--resume", tmp_path / "nowhere")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and "nowhere" in lines[0], done.stderr


def test_processes_that_do_not_come_are_named(small_set: Path, tmp_path: Path) -> None:
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    env["MASTER_PORT"] = str(launcher.free_port())
    script = [sys.executable, str(ROOT / "launch" / "train.py"), "-c", str(recipe(tmp_path, small_set))]
    command = [*script, "--rendezvous_timeout", "1"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "only 1 of 3 processes came within 1 s" in done.stderr
    assert "missing: ranks 1, 2" in done.stderr and "Traceback" not in done.stderr
    env["RANK"] = "1"
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "did not reach rank 0 at 127.0.0.1" in done.stderr, done.stderr


def test_options_that_contradict_each_other(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set)
    hosts = tmp_path / "hosts"
    hosts.write_text("node1.invalid slots=1\nnode2.invalid slots=1\n")
    for args, words in (
        (("--min_nodes", "1"), "with --hostfile only"),
        (("--hostfile", hosts, "--node_rank", "2"), "the last one is 1"),
        (("--hostfile", hosts, "--min_nodes", "3"), "names fewer nodes"),
        (("--hostfile", hosts, "--processes", "2"), "its slots="),
        (("--hostfile", hosts, "--master_addr", "gar bage"), "is no host name or address"),
        (("--launcher", "openmpi"), "with --hostfile only"),
        (("--restarts", "-1"), "at least 0"),
        (("--hostfile", hosts, "train.batch_size=7"), "cannot be shared by 2 devices"),
    ):
        done = nano_ds("train", "-c", path, *args)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_options_that_a_hostfile_of_this_machine_gives_no_meaning_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("localhost slots=1\n127.0.0.1 slots=2\n")
    name = str(path)
    assert launcher.place_of(name) == launcher.place_of(name, min_nodes=2) == Place(processes=3)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"min_nodes": 5}, "--min_nodes: .* names fewer nodes"),
        ({"node_rank": 7}, "--node_rank: .* the last one is 1"),
        ({"node_rank": 0}, "--node_rank: .* names this machine only"),
        ({"master_addr": "-x"}, "--master_addr: '-x' is no host name"),
        ({"master_addr": "garbage"}, "--master_addr: .* names this machine only"),
        ({"master_port": 1}, "--master_port: .* names this machine only"),
        ({"launcher": "openmpi"}, "--launcher: .* names this machine only"),
        ({"processes": 2}, "--processes: .* its slots="),
    ]
    for options, words in wrong:
        with pytest.raises(UserError, match=words):
            launcher.place_of(name, **options)
