// Vectors of the instruction set that includes this file: arithmetic, loads and stores, conversions, transpose.
// Included once per instruction set, inside its namespace, with kBytes (the width of a register) defined.
#pragma once
#include "standard.h"
#ifndef RNNKERNELS_SET
#include "baseline-inl.h"
#endif

namespace RNNKERNELS_SET {
namespace {
#define INLINE inline __attribute__((always_inline))

// IntData holds the bits of numbers: unsigned, because sums of the bits of NaN may overflow.
template <class A>
struct Register;
template <>
struct Register<float> {
  typedef float Data __attribute__((vector_size(kBytes)));
  typedef uint32_t IntData __attribute__((vector_size(kBytes)));
};
template <>
struct Register<double> {
  typedef double Data __attribute__((vector_size(kBytes)));
  typedef uint64_t IntData __attribute__((vector_size(kBytes)));
};
template <>
struct Register<int32_t> {  // for sums only
  typedef int32_t Data __attribute__((vector_size(kBytes)));
  using IntData = Data;
};

template <class A>
struct Vec {
  static constexpr int W = kBytes / sizeof(A);
  using Data = typename Register<A>::Data;
  using IntData = typename Register<A>::IntData;
  Data v;

  Vec() = default;
  INLINE Vec(Data data) : v(data) {}
  INLINE Vec(A scalar) : v(scalar - Data{}) {}
  INLINE void store(A* p) const { __builtin_memcpy(p, &v, kBytes); }
  friend INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend INLINE Vec min(Vec a, Vec b) {  // NaN in a stays NaN
#ifdef MIN_FLOAT
    if constexpr (sizeof(A) == 4) return Data(MIN_FLOAT(b.v, a.v));
#endif
    return b.v < a.v ? b.v : a.v;
  }
  friend INLINE Vec max(Vec a, Vec b) {
#ifdef MAX_FLOAT
    if constexpr (sizeof(A) == 4) return Data(MAX_FLOAT(b.v, a.v));
#endif
    return b.v > a.v ? b.v : a.v;
  }
  friend INLINE Vec where_positive(Vec a, Vec b) { return a.v > 0 ? b.v : Data{}; }
  // The gradient d before a relu that gave y: all of it for NaN, as in torch, where a zero would hide it.
  friend INLINE Vec relu_back(Vec d, Vec y) { return y.v <= 0 ? Data{} : d.v; }
};

// ---- Loads and stores: n < W reads or writes the first n elements only, and the other lanes are zero ---------------
template <class A>
INLINE Vec<A> load(const A* p) {
  Vec<A> r;
  __builtin_memcpy(&r.v, p, kBytes);
  return r;
}

template <class A>
constexpr int64_t padded(int64_t n) {  // numbers in as many whole vectors as n takes
  return (n + Vec<A>::W - 1) / Vec<A>::W * Vec<A>::W;
}

template <class A>
INLINE Vec<A> load_first(const A* p, int n) {
  if (__builtin_expect(n >= Vec<A>::W, 1)) return load(p);
#ifdef MASKED_LOAD
  if constexpr (sizeof(A) == 4) return Vec<A>(MASKED_LOAD(p, n));
#endif
  alignas(kBytes) A buffer[Vec<A>::W] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class A>
INLINE void store_first(Vec<A> v, A* p, int n) {
  if (__builtin_expect(n >= Vec<A>::W, 1)) return v.store(p);
#ifdef MASKED_STORE
  if constexpr (sizeof(A) == 4) return MASKED_STORE(p, n, v.v);
#endif
  alignas(kBytes) A buffer[Vec<A>::W];
  v.store(buffer);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

template <class A>
INLINE Vec<A> first_of(Vec<A> v, int n) {  // the other lanes are zero
  if (__builtin_expect(n >= Vec<A>::W, 1)) return v;
  using Ints = typename Vec<A>::IntData;
  using Int = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
  Ints lanes{};
  for (int i = 0; i < Vec<A>::W; ++i) lanes[i] = Int(i);
  return Vec<A>((typename Vec<A>::Data)((Ints)v.v & (Ints)(lanes < Ints{} + Int(n))));
}

// A whole vector to an aligned place, not by way of the caches: for what is read long after. Other threads may read it
// after `drain`.
template <class A>
INLINE void store_past_caches(Vec<A> v, A* p) {
#ifdef STREAM
  STREAM(p, v.v);
#else
  v.store(p);
#endif
}
INLINE void drain() {
#ifdef STREAM
  _mm_sfence();
#endif
}

// Numbers 0 and 1 from as many bools.
template <class A>
INLINE Vec<A> of_bools(const uint8_t* p, int n) {
  constexpr int W = Vec<A>::W;
  using Ints = typename Vec<A>::IntData;
  uint8_t bytes __attribute__((vector_size(W))) = {};
  if (__builtin_expect(n < W, 0)) std::copy_n(p, n, reinterpret_cast<uint8_t*>(&bytes)), p = (const uint8_t*)&bytes;
  Ints wide;
#ifdef WIDEN_8  // what the compiler makes of a conversion is long
  if constexpr (sizeof(A) == 4) {
    wide = (Ints)WIDEN_8(p);
  } else
#endif
  {
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    wide = __builtin_convertvector(bytes, Ints);
  }
  const Ints ones = Ints{} - wide;  // all bits, or none
  return Vec<A>((typename Vec<A>::Data)(ones & (Ints)Vec<A>(A(1)).v));
}

// ---- The 16-bit storage types, a vector at a time ------------------------------------------------------------------
using Halves = uint16_t __attribute__((vector_size(kBytes / 2)));  // as many as there are floats in a vector

#ifndef HALVES_TO_FLOATS  // out of line, because they are long
__attribute__((noinline)) inline Vec<float> floats_of_halves(const uint16_t* from) {
  alignas(kBytes) float buffer[Vec<float>::W];
  for (int i = 0; i < Vec<float>::W; ++i) buffer[i] = float_of_half(from[i]);
  return load(buffer);
}
__attribute__((noinline)) inline void floats_to_halves(Vec<float> v, uint16_t* to) {
  alignas(kBytes) float buffer[Vec<float>::W];
  v.store(buffer);
  for (int i = 0; i < Vec<float>::W; ++i) to[i] = half_of_float(buffer[i]);
}
#endif

INLINE Vec<float> floats_of_16(const uint16_t* from, Storage storage) {
  if (storage == Storage::bfloat16) {
#ifdef WIDEN_16
    const Vec<float>::IntData wide = (Vec<float>::IntData)WIDEN_16(from);
#else
    Halves bits;
    __builtin_memcpy(&bits, from, sizeof(bits));
    const Vec<float>::IntData wide = __builtin_convertvector(bits, Vec<float>::IntData);
#endif
    return Vec<float>((Vec<float>::Data)(wide << 16));
  }
#ifdef HALVES_TO_FLOATS
  return Vec<float>((Vec<float>::Data)HALVES_TO_FLOATS(from));
#else
  return floats_of_halves(from);
#endif
}

// Two vectors of bf16 in memory as their even numbers and their odd ones, which is one instruction each.
template <class A>
INLINE void floats_of_pairs(const uint16_t* from, Vec<A>& even, Vec<A>& odd) {
  typename Vec<A>::IntData pairs;
  __builtin_memcpy(&pairs, from, sizeof(pairs));
  even = Vec<A>((typename Vec<A>::Data)(pairs << 16));
  odd = Vec<A>((typename Vec<A>::Data)(pairs & int32_t(0xffff0000)));
}

INLINE void floats_to_16(Vec<float> v, uint16_t* to, Storage storage) {
  using Ints = Vec<float>::IntData;
  if (storage == Storage::bfloat16) {  // to nearest, ties to even; NaN stays NaN
    Ints bits = (Ints)v.v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    Halves high = __builtin_convertvector((v.v == v.v ? rounded : Ints{} + 0x7fc00000) >> 16, Halves);
    __builtin_memcpy(to, &high, sizeof(high));
    return;
  }
#ifdef FLOATS_TO_HALVES
  FLOATS_TO_HALVES(to, v.v);
#else
  floats_to_halves(v, to);
#endif
}

// ---- A tensor of the caller's, in the type it is stored in; computed with as A -------------------------------------
template <class A>
class Stored {
 public:
  static constexpr int W = Vec<A>::W;
  Stored(const void* data, Storage storage) : data_(const_cast<void*>(data)), storage_(storage) {}
  explicit operator bool() const { return data_ != nullptr; }
  INLINE bool direct() const { return sizeof(A) == 8 || storage_ == Storage::float32; }
  INLINE A* at(int64_t i) const { return static_cast<A*>(data_) + i; }
  INLINE Storage storage() const { return storage_; }
  INLINE const uint16_t* bits(int64_t i) const { return static_cast<const uint16_t*>(data_) + i; }

  // Numbers i..end, in the second-level cache by the time that they are read.
  void prefetch(int64_t i, int64_t end) const {
    const int64_t size = direct() ? sizeof(A) : 2;
    const char* const from = static_cast<const char*>(data_);
    for (i *= size; i < end * size; i += 64) __builtin_prefetch(from + i, 0, 2);
  }

  INLINE Vec<A> get(int64_t i, int n) const { return direct() ? load_first(at(i), n) : get_16(i, n, storage_); }
  INLINE Vec<A> get_16(int64_t i, int n, Storage storage) const {
    if constexpr (sizeof(A) == 8) {
      return Vec<A>(A(0));  // float64 is always direct
    } else {
      if (__builtin_expect(n >= W, 1)) return floats_of_16(bits(i), storage);
      uint16_t buffer[W] = {};
      for (int k = 0; k < n; ++k) buffer[k] = bits(i)[k];
      return floats_of_16(buffer, storage);
    }
  }
  INLINE void put(Vec<A> v, int64_t i, int n) const {
    if (direct()) store_first(v, at(i), n);
    else put_16(v, i, n);
  }
  void get_row(int64_t i, A* to, int64_t n) const {
    if (direct()) std::copy_n(at(i), n, to);
    else widen(i, to, n);
  }
  void put_row(const A* from, int64_t i, int64_t n) const {
    if (direct()) std::copy_n(from, n, at(i));
    else narrow(from, i, n);
  }

 private:
  __attribute__((noinline)) void widen(int64_t i, A* to, int64_t n) const {
    int64_t k = 0;
    for (; k + W <= n; k += W) get_16(i + k, W, storage_).store(to + k);
    if (k < n) store_first(get_16(i + k, int(n - k), storage_), to + k, int(n - k));
  }
  __attribute__((noinline)) void narrow(const A* from, int64_t i, int64_t n) const {
    for (int64_t k = 0; k < n; k += W) {
      int lanes = int(std::min<int64_t>(W, n - k));
      put_16(load_first(from + k, lanes), i + k, lanes);
    }
  }
  INLINE void put_16(Vec<A> v, int64_t i, int n) const {
    if constexpr (sizeof(A) == 4) {
      uint16_t* to = static_cast<uint16_t*>(data_) + i;
      if (__builtin_expect(n >= W, 1)) return floats_to_16(v, to, storage_);
      uint16_t buffer[W];
      floats_to_16(v, buffer, storage_);
      std::copy_n(buffer, n, to);
    }
  }

  void* data_;
  Storage storage_;
};

// ---- Transpose and sum in registers --------------------------------------------------------------------------------
#if __has_builtin(__builtin_shufflevector)
template <int S, bool High, class A, int... i>
INLINE Vec<A> exchange(Vec<A> a, Vec<A> b, std::integer_sequence<int, i...>) {
  constexpr int W = Vec<A>::W;
  if constexpr (High) return Vec<A>(__builtin_shufflevector(a.v, b.v, ((i & S) ? W + i : i + S)...));
  else return Vec<A>(__builtin_shufflevector(a.v, b.v, ((i & S) ? W + i - S : i)...));
}
template <int S = 1, class A>
INLINE void transpose(Vec<A>* rows) {
  constexpr int W = Vec<A>::W;
  if constexpr (S < W) {
    constexpr std::make_integer_sequence<int, W> lanes{};
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if ((i & S) == 0) {
        Vec<A> a = rows[i], b = rows[i + S];
        rows[i] = exchange<S, false>(a, b, lanes);
        rows[i + S] = exchange<S, true>(a, b, lanes);
      }
    transpose<2 * S>(rows);
  }
}
// Lanes of a, but where S is in their number those of b; and their neighbours, S lanes on or back. The first is a
// blend, which is not bound to one port of the processor as the second is.
template <int S, class A, int... i>
INLINE Vec<A> kept(Vec<A> a, Vec<A> b, std::integer_sequence<int, i...>) {
  return Vec<A>(__builtin_shufflevector(a.v, b.v, ((i & S) ? Vec<A>::W + i : i)...));
}
template <int S, class A, int... i>
INLINE Vec<A> crossed(Vec<A> a, Vec<A> b, std::integer_sequence<int, i...>) {
  return Vec<A>(__builtin_shufflevector(a.v, b.v, ((i & S) ? Vec<A>::W + i - S : i + S)...));
}
template <int S, class A, int... i>
INLINE Vec<A> swapped(Vec<A> v, std::integer_sequence<int, i...>) {
  return Vec<A>(__builtin_shufflevector(v.v, v.v, (i ^ S)...));
}
// Lane i of the result, for i < N, is the sum of the lanes of rows[i]. N is a power of 2.
template <int N, int S = 1, class A>
INLINE Vec<A> reduce(Vec<A>* rows) {
  constexpr int W = Vec<A>::W;
  constexpr std::make_integer_sequence<int, W> lanes{};
  if constexpr (S < N) {
#pragma GCC unroll 16
    for (int i = 0; i < N; i += 2 * S)
      rows[i] = kept<S>(rows[i], rows[i + S], lanes) + crossed<S>(rows[i], rows[i + S], lanes);
    return reduce<N, 2 * S>(rows);
  } else if constexpr (S < W) {
    rows[0] = rows[0] + swapped<S>(rows[0], lanes);
    return reduce<N, 2 * S>(rows);
  }
  return rows[0];
}
template <class A, int S = Vec<A>::W / 2>
INLINE A total(Vec<A> v) {
  if constexpr (S == 0) return v.v[0];
  else return total<A, S / 2>(v + swapped<S>(v, std::make_integer_sequence<int, Vec<A>::W>{}));
}
#else
template <int N, class A>
INLINE Vec<A> reduce(Vec<A>* rows) {
  Vec<A> sums(A(0));
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < Vec<A>::W; ++j) sums.v[i] += rows[i].v[j];
  return sums;
}
template <class A>
INLINE A total(Vec<A> v) {
  alignas(kBytes) A part[Vec<A>::W];
  v.store(part);
  for (int n = Vec<A>::W / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) part[i] += part[i + n];
  return part[0];
}
template <class A>
INLINE void transpose(Vec<A>* rows) {
  constexpr int W = Vec<A>::W;
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < i; ++j) std::swap(rows[i].v[j], rows[j].v[i]);
}
#endif
}  // namespace
}  // namespace RNNKERNELS_SET
