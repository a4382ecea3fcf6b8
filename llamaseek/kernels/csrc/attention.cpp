// Attention of a few queries over the paged cache, and what stands before it.
#include <cmath>
#include <cstring>

#include "driver.h"
#include "ops.h"

namespace llamaseek {
namespace {

// Where a query's keys stand: its blocks of `size` slots in each head's stretch of a pool.
struct Pages {
  const uint8_t *keys, *values;
  int64_t key_head, value_head, key_slot, value_slot;  // bytes from one to the next
  int64_t size, blocks;
  const int64_t *tables, *lengths;

  int64_t slot(int64_t query, int64_t key) const {
    return tables[query * blocks + key / size] * size + key % size;
  }
};

Pages pages(const Tensor& keys, const Tensor& values, const Tensor& tables, const Tensor& lengths,
            int64_t size) {
  const int64_t bytes = keys.element_size();
  return {static_cast<const uint8_t*>(keys.const_data_ptr()),
          static_cast<const uint8_t*>(values.const_data_ptr()),
          keys.stride(0) * bytes,
          values.stride(0) * bytes,
          keys.stride(1) * bytes,
          values.stride(1) * bytes,
          size,
          tables.size(1),
          tables.const_data_ptr<int64_t>(),
          lengths.const_data_ptr<int64_t>()};
}

// One query, the heads of one group, one stretch of keys; its outcome is kept apart until merged.
struct Task {
  int64_t query, group, head, first;
};

}  // namespace

Tensor attend(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& tables,
              const Tensor& lengths, int64_t size, double scale) {
  const int64_t count = q.size(0), heads = q.size(1), width = q.size(2), wide = values.size(2);
  const int64_t groups = keys.size(0), shared = heads / groups;
  const Tensor row = q.contiguous();
  const Pages at = pages(keys, values, tables, lengths, size);
  const bool floats = is_float(q);
  std::vector<Task> tasks;
  std::vector<int64_t> starts{0};  // tasks of each (query, group, first head)
  int64_t seen = 0;
  for (int64_t n = 0; n < count; n++) {
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t head = 0; head < shared; head += kTokens) {
        for (int64_t first = 0; first < at.lengths[n]; first += kKeys) {
          tasks.push_back({n, g, head, first});
        }
        seen += at.lengths[n];
        starts.push_back(int64_t(tasks.size()));
      }
    }
  }
  const int64_t most = std::min<int64_t>(shared, kTokens), one = most * (wide + 2);
  Tensor partial = at::empty({int64_t(tasks.size()), one}, at::kFloat);
  float* parts = partial.data_ptr<float>();
  const int64_t bytes = seen * (width + wide) * keys.element_size();
  share(int64_t(tasks.size()), 1, bytes, [&](int64_t begin, int64_t end) {
    Stretch s{};
    for (int64_t t = begin; t < end; t++) {
      const Task& task = tasks[t];
      const int used = int(std::min<int64_t>(shared - task.head, kTokens));
      Prepared ready(used, width, 16);
      for (int h = 0; h < used; h++) {
        const int64_t head = (task.query * groups + task.group) * shared + task.head + h;
        ready.fill(h, row_of(row, 0) + head * width * row.element_size(), floats, {});
      }
      s.heads = used;
      s.count = int(std::min<int64_t>(at.lengths[task.query] - task.first, kKeys));
      s.width = width, s.values = wide, s.scale = float(scale);
      for (int k = 0; k < s.count; k++) {
        const int64_t slot = at.slot(task.query, task.first + k);
        s.keys[k] = at.keys + task.group * at.key_head + slot * at.key_slot;
        s.items[k] = at.values + task.group * at.value_head + slot * at.value_slot;
      }
      float* to = parts + t * one;
      const Attend run = floats ? kernels().attend_float : kernels().attend_bf16;
      run(s, ready.tokens, to, to + most, to + 2 * most);
    }
  });
  Tensor out = at::empty({count, heads, wide}, q.options());
  const int64_t pieces = (shared + kTokens - 1) / kTokens;
  share(int64_t(starts.size()) - 1, 4, partial.nbytes(), [&](int64_t begin, int64_t end) {
    std::vector<float> sum(wide);
    for (int64_t place = begin; place < end; place++) {
      const int64_t head = place / pieces * shared + place % pieces * kTokens;
      const int used = int(std::min<int64_t>(shared - place % pieces * kTokens, kTokens));
      for (int h = 0; h < used; h++) {
        float top = -INFINITY, total = 0;
        for (int64_t t = starts[place]; t < starts[place + 1]; t++) {
          top = std::max(top, parts[t * one + h]);
        }
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int64_t t = starts[place]; t < starts[place + 1]; t++) {
          const float* part = parts + t * one;
          const float by = std::exp(part[h] - top);
          total += by * part[most + h];
          const float* from = part + 2 * most + h * wide;
          for (int64_t v = 0; v < wide; v++) sum[v] += by * from[v];
        }
        for (int64_t v = 0; v < wide; v++) {
          store(out.data_ptr(), floats, (head + h) * wide + v, sum[v] / total);
        }
      }
    }
  });
  return out;
}

namespace {

// x and what it turns into, both `width` numbers of one head; cos and sin half as many, in float32.
void turn(const void* x, void* out, bool wide, const void* cos, const void* sin, int64_t width,
          bool halves) {
  for (int64_t i = 0; i < width / 2; i++) {
    const int64_t a = halves ? i : 2 * i, b = halves ? i + width / 2 : 2 * i + 1;
    const float first = load(x, wide, a), second = load(x, wide, b);
    const float c = load(cos, true, i), s = load(sin, true, i);
    store(out, wide, a, first * c - second * s);
    store(out, wide, b, second * c + first * s);
  }
}

}  // namespace

Tensor rotate_store(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& slots,
                    Tensor keys, Tensor values) {
  const int64_t count = qkv.size(0), groups = keys.size(0), width = keys.size(2);
  const int64_t heads = qkv.size(1) / width - 2 * groups, bytes = qkv.element_size();
  TORCH_CHECK(is_float(cos) && is_float(sin), "rotate_store: angles are in float32");
  const bool wide = is_float(qkv);
  const Tensor row = qkv.contiguous();
  Tensor q = at::empty({count, heads, width}, qkv.options());
  const int64_t* to = slots.const_data_ptr<int64_t>();
  auto *k = static_cast<uint8_t*>(keys.data_ptr()), *v = static_cast<uint8_t*>(values.data_ptr());
  auto* out = static_cast<uint8_t*>(q.data_ptr());
  for (int64_t n = 0; n < count; n++) {
    const uint8_t *x = row_of(row, n), *c = row_of(cos, n), *s = row_of(sin, n);
    for (int64_t h = 0; h < heads; h++) {
      turn(x + h * width * bytes, out + (n * heads + h) * width * bytes, wide, c, s, width, true);
    }
    x += heads * width * bytes;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t slot = (g * keys.stride(0) + to[n] * width) * bytes;
      turn(x + g * width * bytes, k + slot, wide, c, s, width, true);
      std::memcpy(v + slot, x + (groups + g) * width * bytes, width * bytes);
    }
  }
  return q;
}

Tensor rotate_store_latent(const Tensor& q, const Tensor& absorbed, const Tensor& latent,
                           const Tensor& norm, double eps, const Tensor& cos, const Tensor& sin,
                           const Tensor& slots, Tensor kept) {
  const int64_t count = q.size(0), heads = q.size(1), rank = absorbed.size(2);
  const int64_t width = kept.size(2), rope = width - rank, bytes = q.element_size();
  TORCH_CHECK(is_float(cos) && is_float(sin), "rotate_store_latent: angles are in float32");
  const bool wide = is_float(q);
  Tensor out = at::empty({count, heads, width}, q.options());
  const Prepared::Norm by = norm_of(norm, eps);
  const int64_t* to = slots.const_data_ptr<int64_t>();
  auto* pool = static_cast<uint8_t*>(kept.data_ptr());
  auto* queries = static_cast<uint8_t*>(out.data_ptr());
  std::vector<float> scaled(rank);
  for (int64_t n = 0; n < count; n++) {
    const uint8_t *c = row_of(cos, n), *s = row_of(sin, n), *x = row_of(latent, n);
    uint8_t* slot = pool + to[n] * width * bytes;
    kernels().normalize(x, wide, by.weight, by.is_float, by.eps, rank, scaled.data());
    for (int64_t i = 0; i < rank; i++) store(slot, wide, i, scaled[i]);
    turn(x + rank * bytes, slot + rank * bytes, wide, c, s, rope, false);
    for (int64_t h = 0; h < heads; h++) {
      uint8_t* query = queries + (n * heads + h) * width * bytes;
      std::memcpy(query, row_of(absorbed, n) + h * rank * bytes, rank * bytes);
      const uint8_t* turned = row_of(q, n) + (h * q.stride(1) + q.size(2) - rope) * bytes;
      turn(turned, query + rank * bytes, wide, c, s, rope, false);
    }
  }
  return out;
}

}  // namespace llamaseek
