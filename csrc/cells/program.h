// A cell as a program: the text that a layer's `cell` argument may carry, parsed. Vectors of hidden units go through
// its instructions; products with weights and everything else round the cell are the loops'.
//
// Letters: GX gates of the input, GR gates of the recurrent product, S states, K planes that training keeps.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../threads/sharing.h"

// The instructions. Loads first: of pre-activations (x, r, and a: their sum), old states, learned vectors, inputs of
// the step or the sequence, the result of the inner product, values of the section `first`; then what the backward
// pass reads: kept planes, new states, and gradients of states, output, inner operand, values of `first`, operand.
// clang-format off
enum class Op : uint8_t {
  a, x, r, s, v, u, i, cross, k, n, g, gy, gi, dcross, go, constant,
  add, sub, mul, div, neg, abs, sign, sqrt, exp, log, log1p, expm1, sigmoid, tanh, relu, min, max, lt, le, eq, where,
  tanh_back, sigmoid_back, relu_back, through,
  layer_norm, layer_norm_back,               // of all units of a row; the last operand is eps, a constant
  mul_add, mul_tanh_back, mul_sigmoid_back,  // a b + c, and derivatives of a b by c: made of two of the others
};
// clang-format on

enum class Put : uint8_t { operand, inner, cross, keep, next, y, da, dx, dr, di, dcross, ds, dv, du };

struct Instruction {
  Op op;
  int16_t reg = -1;              // of the result; constants have none
  uint16_t value = 0;            // the number of the result
  uint16_t a = 0, b = 0, c = 0;  // of the operands
  uint16_t index = 0;            // of a load: which one of its kind; of a: the gate among the inputs
  uint16_t other = 0;            // of a: the gate among the recurrent ones
  Op after = Op::through;        // of a: what is done with it at once
  bool copied = false;           // of s: its place may be written to before it is put
};

struct PutOrder {
  Put kind;
  uint16_t index = 0, value = 0;
  int16_t x_gate = -1, r_gate = -1;  // of the gradient of a gate: which ones it is of
  bool add = false;                  // to what a section before has put there
};

struct Section {
  bool there = false;
  std::vector<Instruction> code;  // without what nothing reads
  std::vector<PutOrder> puts;
  int registers = 0, values = 0;
  bool norms = false;  // it is run for all units of a row at once
};

struct Program {
  static constexpr int kStates = 4, kGates = 8;
  static constexpr size_t kNames = 8, kKept = 32, kInstructions = 512, kBytes = 64 * 1024;

  std::string name;
  std::vector<std::string> inputs, recurrent, states, vectors, extras;  // extras: of steps, then of sequences
  std::vector<bool> narrow;                                             // per extra: (T, B, 1)
  int steps = 0;                                                        // how many extras are of steps
  bool given = false;                                                   // x is the pre-activation
  int kept = 0, crossing = 0;
  bool inner = false, has_operand = false, has_y = false, norms = false;  // norms: a section has them
  Section operand, first, forward, backward, backward_first, backward_operand;
  // The operand of the inner product again, from what `first` keeps (loads k); not there where that does not suffice.
  Section again;
  bool again_there = false;
  // The first state as the cell makes it, from what training keeps; there where it may be the operand of a projection,
  // because no section reads or gives anything of the first state itself.
  Section output_again;

  // Planes of gradients that a step of the backward pass leaves per hidden unit: of gates, by gate of the input and of
  // the recurrent product (`shared`: one plane where both are one value; `apart`: each its own, those of the input
  // first), then of vectors and of extras (-1: they have none).
  struct Planes {
    std::vector<int> x, r, vector, extra, empty;  // empty: of gates that no section puts
    int gates = 0, all = 0;
  };
  Planes shared, apart;

  std::vector<double> constants;  // of all sections; the index of a load says which one

  std::vector<int> zoned;  // the new states, as the cell made them, that the backward pass reads, in their order
  int instructions = 0;    // of forward, for estimates
  // The plane that keeps the new state k where zoneout mixes it.
  int zoned_plane(int k) const {
    for (size_t at = 0; at < zoned.size(); ++at)
      if (zoned[at] == k) return kept + int(at);
    return -1;
  }
  int gates_of_first() const { return int(recurrent.size()) - inner; }  // of the first product
  // States whose history cannot be read off the output, and the place of state k among them.
  int64_t histories() const { return int64_t(states.size()) - !has_y; }
  int64_t history(int k) const { return k - !has_y; }

  // Throws std::runtime_error, with one sentence, for what is no program.
  explicit Program(const std::string& text);
};
// What follows from the text that the parser has read: registers, planes, `again`.
void lay_out(Program& program);
