// Products of numbers split into bf16 parts, x = x0 + x1 + x2: three parts hold all 24 bits of a float, and one is bf16
// arithmetic itself. The products of parts i and j with i + j < parts are summed in float; what that leaves out is
// 2^-26 of a product, so that six cheap products are one of full precision (Henry, Tang & Heinecke 2019, "Leveraging
// the bfloat16 artificial intelligence datatype for higher-precision computations").
//
// Packed in blocks of 32 along k. Left factor: rows of [part][K]. Right factor: panels of NB vectors of 16 columns,
// [k / 32][part][NB][16 pairs of k][16 columns][2], which both the matrix registers (AMX) and vdpbf16ps read.
// Infinity has no such parts, and where a product of two numbers is infinite, products of their parts are infinities of
// both signs, which add up to NaN. So numbers from 2^63 on are not taken: `overflow` says that one came, and the caller
// computes without parts.
#pragma once
#include "instructions-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Destination of a product: put where the sums go, added to the sums there, or added after it has been summed up by
// itself, which loses less to rounding.
enum class Sum { put, add, add_long };

using Bits = uint16_t;
constexpr int64_t kBlock = 32, kTile = 512;  // of k; numbers in a tile of a packed panel
inline int64_t padded_k(int64_t k) { return (k + kBlock - 1) / kBlock * kBlock; }

#ifdef PAIRS
INLINE __m256i narrowed(Vec<float> v) { return to_bf16((__m512)v.v); }
INLINE Vec<float> widened(__m256i bits) {
  return Vec<float>((Vec<float>::Data)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
INLINE bool overflows(Vec<float> v) {
  const __m512 magnitude = _mm512_abs_ps((__m512)v.v);
  return _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0x1p63f), _CMP_GE_OQ) != 0;
}

// Stores the parts of v, `part` numbers apart.
INLINE void store_parts(Vec<float> v, int parts, Bits* to, int64_t part) {
  const __m256i first = narrowed(v);
  _mm256_storeu_si256((__m256i*)to, first);
  if (parts == 1) return;
  const Vec<float> rest = v - widened(first);
  const __m256i second = narrowed(rest);
  _mm256_storeu_si256((__m256i*)(to + part), second);
  if (parts == 3) _mm256_storeu_si256((__m256i*)(to + 2 * part), narrowed(rest - widened(second)));
}
#endif

// The factors of a product: K numbers of the left rows, `part` apart for the parts; right panels with NB vectors.
struct PairProduct {
  const Bits* left;
  int64_t row, part, K;
  const Bits* right;
  int64_t NB;
  float* sums;
  int64_t sums_row;
  Sum sum;
  const Bits* ahead = nullptr;  // the panel that is read next, where it comes from afar: fetched meanwhile
};

// A left factor: rows of K numbers, split. Padding is zero.
class SplitRows {
 public:
  void allocate(int64_t rows, int64_t K, int parts) {
    K_ = padded_k(K), parts_ = parts;
    bits_.allocate(rows * row(), true);
  }
  explicit operator bool() const { return bits_.data() != nullptr; }
  // An odd number of cache lines, so that the rows of a tile lie in different sets of the cache.
  int64_t row() const { return (K_ * parts_ / kBlock | 1) * kBlock; }
  int64_t part() const { return K_; }
  Bits* at(int64_t r) const { return bits_.data() + r * row(); }
  // Rows r.. of another such factor, n of them, to rows `to`...
  void copy(const SplitRows& from, int64_t r, int64_t n, int64_t to) const {
    std::copy_n(from.at(r), n * row(), at(to));
  }
  template <class A>
  INLINE void put(Vec<A> v, int64_t r, int64_t j) const {
#ifdef PAIRS
    if constexpr (sizeof(A) == 4) store_parts(v, parts_, at(r) + j, K_);
#endif
  }
  template <class A>
  INLINE void put(Vec<A> v, int64_t r, int64_t j, Flag& overflow) const {
    put(v, r, j);
#ifdef PAIRS
    if constexpr (sizeof(A) == 4) overflow |= overflows(v);
#endif
  }
  template <class A>
  void put_row(const A* from, int64_t n, int64_t r, Flag& overflow) const {
    constexpr int W = Vec<A>::W;
    for (int64_t j = 0; j < n; j += W) put(load_first(from + j, int(std::min<int64_t>(W, n - j))), r, j, overflow);
  }

 private:
  Scratch<Bits> bits_;
  int64_t K_ = 0;
  int parts_ = 0;
};

// Vector v of NB of a right panel at k and k + 1, k even.
template <class A>
INLINE void put_pair(Vec<A> even, Vec<A> odd, int64_t k, Bits* panel, int64_t NB, int64_t v, int parts,
                     Flag& overflow) {
#ifdef PAIRS
  if constexpr (sizeof(A) == 4) {
    overflow |= overflows(even) || overflows(odd);
    for (int p = 0; p < parts; ++p) {
      const __m256i low = narrowed(even), high = narrowed(odd);
      Bits* to = panel + ((k / kBlock * parts + p) * NB + v) * kTile + k % kBlock * 16;
      const __m512i both =
          _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm512_storeu_si512(to, both);
      even = even - widened(low), odd = odd - widened(high);
    }
  }
#endif
}

// A panel's vector v from n rows of a matrix, K long and `row` apart, that become its columns.
template <class A>
void pack_pair_columns(const Stored<A>& from, int64_t first, int64_t row, int n, int64_t K, Bits* panel, int64_t NB,
                       int64_t v, int parts, Flag& overflow) {
  constexpr int W = Vec<A>::W;
  for (int64_t k = 0; k < padded_k(K); k += W) {
    const int width = int(std::clamp<int64_t>(K - k, 0, W));
    Vec<A> block[W];
    for (int i = 0; i < W; ++i) block[i] = i < n && width > 0 ? from.get(first + i * row + k, width) : Vec<A>(A(0));
    transpose(block);
    for (int i = 0; i < W; i += 2) put_pair(block[i], block[i + 1], k + i, panel, NB, v, parts, overflow);
  }
}

// A panel's vector v from n columns of a matrix with K rows, `row` apart.
template <class A>
void pack_pair_rows(const Stored<A>& from, int64_t first, int64_t row, int n, int64_t K, Bits* panel, int64_t NB,
                    int64_t v, int parts, Flag& overflow) {
  for (int64_t k = 0; k < padded_k(K); k += 2) {
    const Vec<A> zero(A(0)), even = k < K ? from.get(first + k * row, n) : zero,
                             odd = k + 1 < K ? from.get(first + (k + 1) * row, n) : zero;
    put_pair(even, odd, k, panel, NB, v, parts, overflow);
  }
}
}  // namespace
}  // namespace RNNKERNELS_SET
