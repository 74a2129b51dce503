// The weakest links of each run, from a key a row (links.cuh), as k(t): a byte a row. Eight bytes of a row are read, a
// byte is written, and the rows themselves are left alone.
//
// Mapping. Keys are one array: runs begin where they say so. A block of 256 threads has 256 rows, a thread each, and
// selects in the runs that begin there, so every row is written by one block. Of a run that ends there as well, a
// thread counts the links that are weaker than its own: up to 254 reads of shared memory, for all runs at once. The
// last run may go on: its keys come to shared memory, as many as fit, and the cut is found by digits of eight bits,
// from the highest, counting how many keys that are still in question have which. It ends as soon as all that have a
// digit are on one side; so 1500 links of speech take three or four of the eight, and equal ones all.
//
// Determinism. The counts are integers, so no order shows. Of equal keys the earliest are taken.
//
// Cost. Linear, and no data are slower than eight digits: of a run of up to 4096 keys each is read from L2 once, of a
// longer one again for each digit and once to write, four a thread at a time. One block works on a run, some 6 us for
// 1500 rows and 55 for 17,000: predicted (docs/cost-model.md), not measured.
#pragma once

#include "params.h"
#include "port.h"

namespace affinity_pool::cuda {

constexpr int kSelectThreads = 256, kSelectWarps = kSelectThreads / 32, kDigits = 256, kCachedKeys = 4096;
constexpr int kKeysAtOnce = 4, kStep = kKeysAtOnce * kSelectThreads;
inline int64_t select_blocks_of(int64_t rows) { return (rows + kSelectThreads - 1) / kSelectThreads; }
static_assert(kDigits == kSelectThreads, "a thread has a digit");

struct SelectShared {
  uint64_t keys[kCachedKeys];
  int count[kDigits];
  uint32_t ballot[kSelectWarps];
  int warp_total[kSelectWarps];
  int digit, before, having;  // where the cut is: its digit, keys below it, keys that have it
};

// A ballot of the whole block, in shared memory; a barrier goes before the next.
AP_DEVICE void ballot_of_block(bool vote, SelectShared& shared) {
  const uint32_t ballot = __ballot_sync(kAllLanes, vote);
  if (threadIdx.x % 32 == 0) shared.ballot[threadIdx.x / 32] = ballot;
  __syncthreads();
}
AP_DEVICE int last_before(const uint32_t* ballot, int end) {
  for (int w = (end - 1) / 32; end > 0 && w >= 0; --w) {
    const uint32_t mask = w == (end - 1) / 32 ? kAllLanes >> (31 - (end - 1) % 32) : kAllLanes;
    if ((ballot[w] & mask) != 0) return w * 32 + 31 - __clz(static_cast<int>(ballot[w] & mask));
  }
  return -1;
}
AP_DEVICE int first_from(const uint32_t* ballot, int begin) {
  for (int w = begin / 32; w < kSelectWarps; ++w) {
    const uint32_t mask = w == begin / 32 ? kAllLanes << begin % 32 : kAllLanes;
    if ((ballot[w] & mask) != 0) return w * 32 + __ffs(static_cast<int>(ballot[w] & mask)) - 1;
  }
  return kSelectThreads;
}

// The least of what the threads have; a barrier goes before the next.
AP_DEVICE int least_of_block(int value, SelectShared& shared) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, value, apart);
    value = other < value ? other : value;
  }
  if (threadIdx.x % 32 == 0) shared.warp_total[threadIdx.x / 32] = value;
  __syncthreads();
  for (int w = 0; w < kSelectWarps; ++w) value = shared.warp_total[w] < value ? shared.warp_total[w] : value;
  __syncthreads();
  return value;
}

constexpr uint64_t kNoKey = ~uint64_t{0};  // of a NaN, which no link is

// The keys of one run but the first.
struct RunKeys {
  const uint64_t* cached;
  const uint64_t* all;
  int64_t count;
  // Of a thread, of a step: kNoKey where there is none.
  AP_DEVICE void load(int64_t first, uint64_t (&key)[kKeysAtOnce]) const {
#pragma unroll
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const int64_t place = first + i * kSelectThreads + threadIdx.x;
      key[i] = place >= count ? kNoKey : place < kCachedKeys ? cached[place] : all[place];
    }
  }
};

// Which keys are taken: those whose upper bits are less than the cut's and, of those that have the same, some.
struct Cut {
  uint64_t upper;
  int shift;
  int64_t of_equals;  // the earliest so many; -1: all
};

// Takes `wanted` of the keys, the least; 0 < wanted < the number of keys.
AP_DEVICE Cut find_cut(const RunKeys& keys, int64_t wanted, SelectShared& shared) {
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  uint64_t upper = 0;
  for (int shift = 56;; shift -= 8) {
    shared.count[tid] = 0;
    __syncthreads();
    for (int64_t first = 0; first < keys.count; first += kStep) {
      uint64_t key[kKeysAtOnce];
      keys.load(first, key);
#pragma unroll
      for (int i = 0; i < kKeysAtOnce; ++i)
        if (key[i] != kNoKey && key[i] >> shift >> 8 == upper) add_one(&shared.count[(key[i] >> shift) % kDigits]);
    }
    __syncthreads();
    const int having = shared.count[tid];
    int upto = having;  // with this digit or a lower one
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const int lower = __shfl_sync(kAllLanes, upto, lane < apart ? lane : lane - apart);
      if (lane >= apart) upto += lower;
    }
    if (lane == 31) shared.warp_total[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; ++w) upto += shared.warp_total[w];
    if (upto - having < wanted && wanted <= upto) {
      shared.digit = tid;
      shared.before = upto - having;
      shared.having = having;
    }
    __syncthreads();
    upper = upper << 8 | static_cast<uint64_t>(shared.digit);
    wanted -= shared.before;
    if (wanted == shared.having) return {upper, shift, -1};
    if (shift == 0) return {upper, 0, wanted};
  }
}

// The run that begins at `begin`, and goes on beyond the block's rows.
AP_DEVICE void select_in_long_run(const Selection& s, int64_t begin, int64_t known_end, SelectShared& shared) {
  const int tid = threadIdx.x;
  const RunKeys found{shared.keys, s.keys + begin + 1, 0};
  __syncthreads();
  for (int64_t t = begin + 1 + tid; t < known_end; t += kSelectThreads) shared.keys[t - begin - 1] = s.keys[t];
  int64_t end = known_end;
  for (int step = kStep; step == kStep; end += step) {
    uint64_t key[kKeysAtOnce];
#pragma unroll
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const int64_t t = end + i * kSelectThreads + tid;
      key[i] = t < s.rows ? s.keys[t] : 0;
    }
    int next_run = kStep;
#pragma unroll
    for (int i = kKeysAtOnce - 1; i >= 0; --i) {
      const int64_t place = end + i * kSelectThreads + tid - begin - 1;
      if (place < kCachedKeys) shared.keys[place] = key[i];
      if (key[i] < kLeastKey) next_run = i * kSelectThreads + tid;
    }
    step = least_of_block(next_run, shared);
  }

  const int64_t rows = end - begin, groups = s.groups_of(rows, s.keys[begin]);
  const RunKeys keys{found.cached, found.all, rows - 1};
  Cut cut{0, 0, 0};  // nothing
  if (groups == rows)
    cut = {kNoKey, 0, -1};
  else if (groups > 1)
    cut = find_cut(keys, groups - 1, shared);
  int64_t equals = 0;  // before these rows
  for (int64_t first = 0; first < keys.count; first += kStep) {
    uint64_t key[kKeysAtOnce];
    keys.load(first, key);
#pragma unroll
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const bool exists = key[i] != kNoKey, equal = exists && key[i] >> cut.shift == cut.upper;
      bool begins = key[i] >> cut.shift < cut.upper || (equal && cut.of_equals < 0);
      if (cut.of_equals > 0) {
        ballot_of_block(equal, shared);
        int64_t earlier = equals;
        for (int w = 0; w < kSelectWarps; ++w) {
          const uint32_t lower = w < tid / 32 ? kAllLanes : w == tid / 32 ? (1u << tid % 32) - 1 : 0;
          earlier += __popc(shared.ballot[w] & lower);
          equals += __popc(shared.ballot[w]);
        }
        begins = begins || (equal && earlier < cut.of_equals);
        __syncthreads();
      }
      if (exists) s.nearest[begin + 1 + first + i * kSelectThreads + tid] = begins ? kNoMatch : 1;
    }
  }
}

// The body of a block.
AP_DEVICE void select_in_runs(const Selection& s) {
  SelectShared& shared = *reinterpret_cast<SelectShared*>(dynamic_shared_memory());
  const int tid = threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSelectThreads, row = first + tid;
  const uint64_t key = row < s.rows ? s.keys[row] : 0;
  shared.keys[tid] = key;
  ballot_of_block(key < kLeastKey, shared);
  const int begin = last_before(shared.ballot, tid + 1), end = first_from(shared.ballot, tid + 1);
  const int last = last_before(shared.ballot, kSelectThreads);
  const bool goes_on = first + kSelectThreads <= s.rows;
  if (begin == tid && row < s.rows) s.nearest[row] = kNoMatch;
  if (begin >= 0 && begin < tid && end < kSelectThreads) {
    const int64_t groups = s.groups_of(end - begin, shared.keys[begin]);
    int64_t weaker = 0;
    if (groups > 1)
      for (int i = begin + 1; i < end; ++i) weaker += shared.keys[i] < key || (shared.keys[i] == key && i < tid);
    s.nearest[row] = weaker < groups - 1 ? kNoMatch : 1;
  }
  if (goes_on && last >= 0) select_in_long_run(s, first + last, first + kSelectThreads, shared);
}

}  // namespace affinity_pool::cuda
