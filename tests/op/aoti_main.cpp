// main MODEL.pt2 CORE.so: runs an AOTInductor package in a program without Python, and prints the sums of its outputs
// for inputs that count up.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <utility>

int main(int, char** argv) {
  if (!dlopen(argv[2], RTLD_NOW)) return std::puts(dlerror()), 1;
  c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  for (auto [B, T] : {std::pair{4, 11}, {1, 3}}) {
    const auto y = model.run({at::arange(B * T * 5).view({B, T, 5}) / 100.0f})[0];
    std::printf("%.6f\n", y.sum().item<double>());
  }
}
