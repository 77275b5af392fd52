// The kernels as PyTorch ops on the CPU, on torch's stable ABI. The only file that knows torch.
// Schemas and shapes are defined in rnnkernels/ops.py; here the tensors become a LayerCall.
#include <Python.h>
#include <pthread.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "team.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

namespace {
bool forked = false;  // a forked child has none of its parent's threads, and OpenMP does not notice
[[maybe_unused]] const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
}  // namespace

int64_t thread_count() { return forked ? 1 : torch::stable::get_num_threads(); }

void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 1 || thread_count() == 1) return body(0, n);
  torch::stable::parallel_for(0, n, 1, [&](int64_t lo, int64_t hi) { body(lo, hi); });
}

namespace {
// aoti_torch_empty_strided does not go through the dispatcher, which costs more than the memory of a small output.
Tensor empty(ScalarType type, std::initializer_list<int64_t> sizes) {
  std::array<int64_t, 5> strides;
  int64_t stride = 1, dim = int64_t(sizes.size());
  for (int64_t i = dim - 1; i >= 0; --i) strides[i] = stride, stride *= std::max<int64_t>(sizes.begin()[i], 1);
  int32_t dtype = type == ScalarType::Float      ? aoti_torch_dtype_float32()
                  : type == ScalarType::Double   ? aoti_torch_dtype_float64()
                  : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                 : aoti_torch_dtype_float16();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes.begin(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor zeros(ScalarType type, std::initializer_list<int64_t> sizes) {
  Tensor t = empty(type, sizes);
  return torch::stable::zero_(t);
}

Storage storage_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Storage::float32;
    case ScalarType::Double:
      return Storage::float64;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Half:
      return Storage::float16;
    default:
      STD_TORCH_CHECK(false, "rnnkernels: expected float32, float64, bfloat16 or float16 on the CPU");
  }
}

// A LayerCall from tensors that have been checked; holds the copies of those that were not contiguous.
struct Call : LayerCall {
  Tensors held;
  ScalarType type;

  const void* take(const Tensor& t, std::initializer_list<int64_t> sizes, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == type, "rnnkernels: ", name, " and x must have the same dtype");
    const int64_t dim = t.dim();
    STD_TORCH_CHECK(dim == int64_t(sizes.size()), "rnnkernels: ", name, " must have ", sizes.size(),
                    " dimensions, got ", dim);
    for (int64_t i = 0; i < dim; ++i)
      STD_TORCH_CHECK(t.size(i) == sizes.begin()[i], "rnnkernels: ", name, " must have size ", sizes.begin()[i],
                      " in dimension ", i, ", got ", t.size(i));
    return t.is_contiguous() ? t.data_ptr() : hold(torch::stable::contiguous(t));
  }

  const void* hold(Tensor t) {
    held.push_back(std::move(t));
    return held.back().data_ptr();
  }

  Call(const std::string& cell_name, const Tensor& x_, const Tensors& states_, const Tensors& weights_,
       const std::vector<bool>& reverse_, bool bias_, bool project_, const std::optional<std::string>& activation,
       const std::optional<std::string>& gate, const std::optional<Tensor>& lengths_, bool other_stages)
      : LayerCall{}, type(x_.scalar_type()) {
    storage = storage_of(type);
    cell = find_cell(cell_name);
    STD_TORCH_CHECK(cell != nullptr, "rnnkernels: the C++ backend has no cell ", cell_name);
    bias = bias_, project = project_, relu = activation && *activation == "relu", reverse = reverse_;
    const bool known = !activation || *activation == "tanh" || (relu && cell->has_relu);
    STD_TORCH_CHECK(!other_stages && known && (!gate || *gate == "sigmoid"),
                    "rnnkernels: the C++ backend does not have a stage or an activation of this call");
    STD_TORCH_CHECK(!project || cell->has_projection, "rnnkernels: ", cell_name, " has no projection");
    const int64_t G = cell->gates;

    int64_t dim = x_.dim();
    STD_TORCH_CHECK(dim == 3 || dim == 4, "rnnkernels: x must have 3 or 4 dimensions, got ", dim);
    int64_t X = dim == 4 ? x_.size(0) : 1;
    T = x_.size(dim - 3), B = x_.size(dim - 2), I = x_.size(dim - 1), D = X * int64_t(reverse.size());
    const bool whole_rows = I <= 1 || x_.stride(dim - 1) == 1;
    const Tensor xs = whole_rows ? x_ : torch::stable::contiguous(x_);
    x = whole_rows ? xs.data_ptr() : hold(xs);
    x_stride_X = dim == 4 ? xs.stride(0) : 0, x_stride_T = xs.stride(dim - 3), x_stride_B = xs.stride(dim - 2);

    int64_t each = 2 + 2 * bias + project;
    STD_TORCH_CHECK(D > 0 && int64_t(weights_.size()) == D * each, "rnnkernels: expected ", D * each, " weights, got ",
                    weights_.size());
    STD_TORCH_CHECK(weights_[1].dim() == 2, "rnnkernels: weight_hh must have 2 dimensions, got ", weights_[1].dim());
    H = weights_[1].size(0) / G, P = weights_[1].size(1);
    STD_TORCH_CHECK(T > 0 && H > 0 && P > 0,
                    "rnnkernels: expected at least one step, hidden unit and output, got T = ", T, ", H = ", H,
                    ", P = ", P);
    STD_TORCH_CHECK(project || H == P, "rnnkernels: weight_hh must have ", H, " columns, got ", P);
    for (int64_t i = 0; i < int64_t(weights_.size()); ++i) {
      int64_t k = i % each;
      const Tensor& w = weights_[i];
      weights.push_back(k == 0                     ? take(w, {G * H, I}, "weight_ih")
                        : k == 1                   ? take(w, {G * H, P}, "weight_hh")
                        : project && k == each - 1 ? take(w, {P, H}, "weight_hr")
                                                   : take(w, {G * H}, "bias"));
    }
    STD_TORCH_CHECK(states_.empty() || int64_t(states_.size()) == cell->states, "rnnkernels: expected ", cell->states,
                    " states, got ", states_.size());
    for (size_t k = 0; k < states_.size(); ++k) states[k] = take(states_[k], {D, B, k ? H : P}, k ? "c0" : "h0");
    if (lengths_) {
      STD_TORCH_CHECK(lengths_->scalar_type() == ScalarType::Long && lengths_->size(lengths_->dim() - 1) == B &&
                          (lengths_->dim() == 1 || (lengths_->dim() == 2 && lengths_->size(0) == X)),
                      "rnnkernels: lengths must be int64 of shape (B,) or (X, B)");
      lengths = static_cast<const int64_t*>(hold(torch::stable::contiguous(*lengths_)));
      lengths_stride_X = lengths_->dim() == 2 ? B : 0;
    }
  }

  ScalarType accumulate() const { return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }
};

bool any_of(const std::optional<Tensor>& reset, const Tensors& reset_states, const std::optional<Tensor>& h_mask,
            const Tensors& zone, bool layer_norm) {
  return reset || !reset_states.empty() || h_mask || !zone.empty() || layer_norm;
}

using MaybeTensor = std::optional<Tensor>;
using MaybeString = std::optional<std::string>;
using Bools = std::vector<bool>;

std::tuple<Tensor, Tensors, Tensors> layer(const std::string& cell, const Tensor& x, const Tensors& states,
                                           const Tensors& weights, const Bools& reverse, bool bias, bool project,
                                           const MaybeString& activation, const MaybeString& gate,
                                           const MaybeTensor& lengths, const MaybeTensor& reset,
                                           const Tensors& reset_states, const MaybeTensor& h_mask, const Tensors& zone,
                                           bool layer_norm, double, bool save) {
  Call call(cell, x, states, weights, reverse, bias, project, activation, gate, lengths,
            any_of(reset, reset_states, h_mask, zone, layer_norm));
  Tensor y = empty(call.type, {call.T, call.B, call.D * call.P});
  call.y = y.mutable_data_ptr();
  Tensors last, saved;
  for (int k = 0; k < call.cell->states; ++k) {
    last.push_back(empty(call.type, {call.D, call.B, k ? call.H : call.P}));
    call.last[k] = last.back().mutable_data_ptr();
  }
  if (save && call.cell->kept) {
    saved.push_back(empty(call.type, {call.D, call.T, call.B, call.cell->kept, call.H}));
    call.gates = saved.back().mutable_data_ptr();
  }
  if (save && call.cell->states > 1) {
    saved.push_back(empty(call.accumulate(), {call.D, call.T, call.B, call.H}));
    call.cells = saved.back().mutable_data_ptr();
  }
  if (call.B > 0) instruction_set().forward(call);
  return {std::move(y), std::move(last), std::move(saved)};
}

std::tuple<Tensor, Tensors, Tensors, Tensors> layer_backward(
    const Tensor& dy, const Tensors& dlast, const MaybeTensor& dcells, const std::string& cell, const Tensor& x,
    const Tensors& states, const Tensors& weights, const Bools& reverse, bool bias, bool project,
    const MaybeString& activation, const MaybeString& gate, const MaybeTensor& lengths, const MaybeTensor& reset,
    const Tensors& reset_states, const MaybeTensor& h_mask, const Tensors& zone, bool layer_norm, double,
    const Tensor& y, const Tensors& saved, const Bools& needs) {
  Call call(cell, x, states, weights, reverse, bias, project, activation, gate, lengths,
            any_of(reset, reset_states, h_mask, zone, layer_norm));
  call.y = const_cast<void*>(call.take(y, {call.T, call.B, call.D * call.P}, "y"));
  call.dy = call.take(dy, {call.T, call.B, call.D * call.P}, "dy");
  STD_TORCH_CHECK(dlast.empty() || int64_t(dlast.size()) == call.cell->states, "rnnkernels: expected ",
                  call.cell->states, " gradients of final states, got ", dlast.size());
  STD_TORCH_CHECK(needs.size() == 3, "rnnkernels: needs must have 3 elements, got ", needs.size());
  for (size_t k = 0; k < dlast.size(); ++k)
    call.dlast[k] = call.take(dlast[k], {call.D, call.B, k ? call.H : call.P}, k ? "dc_n" : "dh_n");
  STD_TORCH_CHECK(int64_t(saved.size()) == (call.cell->kept > 0) + (call.cell->states > 1),
                  "rnnkernels: the forward pass was not run with save=True");
  if (call.cell->kept)
    call.gates = const_cast<void*>(call.take(saved[0], {call.D, call.T, call.B, call.cell->kept, call.H}, "gates"));
  ScalarType type = call.type;
  call.type = call.accumulate();
  if (call.cell->states > 1)
    call.cells = const_cast<void*>(call.take(saved.back(), {call.D, call.T, call.B, call.H}, "cells"));
  if (dcells) call.dcells = call.take(*dcells, {call.D, call.T, call.B, call.H}, "dcells");
  call.type = type;

  Tensor dx = needs[0] ? (x.dim() == 4 ? empty(type, {x.size(0), call.T, call.B, call.I})
                                       : empty(type, {call.T, call.B, call.I}))
                       : empty(type, {0});
  if (needs[0]) call.dx = dx.mutable_data_ptr();
  Tensors dstates, dweights;
  for (size_t k = 0; needs[1] && k < states.size(); ++k) {
    dstates.push_back(empty(type, {call.D, call.B, k ? call.H : call.P}));
    call.dstates[k] = dstates.back().mutable_data_ptr();
  }
  for (size_t i = 0; needs[2] && i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    auto make = call.B > 0 ? empty : zeros;
    dweights.push_back(w.dim() == 2 ? make(type, {w.size(0), w.size(1)}) : make(type, {w.size(0)}));
    call.dweights.push_back(dweights.back().mutable_data_ptr());
  }
  if (call.B > 0) instruction_set().backward(call);
  return {std::move(dx), std::move(dstates), std::move(dweights), Tensors{}};
}

std::string schedule(std::string cell, ScalarType type, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P,
                     int64_t D, bool) {
  LayerCall call{};
  call.storage = storage_of(type);
  call.cell = find_cell(cell);
  STD_TORCH_CHECK(call.cell != nullptr, "rnnkernels: the C++ backend has no cell ", cell);
  STD_TORCH_CHECK(T > 0 && B >= 0 && I >= 0 && H > 0 && P > 0 && D > 0, "rnnkernels: expected positive sizes");
  call.T = T, call.B = B, call.I = I, call.H = H, call.P = P, call.D = D;
  return std::string(instruction_set().name) + ": " + instruction_set().schedule(call).text();
}

std::string names() {
  std::string all = instruction_set().name;
  for (const InstructionSet& set : instruction_sets())
    if (set.supported() && set.name != std::string(instruction_set().name)) all += "," + std::string(set.name);
  return all;
}
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rnnkernels, CPU, m) {
  m.impl("layer", TORCH_BOX(&layer));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}
STABLE_TORCH_LIBRARY_IMPL(rnnkernels, CompositeExplicitAutograd, m) {
  m.impl("schedule", TORCH_BOX(&schedule));
  m.impl("instruction_sets", TORCH_BOX(&names));
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
