"""
Packed and padded, in a module of one's own
===========================================

The op needs torch alone. Here it shortens sequences inside a small encoder, once packed side by side as FlashAttention
takes them and once as a padded batch, and is trained through and compiled.
"""

# %%
# Sequences of different lengths, some of it repeated, as neighbouring frames of speech are.

import torch
from torch import Tensor, nn

import affinity_pool

torch.manual_seed(0)
lengths = [120, 75, 8]
frames = [torch.randn(n // 3 + 1, 64).repeat_interleave(3, 0)[:n] + 0.1 * torch.randn(n, 64) for n in lengths]

# %%
# **Packed**: rows side by side, and ``cu_seqlens`` says where sequences begin. What comes back has the same form, so it
# goes on to any kernel that takes packed sequences.

packed = torch.cat(frames)
cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
pooled = affinity_pool.pool(packed, cu_seqlens, threshold=0.8, window=3)

print("rows", tuple(packed.shape), "to", tuple(pooled.values.shape))
print("cu_seqlens", cu_seqlens.tolist(), "to", pooled.cu_seqlens.tolist())

# %%
# ``segment_ids`` says where each row went: with it anything else follows, labels, times, or what was computed on the
# short sequence back to the long one.

restored = pooled.values[pooled.segment_ids]
print(f"cosine of a row and its group's mean: {torch.cosine_similarity(restored, packed).mean():.3f}")

# %%
# **Padded**: no shape depends on the data, so nothing waits for a GPU, and a compiled graph or a CUDA graph has one
# form. A module that pools between two layers, and masks what is padding after it:


class PooledEncoder(nn.Module):
    """Two attention layers with pooling between them."""

    def __init__(self, width: int = 64, threshold: float = 0.8) -> None:
        super().__init__()
        self.before = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.0, batch_first=True)
        self.after = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.0, batch_first=True)
        self.threshold = threshold

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        column = torch.arange(x.shape[1], device=x.device)
        x = self.before(x, src_key_padding_mask=column >= lengths[:, None])
        pooled = affinity_pool.pool_padded(x, lengths, threshold=self.threshold)
        x = self.after(pooled.values, src_key_padding_mask=column >= pooled.lengths[:, None])
        return x, pooled.lengths


encoder = PooledEncoder()
batch = nn.utils.rnn.pad_sequence(frames, batch_first=True)
before = torch.tensor(lengths, dtype=torch.int32)
values, after = encoder(batch, before)
print("lengths", before.tolist(), "to", after.tolist())

# %%
# Gradients go through the means: each row receives its share of its group's. ``torch.compile`` takes the op whole. The
# backend here needs no compiler and no Python headers; leave it out for Inductor.

valid = torch.arange(values.shape[1]) < after[:, None]
values[valid][:, 0].square().mean().backward()
print(f"gradient of the first layer: {encoder.before.linear1.weight.grad.norm():.3f}")

compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(batch, before)[0][valid], values[valid])

# %%
# A row that must stay as it is, text among audio, is not ``mergeable``: it passes bit for bit, and no group crosses it.

mergeable = torch.ones(len(packed), dtype=torch.bool)
mergeable[10:20] = False
kept = affinity_pool.pool(packed, cu_seqlens, mergeable=mergeable, threshold=0.8)
assert torch.equal(kept.values[kept.segment_ids[10:20]], packed[10:20])
print("with ten rows of text:", len(kept.counts), "groups")
