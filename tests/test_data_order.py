"""The order of samples: a bijection, uniform, exact in its mix, and the same for every way of running."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from nano_ds.data import IGNORE, PERIOD, BlockStream, Loader, Validation, perm, shares
from nano_ds.errors import UserError
from nano_ds.shards import ShardWriter, TokenSet, new_manifest, token_dtype

MARK = "cd" * 32


def make_set(folder: Path, shards: list[int], vocab: int = 60000, base: int = 0, split: str = "train") -> TokenSet:
    """Shards whose tokens count up from ``base``, so that a block tells where it came from."""
    from nano_ds.files import write_json

    folder.mkdir()
    entries = []
    for i, n in enumerate(shards):
        writer = ShardWriter(folder / f"{split}-{i:05d}.bin", vocab, MARK)
        writer.add((base + np.arange(n)).astype(token_dtype(vocab)), np.array([n]), 3 * n)
        base += n
        entries.append(writer.close())
    write_json(folder / "manifest.json", new_manifest(vocab, MARK, {"train": [], "val": [], split: entries}))
    return TokenSet.open(folder, split, MARK)


@pytest.mark.parametrize("n", [*range(1, 40), 97, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4093, 65535, 65537])
def test_perm_is_a_bijection(n: int) -> None:
    for seed, epoch in ((0, 0), (39, 1), (2**63 - 1, 10**9)):
        assert np.sort(perm(seed, epoch, np.arange(n), n)).tolist() == list(range(n))


def test_perm_of_huge_ranges() -> None:
    for n in (2**31 + 11, 2**40 - 1, 2**62 + 5):
        i = np.concatenate([np.arange(1000), np.arange(n - 1000, n)])
        out = perm(1, 2, i, n)
        assert len(np.unique(out)) == len(i) and int(out.max()) < n
        assert [int(perm(1, 2, int(k), n)[0]) for k in i[:5]] == out[:5].tolist()
    with pytest.raises(ValueError, match="outside"):
        perm(1, 1, 5, 5)
    with pytest.raises(ValueError, match="n >= 1"):
        perm(1, 1, 0, 0)


def test_perm_never_changes() -> None:
    """A checkpoint of today must find its place tomorrow."""
    assert perm(39, 0, np.arange(10), 10).tolist() == PINNED_10
    assert perm(39, 1, np.arange(5), 10**12).tolist() == PINNED_BIG


PINNED_10 = [5, 6, 2, 0, 3, 7, 8, 9, 1, 4]
PINNED_BIG = [183011090251, 466474933553, 839660225951, 552361899923, 625893653745]


@pytest.mark.parametrize("n", [2, 3, 5, 8, 17])
def test_perm_is_uniform(n: int) -> None:
    """Over many keys each item goes to each place equally often (chi-square, five standard deviations)."""
    keys = 1200
    count = np.zeros((n, n))
    for key in range(keys):
        count[np.arange(n), perm(key % 50, key, np.arange(n), n).astype(int)] += 1
    expected = keys / n
    chi2, freedom = ((count - expected) ** 2 / expected).sum(), (n - 1) ** 2
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom), chi2


def test_perm_leaves_no_trace_of_order() -> None:
    n = 10_000
    out = perm(7, 3, np.arange(n), n).astype(float)
    assert abs(np.corrcoef(np.arange(n), out)[0, 1]) < 0.05
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(out, perm(7, 4, np.arange(n), n))[0, 1]) < 0.05
    assert abs(np.corrcoef(out, perm(8, 3, np.arange(n), n))[0, 1]) < 0.05


def test_every_block_once_per_epoch(tmp_path: Path) -> None:
    stream = BlockStream([make_set(tmp_path / "a", [101, 50, 8, 1])], 10, seed=5)
    assert stream.blocks == [10 + 4]
    starts = [stream.read(np.arange(e * 14, e * 14 + 14))[:, 0].tolist() for e in range(3)]
    wanted = [*range(0, 100, 10), *range(101, 141, 10)]
    assert all(sorted(s) == wanted for s in starts) and starts[0] != starts[1] != starts[2]
    rows = stream.read(np.arange(14))
    assert (np.diff(rows, axis=1) == 1).all() and rows.shape == (14, 11)


def test_weights_are_exact_over_each_period(tmp_path: Path) -> None:
    sets = [
        make_set(tmp_path / "a", [1001]),
        make_set(tmp_path / "b", [5001], base=2000),
        make_set(tmp_path / "c", [90]),
    ]
    stream = BlockStream(sets, 10, [3, 1, 0], seed=1)
    assert stream.slots == [768, 256] and len(stream.sets) == 2
    which, epoch, block = stream.locate(np.arange(4 * PERIOD))
    assert (np.bincount(which.reshape(4, -1)[2]) == [768, 256]).all()
    runs = which[:PERIOD].reshape(8, -1).mean(1)
    assert runs.min() > 0.1 and runs.max() < 0.4, "the sets alternate, they do not come in runs"
    assert (which[:PERIOD] != which[PERIOD : 2 * PERIOD]).any()
    for k, n in enumerate(stream.blocks):
        mine = block[which == k]
        for e in range(int(epoch[which == k].max())):
            assert sorted(mine[e * n : (e + 1) * n].tolist()) == list(range(n)), "every block once per epoch"
    late = stream.locate(10**12 + np.arange(10))
    assert [x.tolist() for x in late] == [x[5:15].tolist() for x in stream.locate(10**12 - 5 + np.arange(20))]
    assert shares([1, 1, 1]) == [342, 341, 341] and shares([1e9, 1e-9]) == [1023, 1]
    with pytest.raises(UserError, match="at most 1024"):
        shares([1.0] * 1025)


def gather(stream: BlockStream, steps: range, world: int, micro: int, batch: int) -> list[torch.Tensor]:
    """The global batches of ``steps`` from all ranks together."""
    accum = batch // micro // world
    found: list[list[torch.Tensor]] = [[] for _ in steps]
    for rank in range(world):
        with Loader(
            stream, step=steps.start, rank=rank, world=world, micro_batch=micro, accum=accum, batch_size=batch
        ) as loader:
            for row in found:
                batches = loader.next_step()
                assert len(batches) == accum
                for x, y, *_ in batches:
                    assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (micro, stream.block_size)
                    assert (x[:, 1:] == y[:, :-1]).all()
                    row.append(torch.cat([x, y[:, -1:]], 1))
            assert loader.step == steps.stop
    return [torch.cat(row) for row in found]


def test_batches_do_not_depend_on_how_they_are_run(tmp_path: Path) -> None:
    sets = [make_set(tmp_path / "a", [2001, 700]), make_set(tmp_path / "b", [901], base=5000)]
    stream = BlockStream(sets, 16, [2, 1], seed=9)
    wanted = [torch.from_numpy(stream.read(np.arange(s * 12, s * 12 + 12))) for s in range(30)]
    for world, micro in ((1, 12), (1, 1), (2, 3), (3, 4), (4, 1), (12, 1), (6, 2)):
        got = gather(stream, range(30), world, micro, 12)
        for a, b in zip(got, wanted, strict=True):
            assert (a == b).all()


def test_resuming_anywhere_changes_nothing(tmp_path: Path) -> None:
    stream = BlockStream([make_set(tmp_path / "a", [501]), make_set(tmp_path / "b", [301], base=1000)], 10, seed=2)
    whole = gather(stream, range(40), 1, 4, 4)
    for start in (0, 1, 7, 12, 13, 39):
        assert torch.equal(gather(stream, range(start, 40), 1, 2, 4)[0], whole[start])
        assert torch.equal(gather(stream, range(start, 40), 2, 2, 4)[-1], whole[-1])
    assert not torch.equal(gather(BlockStream(stream.sets, 10, seed=3), range(1), 1, 4, 4)[0], whole[0])


def test_validation_is_the_same_everywhere(tmp_path: Path) -> None:
    sets = [make_set(tmp_path / "a", [201], split="val"), make_set(tmp_path / "b", [101], base=1000, split="val")]
    for stream, wanted in (
        (BlockStream(sets[:1], 10, shuffle=False), 20),
        (BlockStream(sets, 10, [2, 1], shuffle=False), 30),
    ):
        for world, micro in ((1, 7), (2, 3), (3, 4)):
            val = Validation(stream, eval_batches=9, batch_size=12, micro_batch=micro)
            ranks = [list(val.batches(r, world)) for r in range(world)]
            assert len({len(r) for r in ranks}) == 1
            real = sorted(x[i, 0].item() for r in ranks for x, y, *_ in r for i in range(micro) if y[i, 0] != IGNORE)
            assert len(real) == len(set(real)) and abs(len(real) - wanted) <= 1
    assert Validation(stream, eval_batches=2, batch_size=5, micro_batch=5).samples == 10
    assert val.bytes_per_token == pytest.approx(3.0)
    first = next(
        Validation(BlockStream(sets[:1], 10, shuffle=False), eval_batches=1, batch_size=4, micro_batch=4).batches()
    )
    assert first[0][:, 0].tolist() == [0, 10, 20, 30]


def test_mistakes_are_named(tmp_path: Path) -> None:
    a = make_set(tmp_path / "a", [50, 20])
    with pytest.raises(UserError, match=r"50 tokens in one piece, fewer than model.block_size 64 \+ 1; lower .* 49"):
        BlockStream([a], 64)
    with pytest.raises(UserError, match=r"batch_size: 5 is not micro batch 2 x accumulation 1 x 2"):
        Loader(BlockStream([a], 10), world=2, micro_batch=2, accum=1, batch_size=5)


def test_errors_in_the_background_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BlockStream([make_set(tmp_path / "a", [50])], 10)
    before = threading.active_count()
    good = stream.read
    monkeypatch.setattr(stream, "read", lambda g: good(g) if g[0] < 4 else 1 / 0)
    loader = Loader(stream, micro_batch=2, batch_size=2)
    assert len(loader.next_step()) == len(loader.next_step()) == 1
    with pytest.raises(ZeroDivisionError):
        loader.next_step()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next_step()
    idle = Loader(stream, micro_batch=2, batch_size=2)
    idle.close()
    idle.close()
    assert threading.active_count() == before


def test_bent_tokens_of_a_big_file_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = make_set(tmp_path / "a", [50], vocab=50)
    with open(tmp_path / "a" / "train-00000.bin", "r+b") as f:
        f.seek(128 + 20)
        f.write(b"\xff\xff")
    with pytest.raises(UserError, match="checksum"):
        TokenSet.open(tmp_path / "a", "train")
    monkeypatch.setattr("nano_ds.shards.VERIFY_BELOW", 0)
    stream = BlockStream([TokenSet.open(tmp_path / "a", "train")], 10)
    with pytest.raises(UserError, match="damaged near token"):
        stream.read(np.arange(stream.blocks[0]))
    assert a.tokens == 50
