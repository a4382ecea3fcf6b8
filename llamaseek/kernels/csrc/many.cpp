#include "many.h"

#include "block_matrix.h"

namespace llamaseek {

const PanelKernels& panel_kernels() {
  return &kernels() == &avx512_kernels ? avx512_panels : avx2_panels;
}

Tiles::Tiles(const Input& x)
    : count_((x.count + kTile - 1) / kTile), groups_((x.width + kGroup - 1) / kGroup) {
  memory_ = c10::GetCPUAllocator()->allocate(count_ * groups_ * sizeof(TileGroup));
  data_ = static_cast<TileGroup*>(memory_.get());
  share(count_, 1, x.count * x.width * 16, [&](int64_t begin, int64_t end) {
    std::vector<float> plain(groups_ * kGroup);
    for (int64_t m = begin * kTile; m < end * kTile; m++) {
      if (m < x.count) {
        kernels().normalize(x.data + m * x.stride, x.wide, x.norm.weight, x.norm.is_float,
                            x.norm.eps, x.width, plain.data());
      } else {
        std::fill(plain.begin(), plain.end(), 0.0f);
      }
      TileGroup* to = data_ + m / kTile * groups_;
      for (int64_t group = 0; group < groups_; group++) {
        panel_kernels().encode(plain.data() + group * kGroup, int(m % kTile), to[group]);
      }
    }
  });
}

void Target::finish(int64_t m, int64_t n, int count, const float* sums, const float* gates) const {
  const int64_t size = wide ? 4 : 2, at = (m * width + n) * size;
  panel_kernels().finish(sums, gates, residual ? static_cast<const char*>(residual) + at : nullptr,
                         wide, count, static_cast<char*>(out) + at);
}

void BlockMatrix::fill(int64_t first, int64_t k, int count, Panel& to) const {
  alignas(64) int16_t codes[kPanel * kDepth];
  const int64_t from = k / kind->numbers * kind->bytes;
  const int64_t ahead = k + kDepth < width ? kDepth / kind->numbers * kind->bytes : 0;
  for (int n = 0; n < kPanel; n++) {
    const uint8_t* at = row(source(first + n)) + from;
    for (int64_t line = 0; line < ahead; line += 64) __builtin_prefetch(at + ahead + line);
    float scale[kGroups], low[kGroups];
    kind->unpack(at, count, codes + n * kDepth, scale, low);
    for (int group = 0; group < count / kGroup; group++) {
      to.scale[group][n] = scale[group];
      to.low[group][n] = low[group];
    }
  }
  panel_kernels().interleave(codes, to);
}

}  // namespace llamaseek
