// The description of one layer call, without torch: what a cell is, where tensors lie, and which options are on.
// Letters: T time, B batch, D directions, X input groups, G gates, H hidden, S states, I input, P output of a step.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../threads/sharing.h"
#include "kept_weights.h"
#include "program.h"

// Every cell once: its name, and its struct in cells/. Enumeration, table and choosers are made from this list.
#define FOR_EACH_CELL(CELL) CELL(rnn, Rnn) CELL(lstm, Lstm) CELL(gru, Gru) CELL(gru_reset_before, GruResetBefore)

#define CELL(name, type) name,
enum class CellKind { FOR_EACH_CELL(CELL) program };
#undef CELL

// The facts of a cell that tensors and products depend on; the same as in rnnkernels/cells/__init__.py.
struct CellInfo {
  std::string name;
  CellKind kind;
  int64_t gates, states, kept;
  bool has_projection;
  int64_t phases;  // products in a step: with 2, that of the last gate waits for the other gates
  // Gates that W_ih and W_hh have: as many as the cell, but a program may have fewer on a side, or no such weight.
  int64_t ih_gates = gates, hh_gates = gates;
  uint64_t id = uint64_t(kind);              // differs from cell to cell
  std::shared_ptr<const Program> program{};  // where the cell is one
};
// By name, or from the text of a program, which is parsed once. Null where there is no such cell; throws
// std::runtime_error for a text that is no program.
CORE std::shared_ptr<const CellInfo> find_cell(const std::string& name);

enum class Storage { float32, float64, bfloat16, float16 };

// hard_sigmoid: x / 6 + 1/2, clamped to 0..1.
enum class Activation { tanh, relu, sigmoid, hard_sigmoid, linear };
// False where there is none of this name.
CORE bool find_activation(const std::string& name, Activation& found);

// Factors for a state, (T, D, B, n) in the accumulate type or as bools (0 and 1): strides are 0 where they are the same
// along a dimension, and a row has n of them, or one for all if it is not `whole`. False where there are none.
struct Coefficients {
  const void* data;
  int64_t stride_T, stride_D, stride_B;
  bool whole, bools;
  explicit operator bool() const { return data != nullptr; }
};

// An input of a program besides x: (X, T, B, H or 1), of a sequence (X, B, H); strides are 0 where there is no such
// dimension, and a row is contiguous.
struct Extra {
  const void* data;
  int64_t stride_X, stride_T, stride_B;
  bool narrow;
};

// One layer, all its directions. Tensors are contiguous unless they have strides here. Null pointers are absent
// tensors.
struct LayerCall {
  const CellInfo* cell;
  Storage storage;
  int64_t T, B, I, H, P, D;
  bool bias, project, layer_norm;
  double eps;  // of layer_norm
  int parts;   // bf16 parts of a float32 number in products, at most; 0: all three
  Activation act = Activation::tanh, gate = Activation::sigmoid;  // of candidates and outputs; of gates
  std::vector<bool> reverse;                                      // per direction of a group

  const void* x;  // (X, T, B, I), last stride 1
  int64_t x_stride_X, x_stride_T, x_stride_B;
  const void* states[Program::kStates];  // (D, B, P), the others (D, B, H)
  // Per direction: w_ih, w_hh, [b_ih, b_hh], [w_hr], [norms: x, h, those of c], [vectors]; see the positions below.
  std::vector<const void*> weights;
  KeptWeights* kept = nullptr;  // those that stay packed between calls, and where these are among them
  int64_t kept_place = -1;
  std::vector<const float*> scales;  // per direction, of the rows of w_ih and w_hh where these are int8; else empty
  bool float_rows;                   // rows of x and h stay floats where weights are int8
  const int64_t* lengths;            // (X, B), or (B,) with stride 0
  int64_t lengths_stride_X;
  const bool* reset;  // (X, T, B), or (T, B) with stride 0: the state that enters the step is zero or reset_states
  int64_t reset_stride_X;
  const void* reset_states[Program::kStates];  // as states
  Coefficients h_mask;                         // multiplies h before the recurrent product
  Coefficients zone[Program::kStates];         // per state: the fraction of the old one that stays
  std::vector<Extra> extras;                   // of a program, in its order

  // forward: results. backward: what the forward returned.
  void* y;                       // (T, B, D * P)
  void* last[Program::kStates];  // as states; the first is null where y is all that is wanted of h
  void* gates;                   // (D, T, B, planes, H), only in training
  void* cells;                   // (histories * D, T, B, H) in the accumulate type, only in training

  // backward
  const void *dy, *dlast[Program::kStates], *dcells;
  int64_t dy_stride_T, dy_stride_B;                                        // a row is contiguous
  void *dx, *dstates[Program::kStates], *dreset_states[Program::kStates];  // dx: (X, T, B, I) contiguous
  std::vector<void*> dweights;                                             // in the order of weights
  std::vector<void*> dextras;                                              // contiguous: (X, T, B, H or 1), (X, B, H)
  int64_t weights_per_direction() const { return int64_t(weights.size()) / D; }
  const void* weight(int64_t d, int k) const { return weights[d * weights_per_direction() + k]; }
  void* dweight(int64_t d, int k) const { return dweights[d * weights_per_direction() + k]; }
  // Positions among the weights of a direction: of W_hh (W_ih is the first), both biases, W_hr, weight k of the norms,
  // and learned vector k of a program.
  int hh() const { return cell->ih_gates > 0; }
  int bias_ih() const { return matrices(); }
  int bias_hh() const { return bias_ih() + (cell->ih_gates > 0); }
  int projection() const { return bias ? 2 * bias_ih() : bias_ih(); }
  int norm(int k) const { return projection() + project + k; }
  int vector(int k) const { return norm(0) + norms() + k; }
  int norms() const {
    if (!layer_norm) return 0;
    return cell->program ? bias_ih() : int(2 * cell->states);  // of the products; of c in the output
  }
  // States that training stores for all steps, and planes that it keeps.
  int64_t histories() const { return cell->program ? cell->program->histories() : cell->states - 1; }
  // The place of state k among them, -1 if it is the output.
  int64_t history(int k) const { return cell->program ? cell->program->history(k) : k - 1; }
  int64_t planes() const { return cell->kept + (cell->program && zone[0] ? int64_t(cell->program->zoned.size()) : 0); }
  // True if a step has norms, of the products or inside the cell: all units of a row are needed together.
  bool whole_rows() const { return layer_norm || (cell->program && cell->program->norms); }
  bool quantized() const { return !scales.empty(); }
  // True if a cell makes no h larger than 1 or than the one before.
  bool bounded() const {
    return act != Activation::relu && act != Activation::linear &&
           (gate == Activation::sigmoid || gate == Activation::hard_sigmoid);
  }
  int matrices() const { return hh() + (cell->hh_gates > 0); }  // W_ih and W_hh, as far as the cell has them
  const float* scale(int64_t d, int k) const { return scales[matrices() * d + k]; }
  int64_t group(int64_t d) const { return d / int64_t(reverse.size()); }
  bool backwards(int64_t d) const { return reverse[d % reverse.size()]; }
  int64_t length(int64_t d, int64_t b) const {
    return lengths ? std::min(T, lengths[group(d) * lengths_stride_X + b]) : T;
  }
  // True if none of the rows b..b+n has ended by step t.
  bool all_alive(int64_t d, int64_t t, int64_t b, int64_t n) const {
    for (int64_t k = 0; lengths && k < n; ++k)
      if (t >= length(d, b + k)) return false;
    return true;
  }
  // True if the state is reset as it enters step t.
  bool resets(int64_t d, int64_t t, int64_t b) const {
    return reset && reset[group(d) * reset_stride_X + t * B + b] && t < length(d, b);
  }
};
