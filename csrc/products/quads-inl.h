// Products of int8 weights, a scale for each row of theirs, with rows that become int8 on the way, a scale for each
// too: v = q * max|v| / 127. The sums are int32 and exact (Jacob et al. 2018, "Quantization and training of neural
// networks for efficient integer-arithmetic-only inference"; here the scales of the rows are found as they come).
//
// Packed like the pairs of pairs-inl.h, with four bytes where two bf16 are: blocks of 64 along k, right panels
// [k / 64][NB][16 quads of k][16 columns][4], for the matrix registers (tdpbsud) and for vpdpbusd. Both multiply
// unsigned by signed: a weight is taken plus 128, and 128 times the sum of the left row is subtracted from the result.
#pragma once
#include "tiles-inl.h"

namespace RNNKERNELS_SET {
namespace {
constexpr int64_t kQuadBlock = 2 * kBlock, kLongestQuads = 1 << 17;       // of k; longer sums could leave int32
inline int64_t padded_quads(int64_t K) { return padded_k((K + 1) / 2); }  // K numbers in whole blocks, counted as Bits

#ifdef PAIRS
INLINE __mmask64 first_bytes(int64_t n) { return n >= 64 ? ~__mmask64(0) : (__mmask64(1) << n) - 1; }
// Weights plus 128; those outside the mask are zero before.
INLINE __m512i load_weights(__mmask64 mask, const int8_t* from) {
  return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, from), _mm512_set1_epi8(-128));
}
#endif

// Left rows of K numbers in int8, padded with zeros. A row's divisor and 128 times its sum lie before it.
class QuantizedRows {
 public:
  struct Head {
    float scale;
    int32_t sum;
  };
  static const Head& head(const Bits* row) { return *reinterpret_cast<const Head*>(row - kBlock); }

  void allocate(int64_t rows, int64_t K) {
    K_ = K, row_ = ((padded_quads(K) / kBlock + 1) | 1) * kBlock;  // an odd number of cache lines, as in SplitRows
    bits_.allocate(rows * row_, true);
  }
  explicit operator bool() const { return bits_.data() != nullptr; }
  int64_t row() const { return row_; }
  Bits* at(int64_t r) const { return bits_.data() + r * row_ + kBlock; }

  // A row with NaN or infinity has the scale NaN, and one whose numbers are all below 1e-36 is zero.
  void put_row(const float* from, int64_t r) const {
#ifdef PAIRS
    auto get = [&](int64_t k) __attribute__((always_inline)) {
      return (__m512)load_first(from + k, int(std::min<int64_t>(16, K_ - k))).v;
    };
    __m512i most = _mm512_setzero_si512(), sum = most;  // as bits: NaN is above infinity, and that above all numbers
    for (int64_t k = 0; k < K_; k += 16)
      most = _mm512_max_epi32(most, _mm512_and_si512((__m512i)get(k), _mm512_set1_epi32(0x7fffffff)));
    const float largest = float_of_bits(uint32_t(_mm512_reduce_max_epi32(most)));
    const bool finite = largest <= std::numeric_limits<float>::max(), zero = largest < 1e-36f;
    const __m512 inverse = _mm512_set1_ps(finite && !zero ? 127.0f / largest : 0.0f);
    int8_t* to = reinterpret_cast<int8_t*>(at(r));
    for (int64_t k = 0; k < K_; k += 16) {
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(get(k), inverse));
      sum = _mm512_add_epi32(sum, q);
      _mm_store_si128((__m128i*)(to + k), _mm512_cvtsepi32_epi8(q));
    }
    const float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : largest / 127.0f;
    *reinterpret_cast<Head*>(at(r) - kBlock) = {scale, int32_t(128u * uint32_t(_mm512_reduce_add_epi32(sum)))};
#endif
  }

 private:
  Scratch<Bits> bits_;
  int64_t K_ = 0, row_ = 0;
};

// A panel's vector v from n rows of weights, K long, that become its columns.
inline void pack_quad_columns(const int8_t* from, int n, int64_t K, Bits* panel, int64_t NB, int64_t v) {
#ifdef PAIRS
  for (int64_t k = 0; k < K; k += kQuadBlock) {
    const __mmask64 mask = first_bytes(K - k);
    Vec<float> block[16];
    for (int i = 0; i < 16; ++i)
      block[i] = Vec<float>((Vec<float>::Data)load_weights(i < n ? mask : 0, from + (i < n ? i * K + k : 0)));
    transpose(block);
    Bits* to = panel + (k / kQuadBlock * NB + v) * kTile;
    for (int i = 0; i < 16; ++i) block[i].store(reinterpret_cast<float*>(to + i * kBlock));
  }
#endif
}

#ifdef PAIRS
// The product in panels: p.left are QuantizedRows, p.K counts Bits, and there is a scale for each column.
template <int NB>
void multiply_quads(Tiles& tiles, Engine engine, const PairProduct& p, int64_t rows, const float* scales) {
  multiply_pairs<NB, true>(tiles, engine, 1, p, rows);
  Vec<float> column[NB];
  for (int n = 0; n < NB; ++n) column[n] = load(scales + n * 16);
  for (int64_t m = 0; m < rows; ++m) {
    const QuantizedRows::Head& head = QuantizedRows::head(p.left + m * p.row);
    float* sums = p.sums + m * p.sums_row;
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) {
      const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + n * 16), _mm512_set1_epi32(head.sum));
      (Vec<float>((Vec<float>::Data)_mm512_cvtepi32_ps(sum)) * column[n] * Vec<float>(head.scale)).store(sums + n * 16);
    }
  }
}
#endif

// sums[m][j] = row m of some QuantizedRows times row j of n rows of weights, K long, where they lie.
inline void dot_quads(int64_t rows, const Bits* left, int64_t row, const int8_t* w, const float* scales, int64_t n,
                      int64_t K, float* sums, int64_t sums_row) {
#ifdef PAIRS
  for (int64_t j = 0; j < n; j += 16) {
    const int width = int(std::min<int64_t>(16, n - j));
    const int8_t* from[16];
    for (int i = 0; i < 16; ++i) from[i] = w + (j + std::min(i, width - 1)) * K;
    const Vec<float> column = load_first(scales + j, width);
    for (int64_t m = 0; m < rows; ++m) {
      const Bits* x = left + m * row;
      Vec<int32_t> dots[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) dots[i] = Vec<int32_t>(0);
      auto add = [&](int64_t k, __mmask64 mask) __attribute__((always_inline)) {
        const __m512i q = _mm512_loadu_si512(x + k / 2);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
          dots[i] = Vec<int32_t>::Data(add_quads((__m512i)dots[i].v, load_weights(mask, from[i] + k), q));
      };
      int64_t k = 0;
      for (; k + kQuadBlock <= K; k += kQuadBlock) add(k, ~__mmask64(0));
      if (k < K) add(k, first_bytes(K - k));
      const QuantizedRows::Head& head = QuantizedRows::head(x);
      const __m512i sum = _mm512_sub_epi32((__m512i)reduce<16>(dots).v, _mm512_set1_epi32(head.sum));
      const Vec<float> result = Vec<float>((Vec<float>::Data)_mm512_cvtepi32_ps(sum)) * column * Vec<float>(head.scale);
      store_first(result, sums + m * sums_row + j, width);
    }
  }
#endif
}

// True if the products of a call are computed in int8; elsewhere the weights become floats again.
inline bool takes_quads(const LayerCall& call, Engine engine) {
  static const bool has = has_vnni();
  return has && engine >= Engine::bytes && call.quantized() && !call.float_rows && call.cell->phases == 1 &&
         std::max(call.I, call.P) <= kLongestQuads;
}

// A call with int8 weights as one with floats.
struct Dequantized : LayerCall {
  explicit Dequantized(const LayerCall& call) : LayerCall(call) {
    scales.clear(), kept = nullptr, kept_place = -1;  // floats are made for each call
    for (int64_t d = 0; d < D; ++d)
      for (int k = 0; k < matrices(); ++k) {
        const bool of_x = k < hh();
        const int64_t rows = (of_x ? cell->ih_gates : cell->hh_gates) * H, width = of_x ? I : P;
        const int8_t* from = static_cast<const int8_t*>(call.weight(d, k));
        Scratch<float> floats;
        floats.allocate(rows * width);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < width; ++j)
            floats.data()[i * width + j] = float(from[i * width + j]) * call.scale(d, k)[i];
        weights[d * weights_per_direction() + k] = floats.data();
        held_.push_back(std::move(floats));
      }
  }

 private:
  std::vector<Scratch<float>> held_;
};
}  // namespace
}  // namespace RNNKERNELS_SET
