// The row kernels, included once per instruction set: AP_ISA names the namespace, AP_LANES the float lanes of a vector
// register, AP_STEP_ROWS the rows of a step.
//
// nearest_match: R rows at a time against L lags (lag 0 is the squared norm), so that R + L - 1 row loads feed R * L
// dot products that stay in registers: 7 loads for 16 products with AVX-512, 5 for 8 with AVX2. One row at a time is
// bound by loads and twice as slow. A dot is one chain of fused multiply-adds over the row, whatever the row's place in
// its step: results depend on the two rows alone. Windows over 3 go in passes of four lags and stop as soon as every
// row of the step has found its nearest match. links is the same with window 1. The rows of the next step are
// prefetched, for the hardware's streams end at each page (750 float32 rows of 4096: 0.43 ms without, 0.28 with).
//
// mean: a running float32 sum over the rows in order, times the float32 reciprocal of their number, rounded once: what
// a stream computes. A vector division is as slow as ten additions and would take a third of the time. The lines to be
// written are prefetched too. So are, if a number of rows is promised, those to be read next, which were read long ago
// and will be read no more (1500 bfloat16 rows of 4096: 1.15 times the time of pool at window 1 without, 1.0 with).
//
// 16-bit formats are widened in registers. For bfloat16 a load becomes two vectors, of the even and of the odd elements
// (a mask and a shift; a widening shuffle costs twice that): a dot and a mean do not mind.
//
// All of this has internal linkage, for a template instantiated with AVX-512 must not serve another file's calls.
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace affinity_pool::cpu::AP_ISA {
namespace {

constexpr int kLanes = AP_LANES;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

// Vectors anywhere in memory, whatever is stored there.
typedef Vec LooseVec __attribute__((aligned(2), may_alias));
typedef Bits LooseBits __attribute__((aligned(2), may_alias));
inline Vec load_vec(const void* p) { return *static_cast<const LooseVec*>(p); }
inline Bits load_bits(const void* p) { return *static_cast<const LooseBits*>(p); }
inline void store_vec(void* p, Vec v) { *static_cast<LooseVec*>(p) = v; }
inline void store_bits(void* p, Bits v) { *static_cast<LooseBits*>(p) = v; }

// A format says how a chunk of kParts * kLanes elements becomes vectors of floats (load) and is made of them (store),
// and how chunks enter a dot product: kOperands operands each, multiplied and added lane by lane.

struct Float32 {
  using Element = float;
  using Operand = Vec;
  static constexpr int kParts = 1, kOperands = 1;
  static Vec load(const Element* p, int) { return load_vec(p); }
  static void store(Element* p, const Vec* v) { store_vec(p, v[0]); }
  static Operand operand(const Element* p, int) { return load_vec(p); }
  static Vec multiply_add(Operand a, Operand b, Vec sum) { return a * b + sum; }
};

struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kParts = 2;
  static Vec load(const Element* p, int part) {
    return (Vec)(part == 0 ? load_bits(p) << 16 : load_bits(p) & 0xffff0000u);
  }
  // Round to nearest even. A NaN, which a promised number can force into a group, stays one: its lower half is empty.
  static Bits rounded(Vec v) {
    const Bits b = (Bits)v;
    return b + 0x7fffu + ((b >> 16) & 1u);
  }
  static void store(Element* p, const Vec* v) { store_bits(p, (rounded(v[0]) >> 16) | (rounded(v[1]) & 0xffff0000u)); }
#ifdef AP_BFLOAT16_DOT
  using Operand = Bits;
  static constexpr int kOperands = 1;
  static Operand operand(const Element* p, int) { return load_bits(p); }
  static Vec multiply_add(Operand a, Operand b, Vec sum) { return bfloat16_dot(a, b, sum); }
#else
  using Operand = Vec;
  static constexpr int kOperands = 2;
  static Operand operand(const Element* p, int part) { return load(p, part); }
  static Vec multiply_add(Operand a, Operand b, Vec sum) { return a * b + sum; }
#endif
};

struct Float16 {
  using Element = uint16_t;
  using Operand = Vec;
  static constexpr int kParts = 2, kOperands = 2;
#ifdef AP_HALF_INTRINSICS
  static Vec load(const Element* p, int part) { return widen_half(p + part * kLanes); }
  static void store(Element* p, const Vec* v) {
    narrow_half(p, v[0]);
    narrow_half(p + kLanes, v[1]);
  }
#else
  // Even and odd elements, as in BFloat16. Exponent and mantissa are shifted into place and rebiased by a
  // multiplication, which also normalises subnormals; Inf and NaN keep the top exponent.
  static Vec load(const Element* p, int part) {
    const Bits h = part == 0 ? load_bits(p) & 0xffffu : load_bits(p) >> 16;
    const Bits magnitude = (h & 0x7fffu) << 13;
    const Bits special = (Bits)(magnitude >= 0x0f800000u) & 0x7f800000u;
    return (Vec)((Bits)((Vec)magnitude * 0x1p112f) | special | ((h & 0x8000u) << 16));
  }
  // Round to nearest even; subnormal halves by adding 0.5, whose last place is theirs. A mean of finite halves is
  // finite, and what is not stays what it is.
  static Bits narrow(Vec v) {
    const Bits b = (Bits)v, magnitude = b & 0x7fffffffu, sign = (b >> 16) & 0x8000u;
    const Bits subnormal = (Bits)((Vec)magnitude + 0.5f) - 0x3f000000u;
    const Bits normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    const Bits small = (Bits)(magnitude < 0x38800000u), special = (Bits)(magnitude >= 0x7f800000u);
    const Bits kept = 0x7c00u | ((Bits)(magnitude > 0x7f800000u) & 0x200u);
    return sign | (small & subnormal) | (special & kept) | (~small & ~special & normal);
  }
  static void store(Element* p, const Vec* v) { store_bits(p, narrow(v[0]) | (narrow(v[1]) << 16)); }
#endif
  static Operand operand(const Element* p, int part) { return load(p, part); }
  static Vec multiply_add(Operand a, Operand b, Vec sum) { return a * b + sum; }
};

template <class F>
constexpr int kChunk = F::kParts * kLanes;

// The last elements of a row as a whole chunk, padded with zeros.
template <class F>
struct Tail {
  typename F::Element chunk[kChunk<F>] = {};
  Tail(const typename F::Element* p, int64_t left) { std::memcpy(chunk, p, left * sizeof chunk[0]); }
};

inline float horizontal_sum(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// What a step reads: R rows, the R + L - 1 rows that are L lags behind them, from the farthest lag of the first row to
// the nearest of the last, and, if next is not null, the R rows to prefetch.
template <class F, int R, int L>
struct Reads {
  using Element = typename F::Element;
  const Element* own[R];
  const Element* lagged[R + L - 1];
  const Element* next;
  int64_t stride;
};

// sums[r][l] = dot(own[r], lagged[r + L - 1 - l]). With kSelf the nearest lag is 0 and own is among the lagged.
template <class F, int R, int L, bool kSelf>
void dots(const Reads<F, R, L>& reads, int64_t dim, float (*sums)[L]) {
  Vec acc[R][L] = {};
  const auto accumulate = [&](auto operand) {
#pragma GCC unroll 2
    for (int part = 0; part < F::kOperands; ++part) {
      typename F::Operand lagged[R + L - 1];
#pragma GCC unroll 8
      for (int i = 0; i < R + L - 1; ++i) lagged[i] = operand(reads.lagged[i], part);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const typename F::Operand own = kSelf ? lagged[r + L - 1] : operand(reads.own[r], part);
#pragma GCC unroll 4
        for (int l = 0; l < L; ++l) acc[r][l] = F::multiply_add(own, lagged[r + L - 1 - l], acc[r][l]);
      }
    }
  };
  int64_t d = 0;
  for (; d + kChunk<F> <= dim; d += kChunk<F>) {
    if (reads.next != nullptr)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) __builtin_prefetch(reads.next + r * reads.stride + d, 0, 2);
    accumulate([d](const auto* p, int part) { return F::operand(p + d, part); });
  }
  if (d < dim) accumulate([&](const auto* p, int part) { return F::operand(Tail<F>(p + d, dim - d).chunk, part); });
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int l = 0; l < L; ++l) sums[r][l] = horizontal_sum(acc[r][l]);
}

// Similarities of consecutive rows, R at a time, with the `window` rows before each, in passes of L lags.
template <class F, int R, int L>
struct Similarities {
  using Element = typename F::Element;
  const Rows& rows;
  int window;
  float norms[kMaxWindow + R];  // squared norms of the window before the step and of the step's rows

  bool mergeable(int64_t t) const { return rows.mergeable == nullptr || rows.mergeable[t]; }
  const Element* row(int64_t t) const { return static_cast<const Element*>(rows.data) + t * rows.stride; }
  float* norm_of_step() { return norms + kMaxWindow; }

  void norms_before(int64_t begin) {
    for (int64_t t = begin < window ? 0 : begin - window; t < begin; t += R) {
      Reads<F, R, 1> reads{{}, {}, nullptr, 0};
      for (int r = 0; r < R; ++r) reads.lagged[r] = row(t + r < begin ? t + r : begin - 1);
      float sums[R][1];
      dots<F, R, 1, true>(reads, rows.dim, sums);
      for (int r = 0; r < R && t + r < begin; ++r) norm_of_step()[t + r - begin] = sums[r][0];
    }
  }

  // Dot products over lags lag0..lag0 + L of the `count` rows from t on; those at lag 0 are the norms of the step.
  template <bool kFirst>
  void pass(int64_t t, int count, int lag0, bool prefetch, float (*sums)[L]) {
    // Rows outside the sequence or past the end of the step are replaced by rows inside; their sums are not used.
    const auto inside = [&](int64_t i) { return row(i < 0 ? 0 : i < t + count ? i : t + count - 1); };
    Reads<F, R, L> reads;
    for (int r = 0; r < R; ++r) reads.own[r] = inside(t + r);
    for (int i = 0; i < R + L - 1; ++i) reads.lagged[i] = inside(t - lag0 - (L - 1) + i);
    reads.next = kFirst && prefetch ? row(t + R) : nullptr;
    reads.stride = rows.stride;
    dots<F, R, L, kFirst>(reads, rows.dim, sums);
    if (kFirst)
      for (int r = 0; r < count; ++r) norm_of_step()[r] = sums[r][0];
  }

  // Calls step(t, count, prefetch) for all rows begin..end, the norms of its rows and those before them at hand.
  template <class Step>
  void run(int64_t begin, int64_t end, Step step) {
    norms_before(begin);
    for (int64_t t = begin; t < end; t += R) {
      step(t, end - t < R ? static_cast<int>(end - t) : R, t + 2 * R <= end);
      std::memmove(norms, norms + R, sizeof norms - R * sizeof norms[0]);
    }
  }
};

template <class F, int L>
void nearest_match(const Rows& rows, int64_t begin, int64_t end, MatchRule match, int window, uint8_t* nearest) {
  Similarities<F, AP_STEP_ROWS, L> similarities{rows, window, {}};
  const float* norm = similarities.norm_of_step();
  // One pass; false once no row of the step needs another.
  const auto ask = [&](auto is_first, int64_t t, int count, int lag0, bool prefetch, uint8_t* k) {
    constexpr bool kFirst = decltype(is_first)::value;
    float sums[AP_STEP_ROWS][L];
    similarities.template pass<kFirst>(t, count, lag0, prefetch, sums);
    bool more = false;
    for (int r = 0; r < count; ++r) {
      if (!similarities.mergeable(t + r)) continue;
      for (int l = kFirst ? 1 : 0; l < L && k[r] == kNoMatch; ++l) {
        const int lag = lag0 + l;
        if (lag > window || lag > t + r || !similarities.mergeable(t + r - lag)) continue;
        if (match(sums[r][l], norm[r], norm[r - lag])) k[r] = static_cast<uint8_t>(lag);
      }
      more |= k[r] == kNoMatch;
    }
    return more;
  };
  similarities.run(begin, end, [&](int64_t t, int count, bool prefetch) {
    uint8_t* k = nearest + (t - begin);
    bool more = ask(std::true_type{}, t, count, 0, prefetch, k);
    for (int lag = L; more && lag <= window; lag += L) more = ask(std::false_type{}, t, count, lag, false, k);
  });
}

template <class F>
void nearest_match(const Rows& rows, int64_t begin, int64_t end, MatchRule match, int window, uint8_t* k) {
  std::memset(k, kNoMatch, end - begin);
  if (match.threshold > 1) return;
  if (window == 1)
    nearest_match<F, 2>(rows, begin, end, match, window, k);
  else
    nearest_match<F, 4>(rows, begin, end, match, window, k);
}

template <class F>
void links(const Rows& rows, int64_t begin, int64_t end, double* link) {
  Similarities<F, AP_STEP_ROWS, 2> similarities{rows, 1, {}};
  const float* norm = similarities.norm_of_step();
  similarities.run(begin, end, [&](int64_t t, int count, bool prefetch) {
    float sums[AP_STEP_ROWS][2];
    similarities.template pass<true>(t, count, 0, prefetch, sums);
    for (int r = 0; r < count; ++r) {
      const bool in_run = t + r > 0 && similarities.mergeable(t + r) && similarities.mergeable(t + r - 1);
      link[t + r - begin] = in_run ? link_of(sums[r][1], norm[r], norm[r - 1]) : kBegins;
    }
  });
}

template <class F>
void mean(const Rows& rows, int64_t begin, int64_t end, int64_t next_end, void* out) {
  using Element = typename F::Element;
  constexpr int kWide = 4;    // chunks summed side by side, to hide the latency of an addition
  constexpr int kAhead = 16;  // turns of the loop between asking for a line and writing it: 8 % of a float32 call
  const Element* x = static_cast<const Element*>(rows.data);
  Element* o = static_cast<Element*>(out);
  if (end - begin == 1) {
    constexpr int64_t kLine = 64 / sizeof(Element);
    for (int64_t t = end; t < next_end; ++t)
      for (int64_t d = 0; d < rows.dim; d += kLine) __builtin_prefetch(x + t * rows.stride + d, 0, 0);
    std::memcpy(o, x + begin * rows.stride, rows.dim * sizeof(Element));
    return;
  }
  const float scale = 1.0f / static_cast<float>(end - begin);
  int64_t d = 0;
  for (; d + kWide * kChunk<F> <= rows.dim; d += kWide * kChunk<F>) {
    Vec sum[kWide][F::kParts] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i) __builtin_prefetch(o + d + (kAhead * kWide + i) * kChunk<F>, 1);
    for (int64_t t = end; t < next_end; ++t)
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i) __builtin_prefetch(x + t * rows.stride + d + i * kChunk<F>, 0, 0);
    for (int64_t t = begin; t < end; ++t)
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i)
#pragma GCC unroll 2
        for (int part = 0; part < F::kParts; ++part)
          sum[i][part] += F::load(x + t * rows.stride + d + i * kChunk<F>, part);
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i) {
#pragma GCC unroll 2
      for (int part = 0; part < F::kParts; ++part) sum[i][part] *= scale;
      F::store(o + d + i * kChunk<F>, sum[i]);
    }
  }
  for (; d < rows.dim; d += kChunk<F>) {
    const int64_t left = rows.dim - d < kChunk<F> ? rows.dim - d : kChunk<F>;
    Vec sum[F::kParts] = {};
    for (int64_t t = begin; t < end; ++t) {
      const Tail<F> tail(x + t * rows.stride + d, left);
      for (int part = 0; part < F::kParts; ++part) sum[part] += F::load(tail.chunk, part);
    }
    for (int part = 0; part < F::kParts; ++part) sum[part] *= scale;
    Element chunk[kChunk<F>];
    F::store(chunk, sum);
    std::memcpy(o + d, chunk, left * sizeof(Element));
  }
}

}  // namespace

const Kernels& kernels(Dtype dtype) {
  static constexpr Kernels kAll[] = {
      {nearest_match<Float32>, links<Float32>, mean<Float32>},
      {nearest_match<Float16>, links<Float16>, mean<Float16>},
      {nearest_match<BFloat16>, links<BFloat16>, mean<BFloat16>},
  };
  return kAll[static_cast<int>(dtype)];
}

}  // namespace affinity_pool::cpu::AP_ISA
