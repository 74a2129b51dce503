// A whole call on the CPU: blocks of rows go by in waves, torch-free.
//
// A wave is similarities in parallel over its blocks, a scan over its bytes, then means in parallel. A block is half a
// megabyte and its means go to the thread that has just read it, so rows are fetched from memory once and a mean finds
// them in the core's own cache (two passes over the whole input instead: 1.2x the time at 1500 float32 rows of 4096).
// A wave has the rows of two blocks a thread, of one block if there is one thread; short sequences are blocks of their
// own, and many go by in one wave.
//
// Groups are known before the number of groups is. Right-aligned results need that number first, so there the wave is
// the whole call.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"

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
  Pooling(const Kernels& kernels, MatchRule match, int window, const std::vector<Sequence>& sequences, Output output)
      : kernels_(kernels), match_(match), window_(window), sequences_(sequences), out_(output) {
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
  void run(int64_t threads, ParallelFor parallel_for) {
    const int64_t blocks_per_wave = threads == 1 ? 1 : 2 * threads;
    const int64_t wave_rows = out_.right_aligned ? rows_ : blocks_per_wave * block_rows_;
    for (size_t first = 0, count = 0; first < blocks_.size(); first += count) {
      count = blocks_until(first, blocks_[first].match + wave_rows) - first;
      const Block* blocks = &blocks_[first];
      first_match_ = blocks[0].match;
      matches_.resize((first + count < blocks_.size() ? blocks[count].match : rows_) - first_match_);
      parallel_for(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) find_matches(blocks[i]);
      });
      scan(blocks, count);
      if (out_.right_aligned) align_right();
      parallel_for(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (size_t g = i == 0 ? 0 : closed_[i - 1]; g < closed_[i]; ++g) write_mean(groups_[g]);
      });
    }
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

  void find_matches(const Block& block) {
    kernels_.nearest_match(sequences_[block.sequence].rows, block.begin, block.end, match_, window_,
                           &matches_[block.match - first_match_]);
  }

  // Closes the groups that end in the blocks; groups of block i are groups_[closed_[i - 1]..closed_[i]].
  void scan(const Block* blocks, size_t count) {
    groups_.clear();
    closed_.clear();
    for (size_t i = 0; i < count; ++i) {
      const auto [b, begin, end, match] = blocks[i];
      const Sequence& sequence = sequences_[b];
      if (begin == 0) {
        open_ = OpenGroup{window_};
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

  void write_mean(const Group& group) {
    kernels_.mean(sequences_[group.sequence].rows, group.begin, group.end, out_.values + group.row * out_.row_bytes);
  }

  const Kernels& kernels_;
  const MatchRule match_;
  const int window_;
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
