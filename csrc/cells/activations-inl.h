// The functions of a cell: `act` of its candidates and its output, `gate` of its gates; and a gradient through them, by
// their results.
#pragma once
#include "../machine/math-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class V>
INLINE V relu(V x) {
  return max(x, V(0));
}

// Those of torch.nn's cells, and neither zoneout nor layer norm: what tiles are written for.
struct Standard {
  static constexpr bool STAGED = false;
  static Standard of(const LayerCall&) { return {}; }
  template <class V>
  static INLINE V act(V x) {
    return tanh(x);
  }
  template <class V>
  static INLINE V gate(V x) {
    return sigmoid(x);
  }
  template <class V>
  static INLINE V act_back(V d, V y) {
    return d * (V(1) - y * y);
  }
  template <class V>
  static INLINE V gate_back(V d, V y) {
    return d * y * (V(1) - y);
  }
};

// Out of line, because there are many of them in a cell.
template <class V>
__attribute__((noinline)) V activate(Activation kind, V x) {
  switch (kind) {
    case Activation::tanh:
      return tanh(x);
    case Activation::relu:
      return relu(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::hard_sigmoid:
      return min(max(x * V(1.0 / 6) + V(0.5), V(0)), V(1));
    case Activation::linear:
      break;
  }
  return x;
}
template <class V>
__attribute__((noinline)) V activate_back(Activation kind, V d, V y) {
  switch (kind) {
    case Activation::tanh:
      return Standard::act_back(d, y);
    case Activation::relu:
      return relu_back(d, y);
    case Activation::sigmoid:
      return Standard::gate_back(d, y);
    case Activation::hard_sigmoid:
      return where_positive(y * (V(1) - y), d * V(1.0 / 6));
    case Activation::linear:
      break;
  }
  return d;
}

// The same ones, with zoneout and layer norm or without.
struct StandardStaged : Standard {
  static constexpr bool STAGED = true;
  static StandardStaged of(const LayerCall&) { return {}; }
};

// Any of them, likewise.
struct Chosen {
  static constexpr bool STAGED = true;
  Activation act_kind, gate_kind;
  static Chosen of(const LayerCall& call) { return {call.act, call.gate}; }
  template <class V>
  INLINE V act(V x) const {
    return act_kind == Activation::relu ? relu(x) : activate(act_kind, x);
  }
  template <class V>
  INLINE V gate(V x) const {
    return activate(gate_kind, x);
  }
  template <class V>
  INLINE V act_back(V d, V y) const {
    return act_kind == Activation::relu ? relu_back(d, y) : activate_back(act_kind, d, y);
  }
  template <class V>
  INLINE V gate_back(V d, V y) const {
    return activate_back(gate_kind, d, y);
  }
};

// f(what the functions of a call are): a cell's loops are compiled for each, so that those that are not chosen cost no
// register.
template <class F>
INLINE auto with_functions(const LayerCall& call, const F& f) {
  if (call.act != Activation::tanh || call.gate != Activation::sigmoid) return f(Chosen::of(call));
  if (call.zone[0] || call.layer_norm) return f(StandardStaged::of(call));
  return f(Standard::of(call));
}
}  // namespace
}  // namespace RNNKERNELS_SET
