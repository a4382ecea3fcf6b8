// Products of many tokens, by panels of unpacked rows. A layout M has rows, width and fill().
//
// A token's sums are made in the same order whatever tokens come with it.
#pragma once
#include <algorithm>
#include <vector>

#include "panels.h"
#include "products.h"

namespace llamaseek {

const PanelKernels& panel_kernels();

constexpr int64_t kLong = 96;  // tiles whose sums a core's cache holds

// All rows of activations, normalized and rounded, by tiles.
class Tiles {
 public:
  explicit Tiles(const Input& x);
  const TileGroup* tile(int64_t t) const { return data_ + t * groups_; }
  int64_t count() const { return count_; }

 private:
  int64_t count_, groups_;
  TileGroup* data_;
  c10::DataPtr memory_;
};

// Outputs `first` … of a matrix for some tiles → sums (tiles, kTile, kPanel).
template <class M>
void panel_sums(const M& matrix, int64_t first, const Tiles& x, int64_t begin, int64_t end,
                std::vector<float>& sums) {
  const PanelTimes times = matrix.lows() ? panel_kernels().times_low : panel_kernels().times;
  sums.assign((end - begin) * kTile * kPanel, 0.0f);
  Panel panel;
  for (int64_t k = 0; k < matrix.width; k += kDepth) {
    const int count = int(std::min<int64_t>(kDepth, matrix.width - k));
    matrix.fill(first, k, count, panel);
    for (int64_t t = begin; t < end; t++) {
      times(panel, count / kGroup, x.tile(t) + k / kGroup,
            sums.data() + (t - begin) * kTile * kPanel);
    }
  }
}

// As `product`, for any number of tokens.
template <class M>
void product_of_many(const std::vector<M>& all, const Input& input, const Target& to, bool gate) {
  struct Unit {
    const M* matrix;
    int64_t first, at;  // outputs of the matrix, and where they go
  };
  std::vector<Unit> units;
  int64_t offset = 0;
  for (size_t i = 0; i < (gate ? 1 : all.size()); offset += all[i++].rows) {
    for (int64_t n = 0; n < all[i].rows; n += kPanel) units.push_back({&all[i], n, offset + n});
  }
  const Tiles x(input);
  const int64_t count = int64_t(units.size()), wanted = 2 * at::get_num_threads();
  const int64_t parts = std::max((x.count() + kLong - 1) / kLong,
                                 std::min((wanted + count - 1) / count, (x.count() + 7) / 8));
  share(count * parts, 1, input.count * input.width * count, [&](int64_t first, int64_t last) {
    std::vector<float> sums, gates;
    for (int64_t at = first; at < last; at++) {
      const Unit& unit = units[at / parts];
      const int64_t begin = x.count() * (at % parts) / parts;
      const int64_t end = x.count() * (at % parts + 1) / parts;
      panel_sums(*unit.matrix, unit.first, x, begin, end, gate ? gates : sums);
      if (gate) panel_sums(all[1], unit.first, x, begin, end, sums);
      const int width = int(std::min<int64_t>(kPanel, unit.matrix->rows - unit.first));
      for (int64_t m = begin * kTile; m < std::min(end * kTile, input.count); m++) {
        const int64_t row = (m - begin * kTile) * kPanel;
        to.finish(m, unit.at, width, sums.data() + row, gate ? gates.data() + row : nullptr);
      }
    }
  });
}

}  // namespace llamaseek
