"""Which tokens a list of merges can make, and at which rank: the bridge from merges to a plain table of ranks.

BPE repeats "merge the adjacent pair that stands earliest in the list" (leftmost first) until no listed pair is left.
A table of ranks over byte strings says less: any two neighbours whose joined bytes are in it may merge. The two agree
on every text if the table holds exactly the tokens that their own bytes merge into, each at the rank of its last merge:

    Where two tokens x, y stand side by side at any moment, nothing has merged across the ends of xy, so the same bytes
    alone pass through the state [x, y] as well. A string has one such last step, hence one pair and one rank.

A token that its own bytes do not merge into (its list of merges was cut, say) is never made from text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nano_ds.errors import UserError

NEVER = np.iinfo(np.int64).max


def reachable(tokens: Sequence[bytes], merges: np.ndarray, ordinary: np.ndarray, source: str) -> np.ndarray:
    """The rank of each token: -1 for single bytes, the index of its last merge, or NEVER.

    Args:
        tokens: V byte strings by id.
        merges: (M, 2) ids; every id in range.
        ordinary: (V,) bool, the tokens that text may become; of equal tokens at most one.

    Raises:
        UserError: a merge makes no ordinary token, uses one that is none, or is listed twice.
    """
    ids = {t: i for i, t in enumerate(tokens) if ordinary[i]}
    made = np.empty(len(merges), np.int64)
    for k, (left, right) in enumerate(merges.tolist()):
        id = ids.get(tokens[left] + tokens[right])
        if id is None or not ordinary[left] or not ordinary[right]:
            raise UserError(f"{source}: merge {k} ({left}, {right}) joins {_why(tokens, ordinary, left, right)}")
        made[k] = id
    keys = merges[:, 0] * len(tokens) + merges[:, 1]
    order = np.argsort(keys, kind="stable")
    twice = np.nonzero(np.diff(keys[order]) == 0)[0]
    if len(twice):
        raise UserError(f"{source}: merge {order[twice[0] + 1]} is merge {order[twice[0]]} again; remove one of them")
    ranks = _by_length(tokens, merges, made, ordinary, keys[order], order)
    return _by_simulation(tokens, merges, made, ordinary) if ranks is None else ranks


def _why(tokens: Sequence[bytes], ordinary: np.ndarray, left: int, right: int) -> str:
    for id in (left, right):
        if not ordinary[id]:
            return f"token {id}, which is special or a second copy; text never becomes it"
    return f"{tokens[left]!r} and {tokens[right]!r}, but what they make is no ordinary token"


def _by_length(
    tokens: Sequence[bytes],
    merges: np.ndarray,
    made: np.ndarray,
    ordinary: np.ndarray,
    sorted_keys: np.ndarray,
    order: np.ndarray,
) -> np.ndarray | None:
    """All tokens of one length at a time, by the ranks of shorter ones; None where ranks do not grow along a token."""
    size = len(tokens)
    lengths = np.array([len(t) for t in tokens])
    ranks = np.where((lengths == 1) & ordinary, -1, NEVER)
    parts = np.zeros((size, 2), np.int64)

    def listed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The index of each pair in the merges, or NEVER."""
        wanted = left * size + right
        at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
        return np.where(sorted_keys[at] == wanted, order[at], NEVER)

    for length in np.unique(lengths[made]):
        k = np.nonzero(lengths[made] == length)[0]
        k = k[(ranks[merges[k]] != NEVER).all(axis=1)]
        k = k[_stand_apart(merges[k, 0], merges[k, 1], ranks, parts, listed)]
        if (ranks[merges[k]] > k[:, None]).any():
            return None
        ranks[made[k]] = k
        parts[made[k]] = merges[k]
    return ranks


def _stand_apart(left: np.ndarray, right: np.ndarray, ranks: np.ndarray, parts: np.ndarray, listed) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Whether the bytes of left + right, by themselves, come to stand as [left, right]: (N,) bool.

    Takes the two tokens apart in the reverse order of their merges. At each step the pair of tokens at the border was
    there until one of the two was merged away from it; if the list would have merged the pair before, it never stood.
    """
    fine = np.ones(len(left), bool)
    at = np.arange(len(left))  # those not yet decided
    until_left, until_right = np.full(len(left), NEVER), np.full(len(left), NEVER)
    while len(at):
        # Of equal ranks the one on the right was later.
        undo_right = ranks[right] >= ranks[left]
        until_right = np.where(undo_right, ranks[right], until_right)
        until_left = np.where(undo_right, until_left, ranks[left])
        going = np.maximum(ranks[left], ranks[right]) >= 0
        left, right = np.where(undo_right, left, parts[left, 1]), np.where(undo_right, parts[right, 0], right)
        pair = listed(left, right)
        crossed = going & (pair < until_left) & (pair <= until_right)
        fine[at[crossed]] = False
        going &= ~crossed
        at, left, right = at[going], left[going], right[going]
        until_left, until_right = until_left[going], until_right[going]
    return fine


def _by_simulation(tokens: Sequence[bytes], merges: np.ndarray, made: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
    """The definition: merges the bytes of every token. Seconds for a large vocabulary, for any list of merges."""
    table = {(int(a), int(b)): (k, int(made[k])) for k, (a, b) in enumerate(merges.tolist())}
    single = {t[0]: i for i, t in enumerate(tokens) if ordinary[i] and len(t) == 1}
    ranks = np.full(len(tokens), NEVER)
    ranks[list(single.values())] = -1
    for id in np.unique(made).tolist():
        if all(b in single for b in tokens[id]):
            state, last = merge([single[b] for b in tokens[id]], table)
            if state == [id]:
                ranks[id] = last
    return ranks


def merge(state: list[int], table: dict[tuple[int, int], tuple[int, int]]) -> tuple[list[int], int]:
    """Plain BPE: the ids that ``state`` merges into, and the rank of the last merge (-1 if there was none).

    ``table`` gives rank and result of each pair. Quadratic; for short strings.
    """
    last = -1
    while True:
        best, where, into = NEVER, -1, -1
        for i in range(len(state) - 1):
            rank, id = table.get((state[i], state[i + 1]), (NEVER, -1))
            if rank < best:
                best, where, into = rank, i, id
        if where < 0:
            return state, last
        state[where : where + 2] = [into]
        last = int(best)
