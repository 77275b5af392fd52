// The arguments of the ops, tensors above all, checked and put together as a LayerCall. Part of ops.cpp: knows torch.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../cells/layer_call.h"
#include "../machine/pages.h"

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;
using MaybeTensors = std::optional<Tensors>;  // AOTInductor knows no empty list: it gives none instead
using MaybeString = std::optional<StringHandle>;
using Bools = std::vector<bool>;
using Flags = std::vector<int64_t>;  // bools as they arrive: TorchScript traces no list of bools
using Sizes = std::initializer_list<int64_t>;

inline const Tensors& given(const MaybeTensors& tensors) {
  static const Tensors none;
  return tensors ? *tensors : none;
}

// Strings arrive as handles that have to be deleted: torch's own conversion to std::string leaks one at every call.
inline std::string text(StringHandle handle) {
  const char* data;
  size_t length;
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  std::string copy(data, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return copy;
}

inline std::optional<std::string> text(const MaybeString& handle) {
  return handle ? std::make_optional(text(*handle)) : std::nullopt;
}

// A dtype in torch's numbers.
inline int32_t dtype_of(const Tensor& t) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

inline Storage storage_of(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return Storage::float32;
  if (dtype == aoti_torch_dtype_float64()) return Storage::float64;
  if (dtype == aoti_torch_dtype_bfloat16()) return Storage::bfloat16;
  STD_TORCH_CHECK(dtype == aoti_torch_dtype_float16(),
                  "rnnkernels: expected float32, float64, bfloat16 or float16 on the CPU");
  return Storage::float16;
}

// aoti_torch_empty_strided does not go through the dispatcher, which costs more than the memory of a small output.
inline Tensor empty_of(int32_t dtype, const int64_t* sizes, int64_t dim) {
  std::array<int64_t, 5> strides;
  int64_t stride = 1;
  for (int64_t i = dim - 1; i >= 0; --i) strides[i] = stride, stride *= std::max<int64_t>(sizes[i], 1);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  Tensor t(handle);
  prefer_large_pages(t.mutable_data_ptr(),
                     dim ? size_t(sizes[0] * strides[0]) * aoti_torch_dtype_element_size(dtype) : 0);
  return t;
}
inline Tensor empty(int32_t dtype, Sizes sizes) { return empty_of(dtype, sizes.begin(), int64_t(sizes.size())); }

inline Tensor zeros(int32_t dtype, Sizes sizes) {
  Tensor t = empty(dtype, sizes);
  return torch::stable::zero_(t);
}

// What torch calls contiguous, copied into memory as above.
inline Tensor in_order(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = empty_of(dtype_of(t), t.sizes().data(), t.dim());
  return torch::stable::copy_(copy, t);
}

// A LayerCall from tensors, which are checked on the way in; holds the copies of those that were not contiguous. Data
// is read by const_data_ptr, because a mutable pointer to a lazy clone makes torch copy it.
struct Call : LayerCall {
  Tensors held;
  std::shared_ptr<const CellInfo> owner;  // of the cell
  std::shared_ptr<KeptWeights> kept_owner;
  int32_t dtype;
  int64_t X;     // groups of directions that have an input of their own
  bool grouped;  // X is a dimension

  // All but the weights and the states.
  Call(const std::string& cell_name, const Tensor& x_, Bools reverse_, bool bias_, bool project_,
       const std::optional<std::string>& activation, const std::optional<std::string>& recurrent_activation,
       const MaybeTensor& lengths_)
      : LayerCall{}, dtype(dtype_of(x_)) {
    storage = storage_of(dtype);
    owner = find_cell(cell_name), cell = owner.get();
    STD_TORCH_CHECK(cell != nullptr, "rnnkernels: the C++ backend has no cell ", cell_name);
    STD_TORCH_CHECK(!cell->program || (!activation && !recurrent_activation), "rnnkernels: the cell ", cell->name,
                    " is a program, which has its activations in it");
    bias = bias_, project = project_, reverse = std::move(reverse_);
    if (activation) take_activation(*activation, act);
    if (recurrent_activation) take_activation(*recurrent_activation, gate);
    STD_TORCH_CHECK(!project || cell->has_projection, "rnnkernels: ", cell->name, " has no projection");

    const auto sizes = x_.sizes();
    const int64_t dim = int64_t(sizes.size());
    STD_TORCH_CHECK(dim >= 2 && dim <= 4, "rnnkernels: x must have 2 to 4 dimensions, got ", dim);
    T = dim > 2 ? sizes[dim - 3] : 1, B = sizes[dim - 2], I = sizes[dim - 1];
    grouped = dim == 4, X = grouped ? sizes[0] : 1, D = X * int64_t(reverse.size());
    const bool whole_rows = I <= 1 || x_.stride(dim - 1) == 1;
    if (!whole_rows) hold(in_order(x_));
    const Tensor& xs = whole_rows ? x_ : held.back();
    const auto strides = xs.strides();
    x = xs.const_data_ptr(), x_stride_X = dim == 4 ? strides[0] : 0;
    x_stride_T = dim > 2 ? strides[dim - 3] : 0, x_stride_B = strides[dim - 2];

    if (lengths_) {
      const bool each = lengths_->dim() == 2;  // a group has lengths of its own
      STD_TORCH_CHECK(dtype_of(*lengths_) == aoti_torch_dtype_int64() &&
                          (has_sizes(*lengths_, {B}) || has_sizes(*lengths_, {X, B})),
                      "rnnkernels: lengths must be int64 of shape (B,) or (X, B)");
      lengths = static_cast<const int64_t*>(hold(in_order(*lengths_)));
      lengths_stride_X = each ? B : 0;
    }
  }
  void take_parts(int64_t n) {
    STD_TORCH_CHECK(n >= 0 && n <= 3, "rnnkernels: expected parts from 0 to 3, got ", n);
    parts = int(n);
  }
  static void take_activation(const std::string& name, Activation& to) {
    STD_TORCH_CHECK(find_activation(name, to),
                    "rnnkernels: expected an activation out of tanh, relu, sigmoid, hard_sigmoid, linear, got ", name);
  }

  int64_t weights_per_layer() const { return D * (vector(0) + int64_t(vectors())); }
  size_t vectors() const { return cell->program ? cell->program->vectors.size() : 0; }

  // The weights of one layer of H hidden units and P outputs.
  void take_weights(const Tensor* given, int64_t H_, int64_t P_, const Tensor* given_scales = nullptr) {
    const int64_t GX = cell->ih_gates, GR = cell->hh_gates, n = weights_per_layer(), each = n / D;
    H = H_, P = P_;
    STD_TORCH_CHECK(T > 0 && H > 0 && P > 0,
                    "rnnkernels: expected at least one step, hidden unit and output, got T = ", T, ", H = ", H,
                    ", P = ", P);
    STD_TORCH_CHECK(project || H == P, "rnnkernels: weight_hh must have ", H, " columns, got ", P);
    const bool is_given = cell->program && cell->program->given;
    const int64_t expected = is_given ? int64_t(cell->program->inputs.size()) * H : I;
    STD_TORCH_CHECK(I == expected, "rnnkernels: x must have size ", expected, " in its last dimension, got ", I);
    const int32_t type = given_scales ? aoti_torch_dtype_int8() : dtype;
    scales.resize(given_scales ? matrices() * D : 0);
    for (size_t i = 0; i < scales.size(); ++i)
      scales[i] =
          static_cast<const float*>(take(given_scales[i], {(int(i) % matrices() < hh() ? GX : GR) * H}, "scale"));
    weights.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t k = i % each;
      weights[i] = k < hh()                       ? take(given[i], {GX * H, I}, "weight_ih", type)
                   : k < bias_ih()                ? take(given[i], {GR * H, P}, "weight_hh", type)
                   : k < projection()             ? take(given[i], {(k < bias_hh() ? GX : GR) * H}, "bias")
                   : project && k == projection() ? take(given[i], {P, H}, "weight_hr")
                   : k >= vector(0)               ? take(given[i], {H}, "vector of a program")
                   : cell->program || k < norm(2) ? take(given[i], {(k < norm(hh()) ? GX : GR) * H}, "weight of a norm")
                                                  : take(given[i], {H}, "weight or bias of the norm of c");
    }
  }

  // Those that stay packed, if they are the weights of this call; after weights.
  void take_kept(const std::shared_ptr<KeptWeights>& given) {
    kept_place = given ? given->find(weights) : -1;
    kept = kept_place < 0 ? nullptr : given.get();
    kept_owner = given;
  }

  // The states of one layer or, where they are stacked, of several; of none: (B, P) and (B, H), of a single step.
  void take_states(const Tensors& given, int64_t layers) { take_states(given, layers, states, "states", "h0", "c0"); }

  void take_states(const Tensors& given, int64_t layers, const void** into, const char* names, const char* h,
                   const char* c) {
    STD_TORCH_CHECK(given.empty() || int64_t(given.size()) == cell->states, "rnnkernels: expected ", cell->states, " ",
                    names, ", got ", given.size());
    for (size_t k = 0; k < given.size(); ++k) {
      const int64_t width = k ? H : P;
      into[k] = layers ? take(given[k], {layers * D, B, width}, k ? c : h) : take(given[k], {B, width}, k ? c : h);
    }
  }

  // The inputs of a program besides x; after weights.
  void take_extras(const Tensors& given) {
    const size_t n = cell->program ? cell->program->extras.size() : 0;
    STD_TORCH_CHECK(given.size() == n, "rnnkernels: expected ", n, " step and sequence inputs, got ", given.size());
    for (size_t k = 0; k < n; ++k) {
      const bool step = int(k) < cell->program->steps, narrow = cell->program->narrow[k];
      const int64_t width = narrow ? 1 : H;
      const std::string& name = cell->program->extras[k];
      Tensor t = given[k];
      check_device(t);
      STD_TORCH_CHECK(dtype_of(t) == dtype, "rnnkernels: ", name, " and x must have the same dtype");
      const std::vector<int64_t> sizes = extra_sizes(k);
      const auto found = t.sizes();
      STD_TORCH_CHECK(found.size() == sizes.size(), "rnnkernels: ", name, " must have ", sizes.size(),
                      " dimensions, got ", found.size());
      for (size_t i = 0; i < sizes.size(); ++i)
        STD_TORCH_CHECK(found[i] == sizes[i], "rnnkernels: ", name, " must have size ", sizes[i], " in dimension ", i,
                        ", got ", found[i]);
      const int64_t last = int64_t(sizes.size()) - 1;
      if (width > 1 && t.stride(last) != 1) t = in_order(t);
      const Extra extra{nullptr, grouped ? t.stride(0) : 0, step ? t.stride(last - 2) : 0, t.stride(last - 1), narrow};
      extras.push_back(extra), extras.back().data = hold(std::move(t));
    }
  }
  std::vector<int64_t> extra_sizes(size_t k) const {
    std::vector<int64_t> sizes;
    if (grouped) sizes.push_back(X);
    if (int(k) < cell->program->steps) sizes.push_back(T);
    sizes.push_back(B), sizes.push_back(cell->program->narrow[k] ? 1 : H);
    return sizes;
  }

  // The stages of the step; after weights.
  void take_stages(const MaybeTensor& reset_, const Tensors& reset_states_, const MaybeTensor& h_mask_,
                   const Tensors& zone_) {
    if (reset_) {
      STD_TORCH_CHECK(
          dtype_of(*reset_) == aoti_torch_dtype_bool() && (has_sizes(*reset_, {T, B}) || has_sizes(*reset_, {X, T, B})),
          "rnnkernels: reset must be bool of shape (T, B) or (X, T, B)");
      reset_stride_X = reset_->dim() == 3 ? T * B : 0;
      reset = static_cast<const bool*>(hold(in_order(*reset_)));
    }
    take_states(reset_states_, 1, reset_states, "reset_states", "reset h0", "reset c0");
    if (h_mask_) {
      STD_TORCH_CHECK(cell->hh_gates > 0, "rnnkernels: ", cell->name, " has no recurrent product for h_mask");
      STD_TORCH_CHECK(h_mask_->dim() == 3, "rnnkernels: h_mask must have 3 dimensions, got ", h_mask_->dim());
      h_mask = take_coefficients(*h_mask_, P, "h_mask");
    }
    STD_TORCH_CHECK(zone_.empty() || int64_t(zone_.size()) == cell->states, "rnnkernels: expected ", cell->states,
                    " zones, got ", zone_.size());
    for (size_t k = 0; k < zone_.size(); ++k) zone[k] = take_coefficients(zone_[k], k ? H : P, "zone");
  }

  // A tensor of bools or numbers that can be broadcast to (T, D, B, n).
  Coefficients take_coefficients(Tensor t, int64_t n, const char* name) {
    check_device(t);
    const int64_t dim = t.dim(), full[] = {T, D, B, n};
    int64_t strides[4] = {};
    STD_TORCH_CHECK(dim >= 1 && dim <= 4, "rnnkernels: ", name, " must have 1 to 4 dimensions, got ", dim);
    const bool bools = dtype_of(t) == aoti_torch_dtype_bool();
    if (!bools && dtype_of(t) != accumulate())
      t = torch::stable::to(t, storage == Storage::float64 ? torch::headeronly::ScalarType::Double
                                                           : torch::headeronly::ScalarType::Float);
    if (t.stride(dim - 1) > 1) t = in_order(t);
    for (int64_t i = 0; i < dim; ++i) {
      const int64_t k = 4 - dim + i, size = t.size(i);
      STD_TORCH_CHECK(size == full[k] || size == 1, "rnnkernels: ", name, " must have size 1 or ", full[k],
                      " in dimension ", i, ", got ", size);
      strides[k] = size == 1 ? 0 : t.stride(i);
    }
    return {hold(t), strides[0], strides[1], strides[2], strides[3] != 0, bools};
  }

  static bool has_sizes(const Tensor& t, Sizes sizes) {
    const auto found = t.sizes();
    return found.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), found.begin());
  }

  // The data of a tensor of these sizes and of the dtype of x.
  const void* take(const Tensor& t, Sizes sizes, const char* name) { return take(t, sizes, name, dtype); }

  const void* take(const Tensor& t, Sizes sizes, const char* name, int32_t type) {
    check(t, sizes, name, type);
    return t.is_contiguous() ? data_of(t) : hold(in_order(t));
  }

  // The gradient of y. There may be a single row for all: the gradient of a sum is one number.
  void take_dy(Tensor t) {
    check(t, {T, B, D * P}, "dy", dtype);
    const bool one = B > 0 && t.stride(0) == 0 && t.stride(1) == 0;
    if (one) t = torch::stable::narrow(t, 0, 0, 1), t = torch::stable::narrow(t, 1, 0, 1);
    dy_stride_T = one ? 0 : B * D * P, dy_stride_B = one ? 0 : D * P;
    dy = hold(in_order(t));
  }

  static void check(const Tensor& t, Sizes sizes, const char* name, int32_t type) {
    check_device(t);
    STD_TORCH_CHECK(dtype_of(t) == type, "rnnkernels: ", name,
                    type == aoti_torch_dtype_int8() ? " must be int8" : " and x must have the same dtype");
    const auto found = t.sizes();
    STD_TORCH_CHECK(found.size() == sizes.size(), "rnnkernels: ", name, " must have ", sizes.size(),
                    " dimensions, got ", found.size());
    for (size_t i = 0; i < sizes.size(); ++i)
      STD_TORCH_CHECK(found[i] == sizes.begin()[i], "rnnkernels: ", name, " must have size ", sizes.begin()[i],
                      " in dimension ", i, ", got ", found[i]);
  }

  // Wrappers of other tensors have no data: where the dispatcher looks for them, their class is asked instead.
  static const void* data_of(const Tensor& t) {
    const void* data = t.const_data_ptr();
    STD_TORCH_CHECK(
        data || t.numel() == 0,
        "rnnkernels: expected plain tensors, as x is one, but got one of a subclass without data of its own");
    return data;
  }

  // The dispatcher looks at the device of every argument but those of optional lists.
  static void check_device(const Tensor& t) {
    int32_t device = aoti_torch_device_type_cpu();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device));
    STD_TORCH_CHECK(device == aoti_torch_device_type_cpu(),
                    "rnnkernels: expected all tensors on cpu, the device of x, but got ",
                    device == aoti_torch_device_type_meta() ? "meta" : "another");
  }

  const void* hold(Tensor t) {
    held.push_back(std::move(t));
    return data_of(held.back());
  }

  int32_t accumulate() const {
    return storage == Storage::float64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }
};
