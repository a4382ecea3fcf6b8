// Between tensors and tiles: activations made ready, rows found, work shared among threads.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <optional>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace llamaseek {

using at::Tensor;

const Kernels& kernels();

inline bool is_float(const Tensor& x) { return x.scalar_type() == at::kFloat; }

inline float load(const void* from, bool wide, int64_t at) {
  if (wide) return static_cast<const float*>(from)[at];
  return static_cast<float>(static_cast<const at::BFloat16*>(from)[at]);
}

inline void store(void* to, bool wide, int64_t at, float value) {
  if (wide) {
    static_cast<float*>(to)[at] = value;
  } else {
    static_cast<at::BFloat16*>(to)[at] = value;
  }
}

inline const uint8_t* row_of(const Tensor& x, int64_t row) {
  return static_cast<const uint8_t*>(x.const_data_ptr()) + row * x.stride(0) * x.element_size();
}

constexpr int64_t kAlone = 256 << 10;  // bytes that one thread reads sooner than others wake up
constexpr int64_t kAloneInTeam = 32 << 10;  // and sooner than threads that wait for it begin

// Calls work(begin, end) on pieces of [0, count), which read `bytes` in all; a thread that is done
// takes the next one.
template <class Work>
void share(int64_t count, int64_t piece, int64_t bytes, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto take = [&] {
    for (int64_t at; (at = next.fetch_add(piece)) < count;) {
      work(at, std::min(at + piece, count));
    }
  };
  Team* team = Team::current();
  if (bytes < (team ? kAloneInTeam : kAlone) || count <= piece) return take();
  if (team) return team->run(take);
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), (count + piece - 1) / piece);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { take(); });
}

// Up to kTokens rows of x (M, K), in the forms that tiles for weights of `bits` bits read.
class Prepared {
 public:
  struct Norm {
    const void* weight;
    bool is_float;
    float eps;
  };

  Prepared(int count, int64_t width, int bits);
  // Fills token m from its row.
  void fill(int m, const void* row, bool row_is_float, const Norm& norm);
  Tokens tokens{};

 private:
  int bits_;
  c10::DataPtr memory_;
};

Prepared::Norm norm_of(const std::optional<Tensor>& weight, double eps);

// Rows of activations (M, K), `stride` bytes apart, and how they are normalized first.
struct Input {
  const uint8_t* data;
  bool wide;
  int64_t count, width, stride;
  Prepared::Norm norm;

  Input(const Tensor& x, const Prepared::Norm& norm);
};

// A matrix (N, K): plain bf16 or float32, or packed with scales.
struct Matrix {
  const uint8_t* weight;
  const uint16_t* scale;
  int64_t rows, width, stride, scales, group;
  int bits;
  Tile tile;

  Matrix(const Tensor& weight, const std::optional<Tensor>& scale, int64_t width, int64_t bits);
  Matrix part(int64_t first, int64_t count) const;
  int64_t bytes() const { return rows * stride; }
  int64_t place(int64_t n) const { return n; }  // of row n's product among the outputs
  Prepared blank(int count) const { return Prepared(count, width, bits); }
  // found[(n - first) * kTokens + m] = row n times token m, for rows `first` to `last`.
  void times(int64_t first, int64_t last, const Tokens& tokens, float* found) const;
};

// Of weights (N_i, K) and, where they are packed, their scales.
std::vector<Matrix> matrices(at::TensorList weights, at::TensorList scales, int64_t width,
                             int64_t bits);
// x (M, K) times a plain weight (N, K) → (M, N) in float32.
Tensor float_products(const Tensor& x, const Tensor& weight);

}  // namespace llamaseek
