// The instruction sets: how a layer call is run on one (Schedule), its entry points, and the choice among them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../cells/layer_call.h"
#include "../threads/team.h"

// Operands that an instruction set multiplies: vectors of floats, fours of bytes too (AVX512_VNNI), pairs of bf16 too
// (AVX512_BF16), whole tiles of both (AMX). A set has what stands before its own.
enum class Engine { vectors, bytes, pairs, tiles };

// How a matrix of weights is held for its products: as it lies there, packed in panels of the type computed in, or in
// panels of bf16 parts (pairs-inl.h), of int8 (quads-inl.h) or of the 16 bits it is stored in (narrow-inl.h).
enum class Layout { in_place, panels, pairs, quads, narrow };

// How the forward loop of a call is run.
struct Schedule {
  Engine engine;
  Layout ih, hh;         // of W_ih and W_hh
  Layout products;       // of the factors of the products over many steps in the backward pass
  int parts;             // of a number, where it is held in pairs
  bool chunked;          // the input projected for a chunk of steps at once, or inside the tile
  bool threaded;         // large enough for several threads
  int64_t row_jobs;      // the batch of each direction split into this many independent strips
  int64_t unit_threads;  // threads that split the hidden units of a strip and meet at barriers in every step
  int64_t phases = 1;    // products in a step
  bool passing = false;  // weights are packed a panel at a time, each time they are used
  bool normed = false;   // all sums of a row are there before its cells
  std::string text() const;
};

// One layer that is run a few steps at a time: it owns its weights and its state, and its steps allocate nothing.
class Stream {
 public:
  virtual ~Stream() = default;
  // Where the steps that follow read and write: element (t, b, i) lies at t * stride_T + b * stride_B + i.
  virtual void read(const void* x, int64_t stride_T, int64_t stride_B) = 0;
  virtual void write(void* y, int64_t stride_T, int64_t stride_B) = 0;
  // The same for input k of a program besides x; stride_T is 0 for one of a sequence.
  virtual void read_extra(size_t k, const void* data, int64_t stride_T, int64_t stride_B) = 0;
  // One member's part of step t; all members have done theirs when it returns. False: it has left the team.
  virtual bool step(int64_t t, Team::Member& member) = 0;
  virtual void advance(int64_t steps) = 0;  // after the steps 0..steps
  virtual void reset(int64_t row) = 0;
  // State k, the first one h: rows (B, P), the others (B, H), in the type computed in.
  virtual void get_state(int k, void* to) const = 0;
  virtual void set_state(int k, const void* from) = 0;
};

// The loops of one compilation: baseline.cpp, avx2.cpp or avx512.cpp.
struct Kernels {
  void (*forward)(const LayerCall&, Engine);
  void (*backward)(const LayerCall&, Engine);
  Schedule (*schedule)(const LayerCall&, Engine);
  // For `threads` threads at most; takes sizes and weights from the call.
  std::unique_ptr<Stream> (*stream)(const LayerCall&, int64_t threads);
};
namespace baseline {
extern const Kernels kernels;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
bool has_vnni();      // products of bytes in vectors
bool has_amx_int8();  // and in matrix registers
#else
constexpr bool has_vnni() { return false; }
constexpr bool has_amx_int8() { return false; }
#endif

struct InstructionSet {
  const char* name;
  bool (*supported)();
  const Kernels& kernels;
  Engine engine;
  void forward(const LayerCall& call) const { kernels.forward(call, engine); }
  void backward(const LayerCall& call) const { kernels.backward(call, engine); }
  Schedule schedule(const LayerCall& call) const { return kernels.schedule(call, engine); }
};

// Best first; ends with the baseline, which runs everywhere.
const std::vector<InstructionSet>& instruction_sets();
// The best one that this machine has, or the one that RNNKERNELS_ISA names.
CORE const InstructionSet& instruction_set();
// For tests: calls that begin from now on, of all threads, use the one of this name; "" for the choice above.
void use_instruction_set(const std::string& name);
