// The kernels as PyTorch ops on the CPU, on torch's stable ABI. Only this file and arguments.h know torch.
// Here they are defined, and their tensors become a LayerCall; rnnkernels/op adds shapes, autograd and vmap.
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#include <pthread.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../machine/instruction_set.h"
#include "../threads/scratch.h"
#include "../threads/sharing.h"
#include "../threads/team.h"
#include "arguments.h"

namespace {
bool forked = false;  // a forked child has none of its parent's threads, and OpenMP does not notice
[[maybe_unused]] const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
}  // namespace

namespace {
// How this thread rounds and treats subnormal numbers: torch.set_flush_denormal is of one thread.
class FloatMode {
#ifdef __SSE__
 public:
  // Another thread, for a while, as the one that made the FloatMode.
  class Scope {
   public:
    explicit Scope(const FloatMode& mode) { _mm_setcsr(mode.here_); }
    ~Scope() { _mm_setcsr(before_); }

   private:
    const unsigned before_ = _mm_getcsr();
  };

 private:
  const unsigned here_ = _mm_getcsr();
#else
 public:
  struct Scope {
    explicit Scope(const FloatMode&) {}
  };
#endif
};
}  // namespace

int64_t thread_count() { return forked ? 1 : torch::stable::get_num_threads(); }

void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 1 || thread_count() == 1 || Sharing::alone()) return body(0, n);
  thread_local char here;  // its address is the thread
  const char* caller = &here;
  auto done = Clock::now();
  const FloatMode mode;
  std::exception_ptr failed;
  std::atomic<bool> fails{false};
  torch::stable::parallel_for(0, n, 1, [&](int64_t lo, int64_t hi) {
    try {
      const FloatMode::Scope as_caller(mode);
      body(lo, hi);
    } catch (...) {  // across torch's threads it would lose its kind
      if (!fails.exchange(true)) failed = std::current_exception();
    }
    if (caller == &here) done = Clock::now();
  });
  Sharing::waited(Clock::now() - done);
  if (failed) std::rethrow_exception(failed);
}

namespace {
// A hash of the facts that passes of equal time a step have in common.
uint64_t kind_of(const LayerCall& call, bool backward) {
  uint64_t hash = 14695981039346656037u;
  int64_t T = 0;  // how many bits it has: long sequences take as long a step as each other
  while (call.T >> T) ++T;
  for (int64_t fact :
       {int64_t(call.cell->id), int64_t(call.storage), T, call.B, call.I, call.H, call.P, call.D, int64_t(backward),
        int64_t(call.gates != nullptr), int64_t(call.layer_norm), int64_t(call.lengths != nullptr),
        int64_t(call.quantized()), int64_t(call.parts), int64_t(thread_count())})
    hash = (hash ^ uint64_t(fact)) * 1099511628211u;
  return hash;
}

void run_forward(const LayerCall& call) {
  Sharing sharing(kind_of(call, false), call.T);
  instruction_set().forward(call);
}

void run_backward(const LayerCall& call) {
  Sharing sharing(kind_of(call, true), call.T);
  instruction_set().backward(call);
}

// The arguments that `layer` and `layer_backward` have in common.
Call layer_call(StringHandle cell, const Tensor& x, const MaybeTensors& states, const Tensors& weights,
                const Flags& reverse, bool bias, bool project, const MaybeString& activation, const MaybeString& gate,
                const MaybeTensor& lengths, const MaybeTensor& reset, const MaybeTensors& reset_states,
                const MaybeTensor& h_mask, const MaybeTensors& zone, bool layer_norm, double eps, int64_t hidden_size,
                const MaybeTensors& extras, int64_t parts, int64_t packed) {
  const std::string cell_name = text(cell);
  const std::optional<std::string> act = text(activation), gate_name = text(gate);
  STD_TORCH_CHECK(x.dim() > 2, "rnnkernels: x must have 3 or 4 dimensions, got ", x.dim());
  Call call(cell_name, x, Bools(reverse.begin(), reverse.end()), bias, project, act, gate_name, lengths);
  call.layer_norm = layer_norm, call.eps = eps;
  call.take_parts(parts);
  const int64_t n = call.weights_per_layer();
  const CellInfo& info = *call.cell;
  STD_TORCH_CHECK(call.D > 0 && int64_t(weights.size()) == n, "rnnkernels: expected ", n, " weights, got ",
                  weights.size());
  int64_t H = hidden_size, P = H;
  if (info.hh_gates > 0) {
    const Tensor& w = weights[size_t(call.hh())];
    STD_TORCH_CHECK(w.dim() == 2, "rnnkernels: weight_hh must have 2 dimensions, got ", w.dim());
    if (H == 0) H = w.size(0) / info.hh_gates;
    P = w.size(1);
  }
  STD_TORCH_CHECK(H > 0 && H < int64_t(1) << 40, "rnnkernels: the cell ", info.name, " needs hidden_size");
  call.take_weights(weights.data(), H, P);
  call.take_kept(kept_weights(packed));
  call.take_extras(given(extras));
  call.take_states(given(states), 1);
  call.take_stages(reset, given(reset_states), h_mask, given(zone));
  return call;
}

void check_trainable(const LayerCall& call) {
  const Program* const program = call.cell->program.get();
  STD_TORCH_CHECK(!program || !program->inner || program->again_there, "rnnkernels: the cell ", call.cell->name,
                  " cannot be trained: the operand of its inner product does not follow from states, vectors, inputs ",
                  "and what the section first keeps");
}

std::tuple<Tensor, Tensors, Tensors> layer(StringHandle cell, const Tensor& x, const MaybeTensors& states,
                                           const Tensors& weights, const Flags& reverse, bool bias, bool project,
                                           const MaybeString& activation, const MaybeString& gate,
                                           const MaybeTensor& lengths, const MaybeTensor& reset,
                                           const MaybeTensors& reset_states, const MaybeTensor& h_mask,
                                           const MaybeTensors& zone, bool layer_norm, double eps, int64_t hidden_size,
                                           const MaybeTensors& extras, int64_t parts, int64_t packed, bool save) {
  Call call = layer_call(cell, x, states, weights, reverse, bias, project, activation, gate, lengths, reset,
                         reset_states, h_mask, zone, layer_norm, eps, hidden_size, extras, parts, packed);
  if (save) check_trainable(call);
  Tensor y = empty(call.dtype, {call.T, call.B, call.D * call.P});
  call.y = y.mutable_data_ptr();
  Tensors last, saved;
  for (int k = 0; k < call.cell->states; ++k) {
    last.push_back(empty(call.dtype, {call.D, call.B, k ? call.H : call.P}));
    call.last[k] = last.back().mutable_data_ptr();
  }
  if (save && call.planes()) {
    saved.push_back(empty(call.dtype, {call.D, call.T, call.B, call.planes(), call.H}));
    call.gates = saved.back().mutable_data_ptr();
  }
  if (save && call.histories()) {
    saved.push_back(empty(call.accumulate(), {call.histories() * call.D, call.T, call.B, call.H}));
    call.cells = saved.back().mutable_data_ptr();
  }
  if (call.B > 0) run_forward(call);
  return {std::move(y), std::move(last), std::move(saved)};
}

// The first layer of a stack, all but its results; without a number of layers a step, which has no dimension of time.
Call first_layer(const Tensor& x, const MaybeTensors& states, const Tensors& weights, StringHandle cell,
                 std::optional<int64_t> layers, bool bidirectional, bool bias, int64_t H, int64_t proj_size,
                 const MaybeString& activation, const MaybeTensor& lengths, const std::optional<Tensors>& scales,
                 bool float_rows, int64_t parts, int64_t packed, const MaybeTensors& extras) {
  const std::string cell_name = text(cell);
  const std::optional<std::string> act = text(activation);
  const int dims = layers ? 3 : 2;
  STD_TORCH_CHECK(x.dim() == dims, "rnnkernels: x must have ", dims, " dimensions, got ", x.dim());
  Call call(cell_name, x, bidirectional ? Bools{false, true} : Bools{false}, bias, proj_size > 0, act, std::nullopt,
            lengths);
  const int64_t L = layers.value_or(1), n = L * call.weights_per_layer(), P = proj_size > 0 ? proj_size : H;
  STD_TORCH_CHECK(L > 0 && int64_t(weights.size()) == n, "rnnkernels: expected ", n, " weights, got ", weights.size());
  const int64_t matrices = L * call.matrices() * call.D;
  STD_TORCH_CHECK(!scales || (int64_t(scales->size()) == matrices && call.storage == Storage::float32),
                  "rnnkernels: int8 weights want x in float32 and ", matrices, " scales");
  call.float_rows = float_rows;
  call.take_parts(parts);
  call.take_weights(weights.data(), H, P, scales ? scales->data() : nullptr);
  call.take_extras(given(extras));
  call.take_kept(kept_weights(packed));
  call.take_states(given(states), layers.value_or(0));
  return call;
}

// The layers one after the other. All but the last write into a buffer and the output in turn, so that the last one
// writes into the output; the final states are written where they belong in the stacked ones.
std::tuple<Tensor, Tensors> stack(const Tensor& x, const MaybeTensors& states, const Tensors& weights,
                                  StringHandle cell, int64_t layers, bool bidirectional, bool bias, int64_t hidden_size,
                                  int64_t proj_size, const MaybeString& activation, const MaybeTensor& lengths,
                                  const std::optional<Tensors>& scales, bool float_rows, int64_t parts, int64_t packed,
                                  const MaybeTensors& extras) {
  Call call = first_layer(x, states, weights, cell, layers, bidirectional, bias, hidden_size, proj_size, activation,
                          lengths, scales, float_rows, parts, packed, extras);
  const int64_t n = call.weights_per_layer(), matrices = call.matrices() * call.D, T = call.T, B = call.B, D = call.D,
                H = call.H, P = call.P;

  Tensor y = empty(call.dtype, {T, B, D * P});
  void* const out = y.mutable_data_ptr();
  const int64_t bytes = int64_t(y.element_size());
  Tensors last;
  for (int k = 0; k < call.cell->states; ++k) {
    last.push_back(empty(call.dtype, {layers * D, B, k ? H : P}));
    call.last[k] = last.back().mutable_data_ptr();
  }
  Scratch<char> buffer;
  if (layers > 1) buffer.allocate(T * B * D * P * bytes);
  for (int64_t i = 0;;) {
    call.y = (layers - i) % 2 ? out : buffer.data();
    if (B > 0) run_forward(call);
    if (++i == layers) break;
    call.x = call.y, call.I = D * P, call.x_stride_T = B * D * P, call.x_stride_B = D * P;
    call.take_weights(weights.data() + i * n, H, P, scales ? scales->data() + i * matrices : nullptr);
    call.take_kept(call.kept_owner);
    for (int k = 0; k < call.cell->states; ++k) {
      const int64_t step = D * B * (k ? H : P) * bytes;
      if (call.states[k]) call.states[k] = static_cast<const char*>(call.states[k]) + step;
      call.last[k] = static_cast<char*>(call.last[k]) + step;
    }
  }
  return {std::move(y), std::move(last)};
}

// A step of a built-in cell in inference, x (B, I) and the states (B, H): the new states. Views with a dimension of
// time would take as long as a small step.
Tensors step(const Tensor& x, const MaybeTensors& states, const Tensors& weights, StringHandle cell, bool bias,
             int64_t hidden_size, const MaybeString& activation, const std::optional<Tensors>& scales, bool float_rows,
             int64_t parts, int64_t packed) {
  Call call = first_layer(x, states, weights, cell, std::nullopt, false, bias, hidden_size, 0, activation, std::nullopt,
                          scales, float_rows, parts, packed, std::nullopt);
  Tensors last;
  for (int k = 0; k < call.cell->states; ++k) {
    last.push_back(empty(call.dtype, {call.B, call.H}));
    call.last[k] = last.back().mutable_data_ptr();
  }
  std::swap(call.y, call.last[0]);  // the output is the new h: it is written once
  if (call.B > 0) run_forward(call);
  return last;
}

std::tuple<Tensor, Tensors, Tensors, Tensors, Tensors> layer_backward(
    const Tensor& dy, const Tensors& dlast, const MaybeTensor& dcells, StringHandle cell, const Tensor& x,
    const MaybeTensors& states, const Tensors& weights, const Flags& reverse, bool bias, bool project,
    const MaybeString& activation, const MaybeString& gate, const MaybeTensor& lengths, const MaybeTensor& reset,
    const MaybeTensors& reset_states, const MaybeTensor& h_mask, const MaybeTensors& zone, bool layer_norm, double eps,
    int64_t hidden_size, const MaybeTensors& extras, int64_t parts, int64_t, const Tensor& y, const Tensors& saved,
    const Flags& needs) {
  Call call = layer_call(cell, x, states, weights, reverse, bias, project, activation, gate, lengths, reset,
                         reset_states, h_mask, zone, layer_norm, eps, hidden_size, extras, parts, 0);
  check_trainable(call);
  call.y = const_cast<void*>(call.take(y, {call.T, call.B, call.D * call.P}, "y"));
  call.take_dy(dy);
  STD_TORCH_CHECK(dlast.empty() || int64_t(dlast.size()) == call.cell->states, "rnnkernels: expected ",
                  call.cell->states, " gradients of final states, got ", dlast.size());
  STD_TORCH_CHECK(needs.size() == 4, "rnnkernels: needs must have 4 elements, got ", needs.size());
  for (size_t k = 0; k < dlast.size(); ++k)
    call.dlast[k] = call.take(dlast[k], {call.D, call.B, k ? call.H : call.P}, k ? "dc_n" : "dh_n");
  STD_TORCH_CHECK(int64_t(saved.size()) == (call.planes() > 0) + (call.histories() > 0),
                  "rnnkernels: the forward pass was not run with save=True");
  if (call.planes())
    call.gates = const_cast<void*>(call.take(saved[0], {call.D, call.T, call.B, call.planes(), call.H}, "gates"));
  const int32_t type = call.dtype, accumulate = call.accumulate();
  if (call.histories())
    call.cells = const_cast<void*>(
        call.take(saved.back(), {call.histories() * call.D, call.T, call.B, call.H}, "cells", accumulate));
  if (dcells)
    call.dcells = call.take(*dcells, {call.histories() * call.D, call.T, call.B, call.H}, "dcells", accumulate);

  Tensor dx = needs[0] ? (x.dim() == 4 ? empty(type, {x.size(0), call.T, call.B, call.I})
                                       : empty(type, {call.T, call.B, call.I}))
                       : empty(type, {0});
  if (needs[0]) call.dx = dx.mutable_data_ptr();
  Tensors dstates, dreset_states, dweights, dextras;
  auto like_states = [&](size_t n, Tensors& results, void** data) {
    for (size_t k = 0; needs[1] && k < n; ++k) {
      results.push_back(empty(type, {call.D, call.B, k ? call.H : call.P}));
      data[k] = results.back().mutable_data_ptr();
    }
  };
  like_states(given(states).size(), dstates, call.dstates);
  like_states(given(reset_states).size(), dreset_states, call.dreset_states);
  for (size_t i = 0; needs[2] && i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    auto make = call.B > 0 ? empty : zeros;
    dweights.push_back(w.dim() == 2 ? make(type, {w.size(0), w.size(1)}) : make(type, {w.size(0)}));
    call.dweights.push_back(dweights.back().mutable_data_ptr());
  }
  for (size_t k = 0; needs[3] && k < call.extras.size(); ++k) {
    const std::vector<int64_t> sizes = call.extra_sizes(k);
    dextras.push_back(empty_of(type, sizes.data(), int64_t(sizes.size())));
    call.dextras.push_back(dextras.back().mutable_data_ptr());
  }
  if (call.B > 0) run_backward(call);
  return {std::move(dx), std::move(dstates), std::move(dweights), std::move(dreset_states), std::move(dextras)};
}

std::string schedule(StringHandle cell, int32_t dtype, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                     bool, bool layer_norm, int64_t parts, bool packed) {
  LayerCall call{};
  const std::string cell_name = text(cell);
  const bool quantized = dtype == aoti_torch_dtype_int8();
  call.storage = quantized ? Storage::float32 : storage_of(dtype);
  const std::shared_ptr<const CellInfo> owner = find_cell(cell_name);
  call.cell = owner.get();
  STD_TORCH_CHECK(call.cell != nullptr, "rnnkernels: the C++ backend has no cell ", cell_name);
  STD_TORCH_CHECK(T > 0 && B >= 0 && I >= 0 && H > 0 && P > 0 && D > 0, "rnnkernels: expected positive sizes");
  call.T = T, call.B = B, call.I = I, call.H = H, call.P = P, call.D = D;
  call.layer_norm = layer_norm, call.parts = int(parts), call.kept_place = packed ? 0 : -1;
  if (quantized) call.scales.resize(std::max(call.matrices(), 1) * D);
  return std::string(instruction_set().name) + ": " + instruction_set().schedule(call).text();
}

std::string names() {
  std::string all = instruction_set().name;
  for (const InstructionSet& set : instruction_sets())
    if (set.supported() && set.name != std::string(instruction_set().name)) all += "," + std::string(set.name);
  return all;
}

int64_t freeze(const Tensors& weights) {
  std::vector<const void*> data;
  for (const Tensor& w : weights) data.push_back(w.const_data_ptr());
  return keep_weights(std::move(data));
}
void unfreeze(int64_t number) { forget_weights(number); }

void use(StringHandle name) { use_instruction_set(text(name)); }
}  // namespace

// The same as in rnnkernels/op/schema.py, which defines them where this extension is not there.
#define ARGUMENTS                                                                                                     \
  "str cell, Tensor x, Tensor[]? states, Tensor[] weights, int[] reverse, bool bias, bool project, str? activation, " \
  "str? recurrent_activation, Tensor? lengths, Tensor? reset, Tensor[]? reset_states, Tensor? h_mask, "               \
  "Tensor[]? zone, bool layer_norm, float eps, int hidden_size, Tensor[]? extras, int parts, int packed"
#define LAYER "(" ARGUMENTS ", bool save) -> (Tensor y, Tensor[] last, Tensor[] saved)"
#define LAYER_BACKWARD                                                                                     \
  "(Tensor dy, Tensor[] dlast, Tensor? dcells, " ARGUMENTS                                                 \
  ", Tensor y, Tensor[] saved, int[] needs) -> (Tensor dx, Tensor[] dstates, Tensor[] dweights, Tensor[] " \
  "dreset_states, Tensor[] dextras)"
#define STACK                                                                                                \
  "(Tensor x, Tensor[]? states, Tensor[] weights, str cell, int num_layers, bool bidirectional, bool bias, " \
  "int hidden_size, int proj_size=0, str? activation=None, Tensor? lengths=None, Tensor[]? scales=None, "    \
  "bool float_rows=False, int parts=0, int packed=0, Tensor[]? extras=None) -> (Tensor y, Tensor[] last)"
STABLE_TORCH_LIBRARY(rnnkernels, m) {
  m.def("layer" LAYER), m.def("plain_layer" LAYER);
  m.def("layer_backward" LAYER_BACKWARD), m.def("plain_layer_backward" LAYER_BACKWARD);
  m.def("stack" STACK), m.def("plain_stack" STACK);
  m.def(
      "plain_step(Tensor x, Tensor[]? states, Tensor[] weights, str cell, bool bias, int hidden_size, "
      "str? activation=None, Tensor[]? scales=None, bool float_rows=False, int parts=0, int packed=0) -> Tensor[]");
  m.def(
      "schedule(str cell, ScalarType dtype, int T, int B, int I, int H, int P, int D, bool training, "
      "bool layer_norm=False, int parts=0, bool packed=False) -> str");
  m.def("freeze(Tensor[] weights) -> int");  // a number for `packed`; the weights stay where they are until unfreeze
  m.def("unfreeze(int packed) -> ()");
  m.def("instruction_sets() -> str");
  m.def("use_instruction_set(str name) -> ()");  // for tests: for the whole process, "" for the default
}
STABLE_TORCH_LIBRARY_IMPL(rnnkernels, CPU, m) {
  // with autograd, and without for callers that have their own: see rnnkernels/op/schema.py
  m.impl("layer", TORCH_BOX(&layer));
  m.impl("plain_layer", TORCH_BOX(&layer));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
  m.impl("plain_layer_backward", TORCH_BOX(&layer_backward));
  m.impl("stack", TORCH_BOX(&stack));
  m.impl("plain_stack", TORCH_BOX(&stack));
  m.impl("plain_step", TORCH_BOX(&step));
}
STABLE_TORCH_LIBRARY_IMPL(rnnkernels, CompositeExplicitAutograd, m) {
  m.impl("schedule", TORCH_BOX(&schedule));
  m.impl("freeze", TORCH_BOX(&freeze));
  m.impl("unfreeze", TORCH_BOX(&unfreeze));
  m.impl("instruction_sets", TORCH_BOX(&names));
  m.impl("use_instruction_set", TORCH_BOX(&use));
}
