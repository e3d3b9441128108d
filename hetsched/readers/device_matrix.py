"""A matrix between single GPUs, folded into one answer for a pair of nodes where their GPUs do not differ."""

from collections.abc import Sequence

import numpy as np

from hetsched.cluster import Floats, Indices, Node
from hetsched.errors import HetschedError

MAX_BLOCKS = 20_000

DeviceBlocks = dict[tuple[int, int], Floats]


def spread_devices(measured: Floats, index: Indices, nodes: Sequence[Node], values: Floats, where: str) -> DeviceBlocks:
    """Put a device matrix into `values` and return what does not fit there.

    measured: (m, m), NaN where nothing was measured and on the diagonal; index: (m,) the rows' positions among all
    devices; values: (nodes, nodes), changed where all GPUs of a pair of nodes have the same answer.
    Returns {(i, j): (GPUs of i, GPUs of j)} of the other pairs, NaN where nothing was measured.
    """
    sizes = np.array([len(node.gpus) for node in nodes])
    node_of = np.repeat(np.arange(len(nodes)), sizes)
    first = np.cumsum(sizes) - sizes
    order = np.argsort(index)
    devices, measured = index[order], measured[np.ix_(order, order)]
    present, starts = np.unique(node_of[devices], return_index=True)

    def fold(function: np.ufunc, array: Floats) -> Floats:
        folded: Floats = function.reduceat(function.reduceat(array, starts, axis=0), starts, axis=1)
        return folded

    low, high = fold(np.fmin, measured), fold(np.fmax, measured)
    known = fold(np.add, (~np.isnan(measured)).astype(np.float64))
    whole = np.outer(sizes[present], sizes[present]) - np.diag(sizes[present])
    even = (low == high) & (known == whole)
    at = np.ix_(present, present)
    values[at] = np.where(even, low, values[at])

    uneven = np.argwhere((known > 0) & ~even)
    if len(uneven) > MAX_BLOCKS:
        raise HetschedError(
            f"{where}: {len(uneven)} pairs of nodes differ from GPU to GPU, more than the {MAX_BLOCKS} kept",
            hint="name nodes instead of devices",
        )
    blocks: DeviceBlocks = {}
    ends = np.append(starts[1:], len(devices))
    for a, b in uneven:
        i, j = int(present[a]), int(present[b])
        rows, columns = slice(starts[a], ends[a]), slice(starts[b], ends[b])
        block = np.full((sizes[i], sizes[j]), np.nan)
        block[np.ix_(devices[rows] - first[i], devices[columns] - first[j])] = measured[rows, columns]
        blocks[i, j] = block
    return blocks
