// Attention of a few queries over the paged cache; tensors are those of llamaseek/kernels/ops.py.
#pragma once
#include <vector>

#include "driver.h"

namespace llamaseek {

// How the queries of a step share their keys among threads, which is alike for all layers.
class Attention {
 public:
  Attention(const Tensor& tables, const Tensor& lengths, int64_t size, int64_t heads,
            int64_t groups);
  ~Attention();
  // q (M, H, W) over keys (G, S, W) and values (G, S, V) → out (M, H, V).
  void operator()(const Tensor& q, const Tensor& keys, const Tensor& values, double scale,
                  Tensor& out) const;

 private:
  struct Place;
  struct Task;
  int64_t together(int64_t n, int64_t end) const;
  void point(Stretch& s, const Place& place, int64_t first, const Tensor& keys,
             const Tensor& values) const;
  void merge(const float* parts, int64_t place, int r, int64_t wide, Tensor& out) const;

  int64_t size_, blocks_;
  const int64_t *tables_, *lengths_;
  int64_t groups_, shared_, seen_ = 0, most_ = 0;
  std::vector<Place> places_;
  std::vector<Task> tasks_;
  std::vector<int64_t> starts_{0};  // tasks of each place
};

// As the operator `rotate_store`, with the queries put into q (M, H, W); qkv is contiguous.
void rotate_store_into(const Tensor& qkv, const Tensor& cos, const Tensor& sin,
                       const Tensor& slots, const Tensor& keys, const Tensor& values, Tensor& q);

}  // namespace llamaseek
