// Which rows begin groups if their number is promised, from the links of a call: 8 bytes a row, torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace affinity_pool::cpu {

// k(t) of the rows of one sequence: kNoMatch where a group begins, 1 where a row joins the one before it.
class Selection {
 public:
  explicit Selection(Promise promise) : promise_(promise) {}

  void select(int64_t sequence, const double* links, int64_t length, uint8_t* k) {
    std::fill_n(k, length, uint8_t{1});
    for (int64_t begin = 0, end = 0; begin < length; begin = end) {
      end = begin + 1;
      while (end < length && !std::isnan(links[end])) ++end;
      k[begin] = kNoMatch;
      const int64_t groups = groups_of_run(end - begin, promise_.of(sequence), promise_.share);
      weakest_.clear();
      for (int64_t t = begin + 1; t < end; ++t) weakest_.push_back(t);
      const auto weaker = [links](int64_t a, int64_t b) {
        return links[a] < links[b] || (links[a] == links[b] && a < b);
      };
      const auto cut = weakest_.begin() + (groups - 1);
      std::nth_element(weakest_.begin(), cut, weakest_.end(), weaker);
      for (auto t = weakest_.begin(); t != cut; ++t) k[*t] = kNoMatch;
    }
  }

 private:
  const Promise promise_;
  std::vector<int64_t> weakest_;
};

}  // namespace affinity_pool::cpu
