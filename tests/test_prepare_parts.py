"""prepare in parts: what is joined equals what one machine writes, byte for byte; what does not belong is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from conftest import story

from nano_ds import cli, prepare
from nano_ds.errors import RunFailure, UserError
from nano_ds.prepare import Part, join_parts, prepare_on_nodes, prepare_part, prepare_set
from nano_ds.tokenizer.trie import TrieTokenizer

FAR = "192.0.2.7"  # an address set aside for documentation: never this machine's, and the ssh below never calls it


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def part_folder(out: Path, number: int, count: int) -> Path:
    return Part(number, count).folder(out)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.documents, "BATCH_BYTES", 1000)


@pytest.fixture
def inputs(text_dir: Path, tmp_path: Path) -> list[str]:
    """Small files, a file that is cut into many documents, an empty one, lines of JSON with blank ones among them."""
    folder = tmp_path / "input"
    folder.mkdir()
    long, empty, lines = folder / "long.txt", folder / "none.txt", folder / "lines.jsonl"
    long.write_text("\ufeff" + "\n\n\n".join(story(i, 2000) for i in range(30)) + "\n\n")
    empty.write_text("")
    texts = [json.dumps({"text": story(i, 30) if i % 7 else " "}) for i in range(200)]
    lines.write_text("\n\n".join(texts) + "\n")
    return [str(empty), str(long), str(text_dir), str(lines)]


def make_parts(inputs: Sequence[str], tokenizer: TrieTokenizer, out: Path, count: int, workers: int = 1) -> None:
    for number in range(count, 0, -1):  # the order does not matter
        assert not prepare_part(inputs, tokenizer, out, Part(number, count), workers=workers).up_to_date


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (2, 1), (3, 2), (7, 1), (50, 1), (2, 3)])
def test_joined_equals_single(
    count: int,
    workers: int,
    inputs: list[str],
    tokenizer: TrieTokenizer,
    tmp_path: Path,
    small_batches: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare.encoding, "SPAWN_ABOVE", 0)
    how = {"val_fraction": 0.1, "shard_tokens": 700}
    prepare_set(inputs, tokenizer, tmp_path / "one", **how)  # type: ignore[arg-type]
    make_parts(inputs, tokenizer, tmp_path / "many", count, workers)
    sizes = [part_folder(tmp_path / "many", i, count).joinpath("batches.bin").stat().st_size for i in (1, count)]
    assert all(sizes)
    join_parts(inputs, tokenizer, tmp_path / "many", count, **how)  # type: ignore[arg-type]
    one = files(tmp_path / "one")
    assert files(tmp_path / "many") == one and {"train-00010.bin", "val-00001.bin", "manifest.json"} < set(one)
    assert not (tmp_path / "many.parts").exists()
    assert join_parts(inputs, tokenizer, tmp_path / "many", count, **how).up_to_date  # type: ignore[arg-type]


def test_the_builtin_corpus_in_parts(tokenizer: TrieTokenizer, text_dir: Path, tmp_path: Path) -> None:
    inputs = [str(text_dir), "builtin:python-docs"]
    prepare_set(inputs, tokenizer, tmp_path / "one")
    make_parts(inputs, tokenizer, tmp_path / "many", 2)
    join_parts(inputs, tokenizer, tmp_path / "many", 2)
    assert files(tmp_path / "many") == files(tmp_path / "one")


@pytest.mark.parametrize(
    ("documents", "fraction", "says"),
    [
        (1, 0.02, "only one document"),
        (5, 1e-9, "one was moved there"),
        (5, 0.0, ""),
        (9, 0.5, ""),
        (2, 0.5, "moved to training"),
    ],
)
def test_a_small_set_is_mended_the_same_way(
    documents: int, fraction: float, says: str, tokenizer: TrieTokenizer, tmp_path: Path, small_batches: None
) -> None:
    path = tmp_path / "a.jsonl"
    for salt in range(40):  # until the hashes fall as wanted
        path.write_text("".join(json.dumps({"text": f"{i} of {salt}"}) + "\n" for i in range(documents)))
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        notes = prepare_set([str(path)], tokenizer, tmp_path / "one", val_fraction=fraction).notes
        if says in " ".join(notes):
            break
    assert says in " ".join(notes)
    make_parts([str(path)], tokenizer, tmp_path / "many", 3)
    joined = join_parts([str(path)], tokenizer, tmp_path / "many", 3, val_fraction=fraction)
    assert files(tmp_path / "many") == files(tmp_path / "one") and joined.notes == notes


def test_no_text_at_all(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("", " \n\n"):
        path.write_text(content)
        make_parts([str(path)], tokenizer, tmp_path / "set", 2)
        with pytest.raises(UserError, match="no text in it"):
            join_parts([str(path)], tokenizer, tmp_path / "set", 2)


def test_bad_text_is_said_by_its_part_and_leaves_nothing(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("fine " * 100)
    bad.write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(UserError, match=r"bad\.txt: not UTF-8 at byte 3"):
        prepare_part([str(good), str(bad)], tokenizer, tmp_path / "set", Part(2, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "good.txt"]
    prepare_part([str(good), str(bad)], tokenizer, tmp_path / "set", Part(1, 2))


def test_copies_with_other_times_are_the_same_text(
    inputs: list[str], tokenizer: TrieTokenizer, tmp_path: Path, small_batches: None
) -> None:
    make_parts(inputs, tokenizer, tmp_path / "many", 2)
    for path in (tmp_path / "input").iterdir():
        os.utime(path, (1e9, 1e9))
    assert prepare_part(inputs, tokenizer, tmp_path / "many", Part(1, 2)).up_to_date
    prepare_set(inputs, tokenizer, tmp_path / "one")
    join_parts(inputs, tokenizer, tmp_path / "many", 2)
    assert files(tmp_path / "many") == files(tmp_path / "one")


def refused(inputs: Sequence[str], tokenizer: TrieTokenizer, out: Path, count: int) -> str:
    with pytest.raises(UserError) as e:
        join_parts(inputs, tokenizer, out, count, again="nano-ds prepare …")
    assert not out.exists() and "\n" not in str(e.value)
    return str(e.value)


def test_what_does_not_belong_is_refused_and_made_again(
    inputs: list[str], tokenizer: TrieTokenizer, tmp_path: Path, small_batches: None
) -> None:
    out = tmp_path / "many"
    lines = tmp_path / "input" / "lines.jsonl"
    good = lines.read_text()
    make_parts(inputs, tokenizer, out, 3)

    shutil.rmtree(part_folder(out, 2, 3))
    says = refused(inputs, tokenizer, out, 3)
    assert "of 3 parts, part 2 is missing; make it again: `nano-ds prepare … --part 2/3`" in says
    prepare_part(inputs, tokenizer, out, Part(2, 3))

    # the same sizes, one letter differs: only the part that holds it is wrong
    other = good[:-10] + chr(ord(good[-10]) ^ 1) + good[-9:]
    lines.write_text(other)
    says = refused(inputs, tokenizer, out, 3)
    assert f"part 3 is made from other text (of {lines})" in says and "part 1" not in says and "part 2" not in says
    again = prepare_part(inputs, tokenizer, out, Part(3, 3))
    assert not again.up_to_date and "made from other text" in again.note
    prepare_set(inputs, tokenizer, tmp_path / "one")
    join_parts(inputs, tokenizer, out, 3)
    assert files(out) == files(tmp_path / "one")
    shutil.rmtree(out)

    lines.write_text(good)
    make_parts(inputs, tokenizer, out, 2)
    lines.write_text(good + "\n")
    assert f"{lines} has {len(good):,} bytes there and {len(good) + 1:,} here" in refused(inputs, tokenizer, out, 2)
    lines.write_text(good)
    assert f"{inputs[-1]} is only there" in refused(inputs[:-1], tokenizer, out, 2)
    assert "where here it is" in refused(inputs[::-1], tokenizer, out, 2)
    longer = TrieTokenizer([*tokenizer.tokens, "one!"], range(7))
    assert "part 1 is made with another tokenizer, part 2 is" in refused(inputs, longer, out, 2)
    prepare.documents.BATCH_BYTES = 2000  # monkeypatch puts it back
    assert "another version" in refused(inputs, tokenizer, out, 2)
    prepare.documents.BATCH_BYTES = 1000
    shutil.rmtree(part_folder(out, 1, 2))
    shutil.copytree(part_folder(out, 2, 2), part_folder(out, 1, 2))
    assert "part 1 is another part" in refused(inputs, tokenizer, out, 2)
    shutil.rmtree(part_folder(out, 1, 2))
    assert "of 5 parts" in refused(inputs, tokenizer, out, 5)


def test_damage_is_found_wherever_it_is(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": story(i, 12)}) + "\n" for i in range(6)))
    out = tmp_path / "many"
    prepare_set([str(path)], tokenizer, tmp_path / "one")
    make_parts([str(path)], tokenizer, out, 1)
    folder = part_folder(out, 1, 1)
    kept = files(folder)
    assert sorted(kept) == ["batches.bin", "part.json"]
    for name, good in kept.items():
        place = folder / name
        bent = [good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :] for at in range(len(good)) for bit in (1, 0x80)]
        bent += [good[:size] for size in range(0, len(good), 7)] + [good + b"\0"]
        for data in bent:
            place.write_bytes(data)
            assert f"part 1 is damaged ({name})" in refused([str(path)], tokenizer, out, 1)
        place.unlink()
        assert f"part 1 is damaged (no {name})" in refused([str(path)], tokenizer, out, 1)
        place.write_bytes(bent[0])
        again = prepare_part([str(path)], tokenizer, out, Part(1, 1))
        assert not again.up_to_date and again.note == f"part 1/1 was damaged ({name}); made again"
        assert files(folder) == kept
    join_parts([str(path)], tokenizer, out, 1)
    assert files(out) == files(tmp_path / "one")


# ── the command ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def big(tmp_path: Path, tokenizer: TrieTokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 5 MB of text in it (so that every part has some) and a vocabulary."""
    here = tmp_path / "here"
    (here / "text").mkdir(parents=True)
    stories = [story(i, 300) for i in range(100)]
    for name in "abc":
        (here / "text" / f"{name}.txt").write_text("\n\n".join(f"{name}{i} {s}" for i in range(12) for s in stories))
    tokenizer.save(here / "t.json")
    monkeypatch.chdir(here)
    return here


ARGS = ["prepare", "--text", "text", "--tokenizer", "t.json"]


def test_by_hand(big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ARGS, "--out", "one"]) == 0
    for number in (2, 1, 3):
        assert cli.main([*ARGS, "--out", "many", "--part", f"{number}/3"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("parts: nano-ds prepare --text text --tokenizer t.json --out many --join 3\n")
    assert cli.main([*ARGS, "--out", "many", "--part", "2/3"]) == 0
    assert "part-00002-of-00003: up to date" in capsys.readouterr().out
    assert cli.main([*ARGS, "--out", "many", "--join", "3"]) == 0
    assert files(big / "many") == files(big / "one")


@pytest.mark.parametrize("part", ["0/3", "4/3", "x", "1", "1/", "/3", "-1/3", "1/0", "1/3/5", "1.5/3", "", "1/100000"])
def test_no_such_part(part: str, big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ARGS, "--out", "many", f"--part={part}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"--part: {part!r} is no part; write I/N with I from 1 to N" in err


def test_wrong_usage_is_one_line(big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(
        "data:\n  tokenizer: none.json\n  tokenizer_vocab_size: 300\n  sets:\n  - dir: many\n    text: [text]\n"
    )
    for args, says in [
        ([*ARGS, "--out", "many", "--part", "1/2", "--join", "2"], "--part and --join do not go together"),
        ([*ARGS, "--out", "many", "--join", "0"], "--join: 0 is no number of parts"),
        ([*ARGS, "--out", "many", "--hostfile", "none"], "none: no such hostfile"),
        ([*ARGS, "--out", "many", "--join", "2"], "of 2 parts, part 1 is missing, part 2 is missing; make them again"),
        (["prepare", "-c", "r.yaml", "--part", "1/2"], "nano-ds tokenizer trie --text text --vocab-size 300 -o none"),
    ]:
        assert cli.main(args) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert not Path("many").exists() and not Path("many.parts").exists()


def program(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nano_ds", *args],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def add_slow_text(folder: Path, lines: int) -> None:
    """Very short documents, which take long for their size."""
    text = "".join(json.dumps({"text": f"the cat {i}"}) + "\n" for i in range(lines))
    (folder / "text" / "d.jsonl").write_text(text)


def growing(out: Path) -> bool:
    return any(p.stat().st_size > 100_000 for p in out.parent.glob(f"{out.name}.parts/.part-*.tmp/batches.bin"))


def test_a_killed_part_is_done_again_alone(big: Path) -> None:
    add_slow_text(big, 300_000)
    assert cli.main([*ARGS, "--out", "one"]) == 0
    assert cli.main([*ARGS, "--out", "many", "--part", "1/2"]) == 0
    before = part_folder(big / "many", 1, 2).stat()
    process = program(*ARGS, "--out", "many", "--part", "2/2", "--workers", "1")
    wait_for(process, lambda: growing(big / "many"))
    process.kill()
    process.communicate()
    assert cli.main([*ARGS, "--out", "many", "--join", "2"]) == 2
    assert cli.main([*ARGS, "--out", "many", "--part", "2/2"]) == 0
    assert cli.main([*ARGS, "--out", "many", "--part", "1/2"]) == 0
    assert part_folder(big / "many", 1, 2).stat().st_ino == before.st_ino, "the other part was left as it was"
    assert not list((big / "many.parts").glob(".part-00002*"))
    assert cli.main([*ARGS, "--out", "many", "--join", "2"]) == 0
    assert files(big / "many") == files(big / "one")


# ── several nodes ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def far(big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with a disk of its own: an `ssh` that runs its command in another folder, with a copy of the text."""
    there = tmp_path / "there"
    there.mkdir()
    shutil.copytree("text", there / "text")
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text(
        f"""#!/bin/sh
if [ -e '{tmp_path}/down' ]; then echo 'ssh: connect to host far: refused' >&2; exit 255; fi
for command; do :; done
exec sh -c "$(printf '%s' "$command" | sed 's#{big}#{there}#')"
"""
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    return there


def test_a_hostfile_of_this_machine(big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hosts").write_text("localhost slots=2\n127.0.0.1 slots=2\n")
    Path("r.yaml").write_text(
        "data:\n  tokenizer: d/v.json\n  tokenizer_vocab_size: 300\n  val_fraction: 0.2\n"
        "  sets:\n  - dir: d/many\n    text: [text]\n  - dir: d/more\n    text: [text/a.txt]\n"
    )
    assert cli.main(["prepare", "-c", "r.yaml", "--hostfile", "hosts"]) == 0
    assert "next: nano-ds train -c r.yaml" in capsys.readouterr().out
    for name, text in (("many", "text"), ("more", "text/a.txt")):
        args = ["--text", text, "--tokenizer", "d/v.json", "--out", f"one-{name}", "--val-fraction", "0.2"]
        assert cli.main(["prepare", *args]) == 0
        assert files(big / "d" / name) == files(big / f"one-{name}")
    assert sorted(p.name for p in Path("d").iterdir()) == ["many", "more", "v.json"]
    capsys.readouterr()
    assert cli.main(["prepare", "-c", "r.yaml", "--hostfile", "hosts"]) == 0
    assert "d/many: up to date" in capsys.readouterr().out


def test_separate_disks(far: Path, big: Path) -> None:
    for path in (far / "text").iterdir():
        os.utime(path, (1e9, 1e9))
    Path("hosts").write_text(f"{FAR} slots=2\nlocalhost slots=2\n")
    assert cli.main([*ARGS, "--out", "many", "--hostfile", "hosts", "--val-fraction", "0.1"]) == 0
    assert cli.main([*ARGS, "--out", "one", "--val-fraction", "0.1"]) == 0
    assert files(big / "many") == files(big / "one")
    assert [p.name for p in far.iterdir()] == ["text"], "parts are removed from the other disk too"
    assert not Path("many.parts").exists()


def test_parts_that_are_there_are_kept(big: Path, tokenizer: TrieTokenizer) -> None:
    for number in (1, 2, 3):
        prepare_part(["text"], tokenizer, "many", Part(number, 3))
    data = part_folder(Path("many"), 2, 3) / "batches.bin"
    data.write_bytes(data.read_bytes()[:-1])
    notes: list[str] = []
    done: list[int] = []
    prepare_on_nodes(["text"], tokenizer, "many", {"localhost": 8}, note=notes.append, progress=done.append)
    assert notes == [
        "part 2 of an earlier run is damaged (batches.bin); it is made again",
        "localhost: part 2/3 was damaged (batches.bin); made again",
    ]
    prepare_set(["text"], tokenizer, "one")
    assert files(big / "many") == files(big / "one")


def test_a_node_that_refuses(
    far: Path, big: Path, tokenizer: TrieTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "down").touch()
    Path("hosts").write_text(f"{FAR} slots=1\n")
    assert cli.main([*ARGS, "--out", "many", "--hostfile", "hosts"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"part 1/1 failed 2 times, last on {FAR}: ssh: connect to host far: refused; run it again" in last
    Path("hosts").write_text(f"{FAR} slots=1\nlocalhost slots=2\n")
    assert cli.main([*ARGS, "--out", "many", "--hostfile", "hosts"]) == 0
    assert f"failed on {FAR}, it is tried again: ssh: connect" in capsys.readouterr().err
    assert cli.main([*ARGS, "--out", "one"]) == 0
    assert files(big / "many") == files(big / "one")


def test_a_part_that_dies_is_done_elsewhere(far: Path, big: Path) -> None:
    for folder in (big, far):
        add_slow_text(folder, 200_000)
    Path("hosts").write_text(f"{FAR} slots=1\nlocalhost slots=2\n")
    process = program(*ARGS, "--out", "many", "--hostfile", "hosts", "--workers", "1")
    wait_for(process, lambda: growing(far / "many"))
    lock = next((far / "many.parts").glob(".part-*.lock"))
    family = psutil.Process(process.pid).children(recursive=True)
    next(p for p in family if str(lock) in {f.path for f in p.open_files()}).kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"failed on {FAR}, it is tried again: ended with code" in err
    assert cli.main([*ARGS, "--out", "one"]) == 0
    assert files(big / "many") == files(big / "one")
    assert not (far / "many.parts").exists()


def test_another_text_on_a_node(far: Path, big: Path, tokenizer: TrieTokenizer) -> None:
    with open(far / "text" / "c.txt", "a") as f:
        f.write("more")
    with pytest.raises(RunFailure, match=rf"{FAR}: the part from there is made from other text \(text/c\.txt has"):
        prepare_on_nodes(["text"], tokenizer, "many", {FAR: 2})
    data = Path("text/c.txt").read_bytes()
    (far / "text" / "c.txt").write_bytes(data[:-1] + b"?")  # the same size
    with pytest.raises(UserError, match=r"part 2 is made from other text \(of text/c\.txt\)"):
        prepare_on_nodes(["text"], tokenizer, "many", {FAR: 2})
    notes: list[str] = []
    prepare_on_nodes(["text"], tokenizer, "many", {"localhost": 2}, note=notes.append)
    assert "part 2 of an earlier run is made from other text" in notes[0]
    prepare_set(["text"], tokenizer, "one")
    assert files(big / "many") == files(big / "one")


def test_bad_text_ends_all_of_it(far: Path, big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (big, far):
        (folder / "text" / "a.txt").write_bytes(b"caf\xe9 " * 100_000)
    Path("hosts").write_text(f"{FAR} slots=3\n{socket.gethostname()} slots=3\n")
    assert cli.main([*ARGS, "--out", "many", "--hostfile", "hosts"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "part 1/6 failed 2 times" in last and "text/a.txt: not UTF-8 at byte 3" in last


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_nothing_outlives_a_stopped_run(sign: signal.Signals, far: Path, big: Path) -> None:
    for folder in (big, far):
        for path in (folder / "text").iterdir():
            path.unlink()
        add_slow_text(folder, 1_500_000)  # no part is done before it is stopped
    Path("hosts").write_text(f"{FAR} slots=1\nlocalhost slots=1\n")
    process = program(*ARGS, "--out", "many", "--hostfile", "hosts", "--workers", "1")
    try:
        wait_for(process, lambda: growing(big / "many") and growing(far / "many"))
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
    finally:
        process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if sign == signal.SIGINT else -sign), err
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert len(gone) == len(family) and not alive, "a part outlived the run"
    assert not list(big.glob("many.parts/.part*")) and not list(far.glob("many.parts/.part*"))
    assert not (big / "many").exists() and "Traceback" not in err
