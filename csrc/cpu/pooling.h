// A whole call on the CPU: blocks of rows go by in waves, torch-free.
//
// A wave is similarities in parallel over its blocks, a scan over its bytes, then means in parallel. A block is half a
// megabyte and its means go to the thread that has just read it, so rows are fetched from memory once and a mean finds
// them in the core's own cache (two passes over the whole input instead: 1.2x the time at 1500 float32 rows of 4096).
// A wave has the rows of two blocks a thread, of one block if there is one thread; short sequences are blocks of their
// own, and many go by in one wave.
//
// Groups are known before the number of groups is. Right-aligned results need that number first, so there the wave is
// the whole call. So it is if a number of rows is promised, for the last link may be the weakest: the links of all
// blocks, a selection over 8 bytes a row, then the means of the blocks, last block first, for what has been read last
// is still in the caches.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "selection.h"

namespace affinity_pool::cpu {

struct Sequence {
  Rows rows;
  int64_t length;
  int64_t first_row;  // of its rows in segment_ids
};

// Where results go. Sequences are written one after the other, or each from row b * pitch on.
struct Output {
  char* values;
  int64_t row_bytes;
  int32_t* segment_ids;
  int32_t* counts;
  int32_t* lengths;  // groups of each sequence
  int64_t pitch;     // 0: packed
  bool right_aligned;
};

class Pooling {
 public:
  Pooling(const Kernels& kernels, const std::vector<Sequence>& sequences, Output output)
      : kernels_(kernels), sequences_(sequences), out_(output) {
    constexpr int64_t kBlockBytes = 512 << 10;
    block_rows_ = std::clamp<int64_t>(kBlockBytes / output.row_bytes, 32, 1024);
    for (size_t b = 0; b < sequences.size(); ++b) {
      out_.lengths[b] = 0;
      for (int64_t t = 0; t < sequences[b].length; t += block_rows_) {
        const int64_t end = std::min(t + block_rows_, sequences[b].length);
        blocks_.push_back({b, t, end, rows_});
        rows_ += end - t;
      }
    }
  }

  // parallel_for(n, f) calls f(begin, end) on ranges that cover 0..n.
  template <class ParallelFor>
  void by_threshold(MatchRule match, int window, int64_t threads, ParallelFor parallel_for) {
    const int64_t blocks_per_wave = threads == 1 ? 1 : 2 * threads;
    const int64_t wave_rows = out_.right_aligned ? rows_ : blocks_per_wave * block_rows_;
    for (size_t first = 0, count = 0; first < blocks_.size(); first += count) {
      count = blocks_until(first, blocks_[first].match + wave_rows) - first;
      const Block* blocks = &blocks_[first];
      first_match_ = blocks[0].match;
      matches_.resize((first + count < blocks_.size() ? blocks[count].match : rows_) - first_match_);
      parallel_for(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          kernels_.nearest_match(sequences_[blocks[i].sequence].rows, blocks[i].begin, blocks[i].end, match, window,
                                 &matches_[blocks[i].match - first_match_]);
      });
      scan(blocks, count, window);
      parallel_for(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) write_means(i, false);
      });
    }
  }

  template <class ParallelFor>
  void by_count(Promise promise, int64_t threads, ParallelFor parallel_for) {
    std::vector<double> links(rows_);
    parallel_for(blocks_.size(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        kernels_.links(sequences_[blocks_[i].sequence].rows, blocks_[i].begin, blocks_[i].end,
                       &links[blocks_[i].match]);
    });
    matches_.resize(rows_);
    Selection selection(promise);
    for (size_t b = 0, row = 0; b < sequences_.size(); row += sequences_[b++].length)
      selection.select(b, links.data() + row, sequences_[b].length, matches_.data() + row);
    scan(blocks_.data(), blocks_.size(), 1);
    parallel_for(blocks_.size(), [&](int64_t begin, int64_t end) {
      for (int64_t i = end; i-- > begin;) write_means(i, true);
    });
  }

 private:
  struct Block {
    size_t sequence;
    int64_t begin, end;
    int64_t match;  // rows before it in the call, the place of its k(t)
  };
  struct Group {
    size_t sequence;
    int64_t begin, end, row;
  };

  // The end of a wave: the first block that reaches beyond this row of the call, but at least one.
  size_t blocks_until(size_t first, int64_t row) const {
    size_t end = first + 1;
    while (end < blocks_.size() && blocks_[end].match + blocks_[end].end - blocks_[end].begin <= row) ++end;
    return end;
  }

  // Closes the groups that end in the blocks; groups of block i are groups_[closed_[i - 1]..closed_[i]].
  void scan(const Block* blocks, size_t count, int window) {
    groups_.clear();
    closed_.clear();
    for (size_t i = 0; i < count; ++i) {
      const auto [b, begin, end, match] = blocks[i];
      const Sequence& sequence = sequences_[b];
      if (begin == 0) {
        open_ = OpenGroup{window};
        opened_ = 0;
        if (out_.pitch > 0) row_ = b * out_.pitch;
      }
      for (int64_t t = begin; t < end; ++t) {
        if (open_.opens(matches_[match - first_match_ + t - begin]) && t > 0) close(b, t);
        out_.segment_ids[sequence.first_row + t] = static_cast<int32_t>(row_ - b * out_.pitch);
      }
      if (end == sequence.length) close(b, end);
      closed_.push_back(groups_.size());
    }
    if (out_.right_aligned) align_right();
  }

  void close(size_t b, int64_t end) {
    groups_.push_back({b, opened_, end, row_});
    out_.counts[row_] = static_cast<int32_t>(end - opened_);
    ++out_.lengths[b];
    ++row_;
    opened_ = end;
  }

  void align_right() {
    for (size_t b = 0; b < sequences_.size(); ++b) {
      const int32_t groups = out_.lengths[b], shift = static_cast<int32_t>(out_.pitch) - groups;
      int32_t* counts = out_.counts + b * out_.pitch;
      std::copy_backward(counts, counts + groups, counts + out_.pitch);
      int32_t* ids = out_.segment_ids + sequences_[b].first_row;
      for (int64_t t = 0; t < sequences_[b].length; ++t) ids[t] += shift;
    }
    for (Group& group : groups_) group.row += out_.pitch - out_.lengths[group.sequence];
  }

  // Of the groups that end in block i of the wave. `from_afar`: their rows are no longer in the core's own cache, so
  // those of the next group are fetched while a mean is written, as many as there is time for.
  void write_means(int64_t i, bool from_afar) {
    for (size_t g = i == 0 ? 0 : closed_[i - 1]; g < closed_[i]; ++g) {
      const auto [sequence, begin, end, row] = groups_[g];
      int64_t next_end = end;
      if (from_afar && g + 1 < closed_[i] && groups_[g + 1].sequence == sequence)
        next_end = std::min(groups_[g + 1].end, end + 2 * (end - begin));
      kernels_.mean(sequences_[sequence].rows, begin, end, next_end, out_.values + row * out_.row_bytes);
    }
  }

  const Kernels& kernels_;
  const std::vector<Sequence>& sequences_;
  const Output out_;
  std::vector<Block> blocks_;
  int64_t block_rows_ = 0;
  int64_t rows_ = 0;
  // Of the wave:
  int64_t first_match_ = 0;
  std::vector<uint8_t> matches_;  // k(t)
  std::vector<Group> groups_;
  std::vector<size_t> closed_;
  // Of the open group: its capped length, first row, and the row of values it will have.
  OpenGroup open_{1};
  int64_t opened_ = 0;
  int64_t row_ = 0;
};

}  // namespace affinity_pool::cpu
