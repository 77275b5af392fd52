// The two factors of a product in any form: rows on the left, a matrix in panels of columns on the right.
#pragma once
#include "gemm-inl.h"
#include "narrow-inl.h"
#include "pairs-inl.h"
#include "quads-inl.h"
#include "tiles-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Rows of the left factor: as numbers of type A, and in bf16 parts or in int8 where the right factor is.
template <class A>
struct RowsView {
  const A* a = nullptr;
  int64_t row = 0, step = 1;  // from one row to the next, from one column to the next
  const Bits* split = nullptr;
  int64_t split_row = 0, part = 0;
  RowsView from(int64_t r) const { return {a + r * row, row, step, split + r * split_row, split_row, part}; }
  void take(const SplitRows& rows, int64_t first) {
    split = rows.at(first), split_row = rows.row(), part = rows.part();
  }
  void take(const QuantizedRows& rows) { split = rows.at(0), split_row = rows.row(); }
};

template <class A>
class PackedMatrix {
 public:
  using V = Vec<A>;
  static constexpr int W = V::W;

  // Room for `columns` (whole vectors) of K rows; parts: 0 for numbers of type A, else of bf16.
  void allocate(int64_t columns, int64_t K, int parts) {
    layout_ = parts ? Layout::pairs : Layout::panels, parts_ = parts, rows_ = parts ? padded_k(K) * parts : K;
    far_ = columns * rows_ * int64_t(parts ? sizeof(Bits) : sizeof(A)) > kNearBytes;
    if (parts) bits_.allocate(columns * rows_);
    else numbers_.allocate(columns * rows_);
  }
  void allocate_quads(int64_t columns, int64_t K) {
    layout_ = Layout::quads, rows_ = padded_quads(K), bits_.allocate(columns * rows_), scales_.allocate(columns);
  }
  void allocate_narrow(int64_t columns, int64_t K, Storage storage) {
    layout_ = Layout::narrow, storage_ = storage, rows_ = (K + 1) / 2 * 2, bits_.allocate(columns * rows_);
  }
  int parts() const { return parts_; }

  // Vector v of the panel of NB vectors at column c: from n rows of K numbers, `row` apart, that become its columns.
  void pack_columns(const Stored<A>& from, int64_t first, int64_t row, int n, int64_t K, int64_t c, int64_t NB,
                    int64_t v, Flag& overflow) {
    if (parts_) pack_pair_columns(from, first, row, n, K, bits(c, 0, NB), NB, v, parts_, overflow);
    else pack_number_columns(from, first, row, n, K, numbers(c, 0, NB) + v * W, NB * W);
  }
  // Rows k.. of that panel (in pairs: whole blocks): from K rows of n columns.
  template <int NB>
  void pack_rows(const Stored<A>& from, int64_t first, int64_t row, int64_t n, int64_t k, int64_t K, int64_t c,
                 Flag& overflow) {
    if (!parts_) return pack_number_rows<NB>(from, first, row, n, K, numbers(c, k, NB));
    for (int v = 0; v < NB; ++v)
      pack_pair_rows(from, first + v * W, row, int(std::min<int64_t>(n - v * W, W)), K, bits(c, k, NB), NB, v, parts_,
                     overflow);
  }
  // The same from n rows of int8 and their scales.
  void pack_quads(const int8_t* from, const float* scales, int n, int64_t K, int64_t c, int64_t NB, int64_t v) {
    pack_quad_columns(from, n, K, bits(c, 0, NB), NB, v);
    for (int i = 0; i < W; ++i) scales_.data()[c + v * W + i] = i < n ? scales[i] : 0.0f;
  }
  // The same from n rows of 16 bits that stay as they are.
  void pack_narrow(const Bits* from, int n, int64_t K, int64_t c, int64_t NB, int64_t v) {
    pack_narrow_columns(from, storage_, n, K, bits(c, 0, NB), NB, v);
  }
  // Rows k and k + 1 (k even) of n columns in panels as `for_columns` makes them.
  void put_rows(const A* even, const A* odd, int64_t n, int64_t k, Flag& overflow) {
    for_columns<A>(n, [&](auto vectors, int64_t c) {
      constexpr int NB = decltype(vectors)::value;
      for (int v = 0; v < NB && c + v * W < n; ++v) {
        const int lanes = int(std::min<int64_t>(W, n - c - v * W));
        const V first = load_first(even + c + v * W, lanes), second = load_first(odd + c + v * W, lanes);
        if (parts_) {
          put_pair(first, second, k, bits(c, 0, NB), NB, v, parts_, overflow);
        } else {
          first.store(numbers(c, k, NB) + v * W);
          second.store(numbers(c, k + 1, NB) + v * W);
        }
      }
    });
  }
  // sums [rows][sums_row] = or += the left factor's K columns times rows k..k+K of the panel at column c; the panel at
  // column `next` comes after it.
  template <int NB>
  void multiply(Tiles& tiles, Engine engine, int64_t rows, const RowsView<A>& left, int64_t k, int64_t K, int64_t c,
                int64_t next, A* sums, int64_t sums_row, Sum sum) const {
    auto in = [&](auto panel, const A* ahead) __attribute__((always_inline)) {
      product<NB>(rows, left.a, left.row, left.step, panel, K, sums, sums_row, sum != Sum::put, ahead);
    };
    if (__builtin_expect(layout_ == Layout::panels, 1))
      return in(Numbers<A>{numbers(c, k, NB), NB * W}, far_ ? numbers(next, k, NB) : nullptr);
    if constexpr (sizeof(A) == 4) {
#ifdef PAIRS
      if (layout_ == Layout::quads)
        return multiply_quads<NB>(
            tiles, engine, {left.split, left.split_row, 0, padded_quads(K), bits(c, 0, NB), NB, sums, sums_row, sum},
            rows, scales_.data() + c);
      if (layout_ == Layout::pairs)
        return multiply_pairs<NB>(tiles, engine, parts_,
                                  {left.split, left.split_row, left.part, padded_k(K), bits(c, k, NB), NB, sums,
                                   sums_row, sum, far_ ? bits(next, k, NB) : nullptr},
                                  rows);
#endif
      if (storage_ == Storage::bfloat16) in(NarrowPanel<Storage::bfloat16>{bits(c, 0, NB)}, nullptr);
      else in(NarrowPanel<Storage::float16>{bits(c, 0, NB)}, nullptr);
    }
  }
  // The same for n columns from `first` on, in panels as `for_columns` makes them; rows of the sums are whole vectors.
  // down: the columns before them come next.
  void multiply_all(Tiles& tiles, Engine engine, int64_t rows, const RowsView<A>& left, int64_t k, int64_t K,
                    int64_t first, int64_t n, A* sums, int64_t sums_row, Sum sum, bool down = false) const {
    for_columns<A>(n, [&](auto vectors, int64_t c) {
      constexpr int NB = decltype(vectors)::value;
      multiply<NB>(tiles, engine, rows, left, k, K, first + c, first + c + (down ? -NB * W : NB * W), sums + c,
                   sums_row, sum);
    });
  }

 private:
  A* numbers(int64_t c, int64_t k, int64_t NB) const { return numbers_.data() + c * rows_ + k * NB * W; }
  Bits* bits(int64_t c, int64_t k, int64_t NB) const { return bits_.data() + c * rows_ + k * parts_ * NB * W; }
  Layout layout_ = Layout::panels;
  Storage storage_ = Storage::float32;  // of what stays in 16 bits
  int64_t rows_ = 0;                    // numbers in a column
  int parts_ = 0;
  bool far_ = false;  // does not stay in the second-level cache from one use to the next
  Scratch<A> numbers_;
  Scratch<Bits> bits_;
  Scratch<float> scales_;  // of the columns, where they are int8
};

// Some columns of a matrix as the rows of a left factor, and their sums.
template <class A>
class Columns {
 public:
  void allocate(int64_t rows, int parts) {
    parts_ = parts;
    if (parts) split_.allocate(most(), rows, parts);
    else numbers_.allocate(rows * most());
  }
  // How many are taken together: as numbers, few enough to read one stretch of memory; in pairs, enough to use what the
  // right factor brings into the cache.
  int64_t most() const { return parts_ ? MOST : 48; }

  // n columns of a matrix whose rows are `row` apart; n is a multiple of a vector, or what pads them can be read.
  RowsView<A> take(const A* from, int64_t row, int64_t rows, int64_t n, Flag& overflow) {
    std::fill_n(total_, MOST, A(0));
    for (int64_t first = 0; first < rows; first += 64) {
      A part[MOST] = {};  // long sums are sums of sums
      for (int64_t r = first; r < std::min(rows, first + 64); ++r) {
        for (int64_t m = 0; m < n; ++m) part[m] += from[r * row + m];
        if (!parts_) std::copy_n(from + r * row, n, numbers_.data() + r * most());
      }
      for (int64_t m = 0; m < n; ++m) total_[m] += part[m];
    }
    RowsView<A> left;
    if (!parts_) {
      left.a = numbers_.data(), left.row = 1, left.step = most();
      return left;
    }
    constexpr int W = Vec<A>::W;
    for (int64_t r = 0; r < padded_k(rows); r += W)
      for (int64_t m = 0; m < n; m += W) {
        Vec<A> block[W];
        for (int i = 0; i < W; ++i) block[i] = r + i < rows ? load(from + (r + i) * row + m) : Vec<A>(A(0));
        transpose(block);
        for (int i = 0; i < W; ++i) split_.put(block[i], m + i, r, overflow);
      }
    left.take(split_, 0);
    return left;
  }
  A total(int64_t column) const { return total_[column]; }

 private:
  static constexpr int64_t MOST = 192;
  int parts_ = 0;
  Scratch<A> numbers_;  // [row][column]
  SplitRows split_;
  A total_[MOST];
};

// A gradient of a weight while it is summed up: in the result itself if its rows are whole vectors of A, else in padded
// rows that are copied there in the end.
template <class A>
class GradientSum {
 public:
  void open(const Stored<A>& result, int64_t rows, int64_t n) {
    result_ = result, rows_ = rows, n_ = n, padded_ = padded<A>(n);
    if (!in_place()) own_.allocate(rows * padded_);
  }
  // rows first..first+m = (at the start) or += the left factor, of m rows and K columns, times the right one.
  void add(bool start, Tiles& tiles, Engine engine, int64_t first, int64_t m, const RowsView<A>& left,
           const PackedMatrix<A>& right, int64_t K) {
    A* to = (in_place() ? result_.at(0) : own_.data()) + first * padded_;
    right.multiply_all(tiles, engine, m, left, 0, K, 0, n_, to, padded_, start ? Sum::put : Sum::add_long);
  }
  void close() const {
    for (int64_t i = 0; i < rows_ && !in_place(); ++i) result_.put_row(own_.data() + i * padded_, i * n_, n_);
  }

 private:
  bool in_place() const { return result_.direct() && n_ == padded_; }
  Stored<A> result_{nullptr, Storage::float32};
  int64_t rows_ = 0, n_ = 0, padded_ = 0;
  Scratch<A> own_;
};
}  // namespace
}  // namespace RNNKERNELS_SET
