// Attention of a few queries over the paged cache, and what stands before it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "ops.h"

namespace llamaseek {
// Queries that share keys: tokens in a row of one sequence, and heads of one group from `head` on.
struct Attention::Place {
  int64_t query, queries, group, head, heads;
  int64_t rows() const { return queries * heads; }
  // The head, of all tokens', that row r is.
  int64_t row(int64_t r, int64_t groups, int64_t shared) const {
    return ((query + r / heads) * groups + group) * shared + head + r % heads;
  }
};

// A place's queries and one stretch of keys; the outcome is kept apart until merged.
struct Attention::Task {
  int64_t place, first;
};

Attention::Attention(const Tensor& tables, const Tensor& lengths, int64_t size, int64_t heads,
                     int64_t groups)
    : size_(size),
      blocks_(tables.size(1)),
      tables_(tables.const_data_ptr<int64_t>()),
      lengths_(lengths.const_data_ptr<int64_t>()),
      groups_(groups),
      shared_(heads / groups) {
  for (int64_t n = 0, count; n < tables.size(0); n += count) {
    count = together(n, tables.size(0));
    const int64_t longest = lengths_[n + count - 1];
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t head = 0; head < shared_; head += kTokens) {
        places_.push_back({n, count, g, head, std::min<int64_t>(shared_ - head, kTokens)});
        most_ = std::max(most_, places_.back().rows());
        for (int64_t first = 0; first < longest; first += kKeys) {
          tasks_.push_back({int64_t(places_.size()) - 1, first});
        }
        seen_ += longest;
        starts_.push_back(int64_t(tasks_.size()));
      }
    }
  }
}

Attention::~Attention() = default;

// How many tokens from n on follow each other in one sequence; with their heads up to kTokens rows.
int64_t Attention::together(int64_t n, int64_t end) const {
  const int64_t most = std::max<int64_t>(kTokens / shared_, 1);
  int64_t count = 1;
  for (; count < most && n + count < end; count++) {
    const int64_t length = lengths_[n + count], *table = tables_ + (n + count) * blocks_;
    const int64_t used = (length + size_ - 1) / size_;
    if (length != lengths_[n] + count || !std::equal(table, table + used, tables_ + n * blocks_)) {
      break;
    }
  }
  return count;
}

void Attention::operator()(const Tensor& q, const Tensor& keys, const Tensor& values,
                           double scale, Tensor& out) const {
  const int64_t width = q.size(2), wide = values.size(2), one = most_ * (wide + 2);
  const int64_t held = int64_t(tasks_.size()) * one * sizeof(float);
  const c10::DataPtr partial = c10::GetCPUAllocator()->allocate(held);
  auto* parts = static_cast<float*>(partial.get());
  const bool floats = is_float(q);
  const int64_t bytes = seen_ * (width + wide) * keys.element_size();
  share(int64_t(tasks_.size()), 1, bytes, [&](int64_t begin, int64_t end) {
    Stretch s{};
    s.width = width, s.values = wide, s.scale = float(scale);
    s.bytes = keys.is_alias_of(values) ? 0 : wide * values.element_size();
    for (int64_t t = begin; t < end; t++) {
      const int64_t first = tasks_[t].first;
      const Place& place = places_[tasks_[t].place];
      const int64_t longest = lengths_[place.query + place.queries - 1];
      s.heads = int(place.rows());
      s.count = int(std::min<int64_t>(longest - first, kKeys));
      Prepared ready(s.heads, width, 16);
      for (int r = 0; r < s.heads; r++) {
        const int64_t row = place.row(r, groups_, shared_);
        ready.fill(r, row_of(q, 0) + row * width * q.element_size(), floats, {});
        const int64_t length = lengths_[place.query + r / place.heads];
        s.seen[r] = int(std::clamp<int64_t>(length - first, 0, s.count));
      }
      point(s, place, first, keys, values);
      float* to = parts + t * one;
      const Attend run = floats ? kernels().attend_float : kernels().attend_bf16;
      run(s, ready.tokens, to, to + most_, to + 2 * most_);
    }
  });
  share(int64_t(places_.size()), 4, held, [&](int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; place++) {
      for (int r = 0; r < places_[place].rows(); r++) merge(parts, place, r, wide, out);
    }
  });
}

void Attention::point(Stretch& s, const Place& place, int64_t first, const Tensor& keys,
                      const Tensor& values) const {
  const int64_t bytes = keys.element_size();
  const auto* k = static_cast<const uint8_t*>(keys.const_data_ptr()) +
                  place.group * keys.stride(0) * bytes;
  const auto* v = static_cast<const uint8_t*>(values.const_data_ptr()) +
                  place.group * values.stride(0) * bytes;
  for (int i = 0; i < s.count; i++) {
    const int64_t key = first + i;
    const int64_t slot = tables_[place.query * blocks_ + key / size_] * size_ + key % size_;
    s.keys[i] = k + slot * keys.stride(1) * bytes;
    s.items[i] = v + slot * values.stride(1) * bytes;
  }
}

void Attention::merge(const float* parts, int64_t place, int r, int64_t wide, Tensor& out) const {
  const int64_t one = most_ * (wide + 2), row = places_[place].row(r, groups_, shared_);
  float top = -INFINITY, total = 0;
  for (int64_t t = starts_[place]; t < starts_[place + 1]; t++) {
    top = std::max(top, parts[t * one + r]);
  }
  std::vector<float> sum(wide, 0.0f);
  for (int64_t t = starts_[place]; t < starts_[place + 1]; t++) {
    const float* part = parts + t * one;
    const float by = std::exp(part[r] - top);
    total += by * part[most_ + r];
    const float* from = part + 2 * most_ + r * wide;
    for (int64_t v = 0; v < wide; v++) sum[v] += by * from[v];
  }
  for (int64_t v = 0; v < wide; v++) {
    store(out.data_ptr(), is_float(out), row * wide + v, sum[v] / total);
  }
}

Tensor attend(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& tables,
              const Tensor& lengths, int64_t size, double scale) {
  const Attention attention(tables, lengths, size, q.size(1), keys.size(0));
  Tensor out = at::empty({q.size(0), q.size(1), values.size(2)}, q.options());
  attention(q.contiguous(), keys, values, scale, out);
  return out;
}

namespace {

// x and what it turns into, both `width` numbers of one head; cos and sin half as many, in float32.
template <class Number>
void turn_as(const void* x, void* out, const float* cos, const float* sin, int64_t width,
             bool halves) {
  const Number* from = static_cast<const Number*>(x);
  Number* to = static_cast<Number*>(out);
  const int64_t step = halves ? 1 : 2, apart = halves ? width / 2 : 1;
  for (int64_t i = 0; i < width / 2; i++) {
    const float first = from[step * i], second = from[step * i + apart];
    to[step * i] = first * cos[i] - second * sin[i];
    to[step * i + apart] = second * cos[i] + first * sin[i];
  }
}

void turn(const void* x, void* out, bool wide, const void* cos, const void* sin, int64_t width,
          bool halves) {
  const auto as = wide ? turn_as<float> : turn_as<at::BFloat16>;
  as(x, out, static_cast<const float*>(cos), static_cast<const float*>(sin), width, halves);
}

}  // namespace

void rotate_store_into(const Tensor& qkv, const Tensor& cos, const Tensor& sin,
                       const Tensor& slots, const Tensor& keys, const Tensor& values, Tensor& q) {
  const int64_t count = qkv.size(0), groups = keys.size(0), width = keys.size(2);
  const int64_t heads = q.size(1), bytes = qkv.element_size();
  TORCH_CHECK(is_float(cos) && is_float(sin), "rotate_store: angles are in float32");
  const bool wide = is_float(qkv);
  const int64_t* to = slots.const_data_ptr<int64_t>();
  auto *k = static_cast<uint8_t*>(keys.data_ptr()), *v = static_cast<uint8_t*>(values.data_ptr());
  auto* out = static_cast<uint8_t*>(q.data_ptr());
  for (int64_t n = 0; n < count; n++) {
    const uint8_t *x = row_of(qkv, n), *c = row_of(cos, n), *s = row_of(sin, n);
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
}

Tensor rotate_store(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& slots,
                    Tensor keys, Tensor values) {
  const int64_t groups = keys.size(0), width = keys.size(2);
  Tensor q = at::empty({qkv.size(0), qkv.size(1) / width - 2 * groups, width}, qkv.options());
  rotate_store_into(qkv.contiguous(), cos, sin, slots, keys, values, q);
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
