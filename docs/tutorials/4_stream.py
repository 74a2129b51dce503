"""
Pool a stream
=============

Audio that arrives in chunks: a group is returned as soon as it is closed, and the groups are those of the whole
sequence, whatever the chunks.
"""

# %%
# A second of something that hums on and changes a few times: 200 frames of 128 features.

import torch

from affinity_pool import AffinityPooler, pool

torch.manual_seed(0)
frames = torch.randn(25, 128).repeat_interleave(8, 0) + 0.2 * torch.randn(200, 128)

# %%
# A pooler holds the open group: its running sum, its count and its latest rows. ``step`` takes what has come and
# returns the groups that it closed, ``flush`` closes the last one.

pooler = AffinityPooler(threshold=0.8, window=3)
closed = []
for chunk in frames.split([40, 1, 0, 19, 100, 40]):
    values, counts = pooler.step(chunk)
    print(f"{len(chunk):3d} frames came, {len(counts):2d} groups closed")
    closed.append(values)
closed.append(pooler.flush().values)

# %%
# The same bits as in one call.

whole = pool(frames, threshold=0.8, window=3)
assert torch.equal(torch.cat(closed), whole.values)
print(f"{len(frames)} frames became {len(whole.values)} rows")

# %%
# A chunk that cannot be used is refused before anything happens, and the stream goes on as if it had not come.

try:
    pooler.step(torch.randn(5, 128, dtype=torch.float64))
except TypeError as error:
    print(error)

# %%
# To a promised number (``pool_to``) nothing streams: which links are the weakest shows when the last row is there.
