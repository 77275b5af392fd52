// A stack of layers that keeps weights and state between calls, for Python. Its functions take addresses as integers
// and do not pass torch's dispatcher, which would cost more than a small step; rnnkernels/tools/stepper.py checks
// arguments.
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../machine/instruction_set.h"
#include "../threads/scratch.h"
#include "../threads/team.h"

namespace {
constexpr char kName[] = "rnnkernels._C.stepper";
constexpr double kLarge = 1e6;       // operations of a call that are worth more threads, and letting other Python go on
constexpr double kPerBarrier = 1e5;  // and those of a member between two barriers
constexpr int64_t kMaxMembers = 64;

struct Stepper {
  const std::shared_ptr<const CellInfo> cell;
  std::vector<std::unique_ptr<Stream>> layers;
  std::vector<Scratch<char>> between;  // the output of every layer but the last
  int64_t B, I, H, P, bytes;           // bytes: of an element
  double operations = 0;               // of a step
  int64_t members = 1;                 // at most
  std::atomic_flag busy = ATOMIC_FLAG_INIT;

  Stepper(std::shared_ptr<const CellInfo> owner, LayerCall call, int64_t count, const std::vector<const void*>& weights)
      : cell(std::move(owner)),
        B(call.B),
        I(call.I),
        H(call.H),
        P(call.P),
        bytes(call.storage == Storage::float64   ? 8
              : call.storage == Storage::float32 ? 4
                                                 : 2) {
    const double ih = double(cell->ih_gates) * call.H, hh = double(cell->hh_gates) * call.H;
    operations = 2.0 * B * (ih * I + hh * P * count + ih * P * (count - 1));
    if (!call.whole_rows())  // a norm is of all units
      members = std::clamp<int64_t>(int64_t(operations / double(count * cell->phases) / kPerBarrier), 1, kMaxMembers);
    const size_t n = weights.size() / size_t(count);
    for (int64_t i = 0; i < count; ++i, call.I = P) {
      call.weights.assign(weights.begin() + i * n, weights.begin() + (i + 1) * n);
      layers.push_back(instruction_set().kernels.stream(call, members));
      if (i == 0) continue;
      between.emplace_back();
      between.back().allocate(B * P * bytes);
      layers[i - 1]->write(between.back().data(), 0, P);
      layers[i]->read(between.back().data(), 0, P);
    }
  }

  void run(int64_t T) {
    auto steps = [&](Team::Member& member) {
      for (int64_t t = 0; t < T; ++t)
        for (auto& layer : layers)
          if (!layer->step(t, member)) return;
    };
    Sharing sharing(reinterpret_cast<uintptr_t>(this), T);
    Team::run(operations * double(T) < kLarge ? 1 : std::min(members, thread_count()), steps);
    for (auto& layer : layers) layer->advance(T);
  }
};

Stepper* stepper_of(PyObject* capsule) { return static_cast<Stepper*>(PyCapsule_GetPointer(capsule, kName)); }

// While one thread is in a call, the state belongs to it.
class Hold {
 public:
  explicit Hold(Stepper* s) : stepper_(s && !s->busy.test_and_set(std::memory_order_acquire) ? s : nullptr) {
    if (s && !stepper_) PyErr_SetString(PyExc_RuntimeError, "this Stepper is in use by another thread");
  }
  ~Hold() {
    if (stepper_) stepper_->busy.clear(std::memory_order_release);
  }
  explicit operator bool() const { return stepper_; }

 private:
  Stepper* stepper_;
};

// The exception that is being handled, as Python's.
PyObject* raise_current() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// (cell, storage, B, I, H, P, layers, bias, project, relu, addresses of the weights) -> stepper
PyObject* make(PyObject*, PyObject* args) {
  const char* cell;
  int storage, bias, project, relu;
  long long B, I, H, P, layers;
  PyObject* list;
  if (!PyArg_ParseTuple(args, "siLLLLLpppO", &cell, &storage, &B, &I, &H, &P, &layers, &bias, &project, &relu, &list))
    return nullptr;
  std::vector<const void*> weights;
  for (Py_ssize_t i = 0, n = PyList_Size(list); i < n; ++i)
    weights.push_back(PyLong_AsVoidPtr(PyList_GetItem(list, i)));
  if (PyErr_Occurred()) return nullptr;
  LayerCall call{};
  call.storage = Storage(storage);
  call.B = B, call.I = I, call.H = H, call.P = P, call.D = 1;
  call.bias = bias, call.project = project, call.reverse = {false};
  if (relu) call.act = Activation::relu;
  try {
    const std::shared_ptr<const CellInfo> owner = find_cell(cell);
    if (!owner) {
      PyErr_Format(PyExc_ValueError, "there is no cell %.60s", cell);
      return nullptr;
    }
    call.cell = owner.get();
    for (size_t k = 0; owner->program && k < owner->program->extras.size(); ++k)
      call.extras.push_back({nullptr, 0, 0, 0, owner->program->narrow[k]});
    auto stepper = std::make_unique<Stepper>(owner, call, layers, weights);
    PyObject* capsule = PyCapsule_New(stepper.get(), kName, [](PyObject* self) { delete stepper_of(self); });
    if (capsule) stepper.release();
    return capsule;
  } catch (...) {
    return raise_current();
  }
}

// (stepper, x, out[, T, x_stride_T, x_stride_B, out_stride_T, out_stride_B[, address, stride_T and stride_B of each
// input besides x]]) -> whether it was run, which it is not if out has no memory or overlaps an input, or x has none
PyObject* step(PyObject*, PyObject* const* args, Py_ssize_t n) {
  Stepper* s = stepper_of(args[0]);
  const Hold hold(s);
  if (!hold) return nullptr;
  const char* x = static_cast<const char*>(PyLong_AsVoidPtr(args[1]));
  char* out = static_cast<char*>(PyLong_AsVoidPtr(args[2]));
  long long given[] = {1, 0, s->I, 0, s->P};
  for (Py_ssize_t i = 3; i < std::min<Py_ssize_t>(n, 8); ++i) given[i - 3] = PyLong_AsLongLong(args[i]);
  const Program* const program = s->cell->program.get();
  const size_t extras = program ? program->extras.size() : 0;
  if (!PyErr_Occurred() && n != Py_ssize_t(8 + 3 * extras) && (extras > 0 || n != 3))
    PyErr_Format(PyExc_TypeError, "a step of this cell has %zu inputs besides x", extras);
  if (PyErr_Occurred()) return nullptr;
  const auto [T, x_T, x_B, out_T, out_B] = given;
  auto end = [&, steps = T](const char* at, int64_t stride_T, int64_t stride_B, int64_t width) {
    return at + ((steps - 1) * stride_T + (s->B - 1) * stride_B + width) * s->bytes;
  };
  const char* const out_end = end(out, out_T, out_B, s->P);
  if (!x || !out || (x < out_end && out < end(x, x_T, x_B, s->I))) return PyBool_FromLong(false);
  for (size_t k = 0; k < extras; ++k) {
    PyObject* const* const at = args + 8 + 3 * k;
    const char* data = static_cast<const char*>(PyLong_AsVoidPtr(at[0]));
    const int64_t u_T = PyLong_AsLongLong(at[1]), u_B = PyLong_AsLongLong(at[2]);
    if (PyErr_Occurred()) return nullptr;
    if (!data || (data < out_end && out < end(data, u_T, u_B, program->narrow[k] ? 1 : s->H)))
      return PyBool_FromLong(false);
    for (auto& layer : s->layers) layer->read_extra(k, data, u_T, u_B);
  }
  s->layers.front()->read(x, x_T, x_B);
  s->layers.back()->write(out, out_T, out_B);
  PyThreadState* const released = s->operations * double(T) < kLarge ? nullptr : PyEval_SaveThread();
  std::exception_ptr failed;
  try {
    s->run(T);
  } catch (...) {
    failed = std::current_exception();
  }
  if (released) PyEval_RestoreThread(released);
  try {
    if (failed) std::rethrow_exception(failed);
  } catch (...) {
    return raise_current();
  }
  return PyBool_FromLong(true);
}

// (stepper, [mask]): zero states of the rows whose byte is not 0, or of all.
PyObject* reset(PyObject*, PyObject* const* args, Py_ssize_t n) {
  Stepper* s = stepper_of(args[0]);
  const Hold hold(s);
  if (!hold) return nullptr;
  const char* mask = n > 1 ? static_cast<const char*>(PyLong_AsVoidPtr(args[1])) : nullptr;
  if (PyErr_Occurred()) return nullptr;
  for (auto& layer : s->layers)
    for (int64_t b = 0; b < s->B; ++b)
      if (!mask || mask[b]) layer->reset(b);
  Py_RETURN_NONE;
}

// (stepper, k, address of layer 0, bytes of a layer, whether to load): state k of all layers.
PyObject* state(PyObject*, PyObject* args) {
  PyObject *capsule, *address;
  int k, load;
  long long bytes;
  if (!PyArg_ParseTuple(args, "OiOLp", &capsule, &k, &address, &bytes, &load)) return nullptr;
  Stepper* s = stepper_of(capsule);
  const Hold hold(s);
  if (!hold) return nullptr;
  char* at = static_cast<char*>(PyLong_AsVoidPtr(address));
  if (PyErr_Occurred()) return nullptr;
  for (auto& layer : s->layers) {
    if (load) layer->set_state(k, at);
    else layer->get_state(k, at);
    at += bytes;
  }
  Py_RETURN_NONE;
}
}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
#define FAST(function) reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function))
  static PyMethodDef methods[] = {
      {"make_stepper", make, METH_VARARGS, nullptr},
      {"step", FAST(step), METH_FASTCALL, nullptr},
      {"reset", FAST(reset), METH_FASTCALL, nullptr},
      {"state", state, METH_VARARGS, nullptr},
      {nullptr, nullptr, 0, nullptr},
  };
#undef FAST
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
