"""What the launcher refuses, in words, before it allocates or launches anything: here it needs no GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from affinity_pool.triton_kernels import pool, pool_padded, pool_padded_to, pool_to

MOST = 2**31 - 2**10


def spread(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of any size in the memory of one element."""
    return torch.zeros(1, dtype=dtype).expand(shape)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (spread(MOST + 1, 1), f"x must have at most 2^31 - 2^10 rows, got {MOST + 1}"),
        (spread(3, MOST + 1), f"x must have at most 2^31 - 2^10 features, got {MOST + 1}"),
        (spread(2**24, 2**18), f"x must have at most {2**31 - 1} blocks of 1024 features, got {2**32}"),
    ],
)
def test_what_32_bits_cannot_count_is_refused(x, message):
    for call in (
        lambda: pool(x, None, None, 0.8, 3),
        lambda: pool_padded(x[None], None, None, 0.8, 3),
        lambda: pool_to(x, None, None, 0.8),
        lambda: pool_padded_to(x[None], None, None, 0.8),
    ):
        with pytest.raises(ValueError, match=r"^x must") as refusal:
            call()
        assert str(refusal.value) == message


def test_rows_are_counted_over_the_batch():
    with pytest.raises(ValueError, match=rf"^x must have at most 2\^31 - 2\^10 rows, got {2**31}$"):
        pool_padded(spread(2**20, 2**11, 1), None, None, 0.8, 3)


def test_amd_s_grids_have_fewer_programs(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.2")
    with pytest.raises(ValueError, match=rf"^x must have at most {2**23 - 1} blocks of 1024 features, got {2**23}$"):
        pool(spread(2**22, 1025), None, None, 0.8, 3)


def test_more_rows_than_32_bits_can_count_are_not_promised():
    with pytest.raises(ValueError, match=rf"^x must have at most 2\^31 - 2\^10 rows, got {2**32}$"):
        pool_to(spread(2**22, 1), spread(2**10 + 1, dtype=torch.int32), None, 1.0, [2**22])


def test_rows_of_no_sequence_are_refused():
    for call in (pool, pool_to):
        with pytest.raises(ValueError, match=r"^cu_seqlens must end at the 6 rows of x, got 0$"):
            call(torch.ones(6, 2), torch.zeros(1, dtype=torch.int32), None, 0.8, *([3] if call is pool else []))


def test_more_bounds_than_there_can_be_are_refused():
    with pytest.raises(ValueError, match=rf"^cu_seqlens must have fewer than 2\^31 entries, got {2**31}$"):
        pool(torch.ones(6, 2), spread(2**31, dtype=torch.int32), None, 0.8, 3)


def test_a_promise_for_another_number_of_sequences_is_refused():
    x, cu_seqlens = torch.ones(6, 2), torch.tensor([0, 3, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^rows must be one int, or one for each of the 2 sequences of x, got 3$"):
        pool_to(x, cu_seqlens, None, 1.0, [1, 2, 3])
    with pytest.raises(ValueError, match=r"^rows_tensor must have one entry for each of the 2 sequences of x, got 1$"):
        pool_to(x, cu_seqlens, None, 1.0, None, torch.ones(1, dtype=torch.int32))


def test_a_list_is_not_copied_into_a_graph(monkeypatch):
    class Elsewhere(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.ones(2, 6, 2).as_subclass(Elsewhere)
    for call in (
        lambda: pool_padded_to(x, None, None, 1.0, [1, 2]),
        lambda: pool_to(x[0], torch.tensor([0, 3, 6], dtype=torch.int32), None, 1.0, [1, 2]),
    ):
        with pytest.raises(
            ValueError, match=r"^rows that differ must be an int32 tensor on the device of x while a CUDA"
        ):
            call()
