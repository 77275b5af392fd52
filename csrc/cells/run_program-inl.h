// Runs a program's sections over blocks of vectors: each instruction goes over up to 32 vectors before the next one
// does, so that choosing it costs little, and few enough that all registers stay in the first-level cache. A section
// with norms goes over whole rows.
#pragma once
#include "../machine/functions-inl.h"
#include "../products/gemm-inl.h"
#include "row_norm-inl.h"
#include "stages-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Vectors of a block: the one of row m and of the units from q * W on lies at `at + m * row + q * unit`.
template <class A>
struct Place {
  const A* at = nullptr;
  int64_t row = 0, unit = 0;
  INLINE Vec<A> get(int64_t m, int64_t q) const { return load(at + m * row + q * unit); }
};

// How many of the hidden units 0..H the vector of the units from q * W on holds.
template <class A>
INLINE int lanes_of(int64_t H, int64_t q) {
  return int(std::min<int64_t>(Vec<A>::W, H - q * Vec<A>::W));
}

// Vectors of a block: some rows from m on, some vectors of their units from q on. They come row by row if `along`, else
// column by column, so that the inner loop is the longer one.
struct Run {
  int64_t m, q, rows, units;
  bool along;
  int64_t outer() const { return along ? rows : units; }
  int64_t inner() const { return along ? units : rows; }
  // f(row, vector of units); `begin` comes before the inner loop.
  template <class F, class Begin>
  INLINE void each(const F& f, const Begin& begin) const {
    const int64_t down = along ? 0 : 1, across = along ? 1 : 0, no = outer(), ni = inner();  // of the inner loop
    for (int64_t o = 0; o < no; ++o) {
      int64_t row = m + across * o, unit = q + down * o;
      begin(o);
      for (int64_t k = 0; k < ni; ++k, row += down, unit += across) f(row, unit);
    }
  }
};

// Has the cache fetch what lies in rows of so many numbers for the block after this one, most likely the next one.
template <bool write, class A>
INLINE void prefetch_next(const Run& run, const A* at, int64_t row) {
  for (int64_t m = run.m + run.rows; m < run.m + 2 * run.rows; ++m)
    for (int64_t q = run.q; q < run.q + run.units; q += 64 / kBytes)
      __builtin_prefetch(at + m * row + q * Vec<A>::W, write, write ? 3 : 2);
}

// A tensor of the caller's as the vectors of a block: of row m at index + m * row; one number for all units if narrow.
template <class A>
struct StoredRows {
  Stored<A> from;
  int64_t index, row;
  bool narrow = false;
  INLINE Vec<A> get(int64_t m, int64_t q, int64_t H) const {
    const int64_t at = index + m * row;
    if (narrow) return Vec<A>(from.get(at, 1).v[0]);
    return from.get(at + q * Vec<A>::W, lanes_of<A>(H, q));
  }
};

template <class A>
class Machine {
 public:
  using V = Vec<A>;
  static constexpr int W = V::W;
  struct Value {
    const A* at = nullptr;
    int64_t outer = 0, inner = 0;  // steps
    bool even = true;              // a single step serves for both
    INLINE V get(int64_t o, int64_t k) const { return load(at + o * outer + k * inner); }
    // f(vector, row, vector of units)
    template <class F>
    INLINE void each(const Run& run, const F& f) const {
      const A* from = at;
      run.each([&](int64_t m, int64_t q) __attribute__((always_inline)) { f(load(from), m, q), from += inner; },
               [&](int64_t o) __attribute__((always_inline)) { from = at + o * outer; });
    }
    // Whole vectors to rows of so many numbers, past the caches if `far`.
    void store_rows(const Run& run, A* to, int64_t row, bool far = false) const {
      if (far)
        each(run, [&](V v, int64_t m, int64_t q)
                      __attribute__((always_inline)) { store_past_caches(v, to + m * row + q * W); });
      else each(run, [&](V v, int64_t m, int64_t q) __attribute__((always_inline)) { v.store(to + m * row + q * W); });
    }
    // H hidden units a row, and nothing past them.
    void store_units(const Run& run, A* to, int64_t row, int64_t H, bool far = false) const {
      if (H % W == 0) return store_rows(run, to, row, far);
      each(run, [&, H](V v, int64_t m, int64_t q)
                    __attribute__((always_inline)) { store_first(v, to + m * row + q * W, lanes_of<A>(H, q)); });
    }
    // The same to rows of whole vectors, which end in zeros.
    void store_padded(const Run& run, A* to, int64_t row, int64_t H) const {
      if (H % W == 0) return store_rows(run, to, row);
      each(run, [&, H](V v, int64_t m, int64_t q)
                    __attribute__((always_inline)) { first_of(v, lanes_of<A>(H, q)).store(to + m * row + q * W); });
    }
  };

  explicit Machine(const LayerCall& call) : H_(call.H) {
    const Program& program = *call.cell->program;
    int registers = 1;
    for (const Section* each :
         {&program.operand, &program.first, &program.forward, &program.backward, &program.backward_first,
          &program.backward_operand, &program.again, &program.output_again})
      registers = std::max(registers, each->registers);
    block_ = std::clamp<int64_t>(kBytesOfRegisters / (registers * kBytes), 4, 32);
    most_ = program.norms ? std::max(block_, padded<A>(H_) / W) : block_;
    registers_.allocate(registers * most_ * W);
    constants_.allocate(int64_t(program.constants.size()) * W);
    for (size_t k = 0; k < program.constants.size(); ++k) V(A(program.constants[k])).store(constants_.data() + k * W);
  }

  // Runs a section over rows m0..m1 and vectors q0..q1 of units, in the order in which they lie: whole rows, or a
  // column of vectors in `panels`. The source loads and puts: load(machine, instruction, run) by one of the functions
  // below, put(order, value, run).
  template <class Source>
  void run(const Section& section, int64_t m0, int64_t m1, int64_t q0, int64_t q1, bool panels, Source& source) {
    if (q0 == q1 || m0 == m1) return;  // a member of a team that has more of them than there are units
    const int64_t units = section.norms ? q1 - q0
                          : panels      ? std::max<int64_t>(1, block_ / (m1 - m0))
                                        : std::min(q1 - q0, block_),
                  rows = std::max<int64_t>(1, block_ / units);
    auto block = [&](int64_t m, int64_t down, int64_t q, int64_t across) {
      const Run run{m, q, down, across, section.norms || across >= down};
      for (const Instruction& each : section.code) {
        if (each.op >= Op::add) compute(each, run);
        else if (each.op == Op::constant) values_[each.value] = {constants_.data() + each.index * W, 0, 0};
        else source.load(*this, each, run);
      }
      for (const PutOrder& put : section.puts) source.put(put, values_[put.value], run);
    };
    if (panels) {
      for_even_blocks(q0, q1, units, [&](int64_t q, int64_t across) {
        for_even_blocks(m0, m1, rows, [&](int64_t m, int64_t down) { block(m, down, q, across); });
      });
    } else {
      for_even_blocks(m0, m1, rows, [&](int64_t m, int64_t down) {
        for_even_blocks(q0, q1, units, [&](int64_t q, int64_t across) { block(m, down, q, across); });
      });
    }
  }

  // A load of what can be read where it lies.
  INLINE void bind(const Instruction& each, const Place<A>& place, const Run& run) {
    values_[each.value] = value_of(place, run);
  }
  // The same of a tensor of the caller's.
  INLINE void bind(const Instruction& each, const StoredRows<A>& rows, const Run& run) {
    if (rows.from.direct() && !rows.narrow && H_ % W == 0) {
      const Place<A> place{rows.from.at(rows.index), rows.row, W};
      prefetch_next<false>(run, place.at, place.row);
      return bind(each, place, run);
    }
    fill(each, run, [&](int64_t m, int64_t q) { return rows.get(m, q, H_); });
  }
  void copy(const Instruction& each, const Place<A>& place, const Run& run) {
    combine(reg(each, run), run, [](V x) __attribute__((always_inline)) { return x; }, value_of(place, run));
  }
  // A load by f(row, vector of units).
  template <class F>
  INLINE void fill(const Instruction& each, const Run& run, const F& f) {
    A* to = reg(each, run);
    run.each([&](int64_t m, int64_t q) __attribute__((always_inline)) { f(m, q).store(to), to += W; }, [](int64_t) {});
  }
  // Sums of two or three that lie in places; of three with what is done with them at once.
  void sum(const Instruction& each, const Run& run, const Place<A>& a, const Place<A>& b) {
    combine(
        reg(each, run), run, [](V x, V y) __attribute__((always_inline)) { return x + y; }, value_of(a, run),
        value_of(b, run));
  }
  void sum(const Instruction& each, const Run& run, const Place<A>& a, const Place<A>& b, const Place<A>& c) {
    A* const to = reg(each, run);
    then(each, [&](auto&& f) __attribute__((always_inline)) {
      combine(
          to, run, [&](V x, V y, V z) __attribute__((always_inline)) { return f(x + y + z); }, value_of(a, run),
          value_of(b, run), value_of(c, run));
    });
  }
  // The same of what f(row, vector of units) gives.
  template <class F>
  INLINE void sum_of(const Instruction& each, const Run& run, const F& f) {
    then(each, [&](auto&& g) __attribute__((always_inline)) {
      fill(each, run, [&](int64_t m, int64_t q) __attribute__((always_inline)) { return g(f(m, q)); });
    });
  }

 private:
  static constexpr int64_t kBytesOfRegisters = 24 * 1024;

  INLINE static Value value_of(const Place<A>& place, const Run& run) {
    const int64_t outer = run.along ? place.row : place.unit, inner = run.along ? place.unit : place.row;
    return {place.at + run.m * place.row + run.q * place.unit, outer, inner,
            run.outer() == 1 || outer == run.inner() * inner};
  }
  // with(function that comes after a sum)
  template <class With>
  INLINE static void then(const Instruction& each, const With& with) {
    if (each.after == Op::sigmoid) with([](V x) __attribute__((always_inline)) { return sigmoid(x); });
    else if (each.after == Op::tanh) with([](V x) __attribute__((always_inline)) { return tanh(x); });
    else with([](V x) __attribute__((always_inline)) { return x; });
  }
  // to = f of values, vector by vector
  template <class F, class... Values>
  INLINE static void combine(A* to, const Run& run, const F& f, const Values&... of) {
    const bool even = (of.even && ...);
    const int64_t outer = even ? 1 : run.outer(), inner = even ? run.rows * run.units : run.inner();
    for (int64_t o = 0; o < outer; ++o, to += inner * W)
      for (int64_t i = 0; i < inner; ++i)
        f(RNNKERNELS_SET::load(of.at + o * of.outer + i * of.inner)...).store(to + i * W);
  }

  // The register of a result, which it becomes.
  INLINE A* reg(const Instruction& each, const Run& run) {
    A* const to = registers_.data() + each.reg * most_ * W;
    values_[each.value] = {to, run.inner() * W, W};
    return to;
  }

  __attribute__((noinline)) void compute(const Instruction& each, const Run& run) {
    const Value a = values_[each.a], b = values_[each.b], c = values_[each.c];
    A* const to = reg(each, run);
    const V one(A(1)), zero(A(0));
#define UNARY(f) return combine(to, run, [&](V x) __attribute__((always_inline)) { return f; }, a)
#define BINARY(f) return combine(to, run, [&](V x, V y) __attribute__((always_inline)) { return f; }, a, b)
#define TERNARY(f) return combine(to, run, [&](V x, V y, V z) __attribute__((always_inline)) { return f; }, a, b, c)
    switch (each.op) {
      case Op::add:
        BINARY(x + y);
      case Op::sub:
        BINARY(x - y);
      case Op::mul:
        BINARY(x * y);
      case Op::div:
        BINARY(x / y);
      case Op::neg:
        UNARY(V(-x.v));
      case Op::abs:
        UNARY(magnitude(x));
      case Op::sign:
        UNARY(sign(x));
      case Op::sqrt:
        UNARY(sqrt(x));
      case Op::exp:
        UNARY(exp(x));
      case Op::log:
        UNARY(log(x));
      case Op::log1p:
        UNARY(log1p(x));
      case Op::expm1:
        UNARY(expm1(x));
      case Op::sigmoid:
        UNARY(sigmoid(x));
      case Op::tanh:
        UNARY(tanh(x));
      case Op::relu:
        UNARY(max(x, zero));
      case Op::min:
        BINARY(least(x, y));
      case Op::max:
        BINARY(greatest(x, y));
      case Op::lt:
        BINARY(one_where<A>(x.v < y.v));
      case Op::le:
        BINARY(one_where<A>(x.v <= y.v));
      case Op::eq:
        BINARY(one_where<A>(x.v == y.v));
      case Op::where:
        TERNARY(select(x, y, z));
      case Op::tanh_back:
        BINARY(x * (one - y * y));
      case Op::sigmoid_back:
        BINARY(x * y * (one - y));
      case Op::relu_back:
        BINARY(relu_back(x, y));
      case Op::layer_norm:
        return norm(run, to, a, *b.at);
      case Op::layer_norm_back:
        return norm_back(run, to, a, b, *c.at);
      case Op::mul_add:
        TERNARY(x * y + z);
      case Op::mul_tanh_back:
        TERNARY(x * y * (one - z * z));
      case Op::mul_sigmoid_back:
        TERNARY(x * y * z * (one - z));
      default:  // a load, which is the source's, or what the layout has removed
        __builtin_trap();
    }
#undef TERNARY
#undef BINARY
#undef UNARY
  }

  // f(norm of a row of v, the row's first vector) for every row.
  template <class F>
  void for_norms(const Run& run, const Value& v, A eps, const F& f) const {
    for (int64_t m = 0; m < run.rows; ++m) {
      auto get = [&](int, int64_t j, int) { return v.get(m, j / W); };
      f(normal<A>(0, 1, H_, eps, get), m);
    }
  }
  void norm(const Run& run, A* to, const Value& v, A eps) const {
    for_norms(run, v, eps, [&](const auto& row, int64_t m) {
      for_row<A>(0, 1, H_, [&](int, int64_t j, int n) { row.at(0, j, n).store(to + m * run.units * W + j); });
    });
  }
  // The gradient of v, from that of its norm.
  void norm_back(const Run& run, A* to, const Value& d, const Value& v, A eps) const {
    for_norms(run, v, eps, [&](const auto& row, int64_t m) {
      auto gradient = [&](int, int64_t j, int) { return d.get(m, j / W); };
      const V mean(sum_of_row<A>(0, 1, H_, gradient) / row.n),
          slope(sum_of_row<A>(0, 1, H_, [&](int g, int64_t j, int n) { return gradient(g, j, n) * row.at(g, j, n); }) /
                row.n);
      for_row<A>(0, 1, H_, [&](int g, int64_t j, int n) {
        ((gradient(g, j, n) - mean - row.at(g, j, n) * slope) * V(row.scale)).store(to + m * run.units * W + j);
      });
    });
  }

  const int64_t H_;
  int64_t block_, most_;  // vectors that an instruction goes over, and those of a whole row where there are more
  Scratch<A> registers_, constants_;
  Value values_[Program::kInstructions] = {};
};

// Pre-activations of a gate that are x itself, from row b0 on.
template <class A>
StoredRows<A> given_rows(const LayerCall& call, int gate, int64_t d, int64_t t, int64_t b0) {
  const int64_t first = call.group(d) * call.x_stride_X + t * call.x_stride_T + b0 * call.x_stride_B;
  return {{call.x, call.storage}, first + gate * call.H, call.x_stride_B};
}
// Input k of a program besides x, in direction d at step t, from row b0 on.
template <class A>
StoredRows<A> extra_rows(const LayerCall& call, int k, int64_t d, int64_t t, int64_t b0) {
  const Extra& extra = call.extras[size_t(k)];
  const int64_t first = call.group(d) * extra.stride_X + t * extra.stride_T + b0 * extra.stride_B;
  return {{extra.data, call.storage}, first, extra.stride_B, extra.narrow};
}
}  // namespace
}  // namespace RNNKERNELS_SET
