// Takes the place of the PyTorch fallbacks on CPUs; the schemas are defined in Python.
#include "ops.h"

#include <torch/library.h>

#include "latents.h"
#include "layers.h"

TORCH_LIBRARY_IMPL(llamaseek, CPU, m) {
  m.impl("linear", llamaseek::linear);
  m.impl("linear_blocks", llamaseek::linear_blocks);
  m.impl("widen_blocks", llamaseek::widen_blocks);
  m.impl("rms_norm", llamaseek::rms_norm);
  m.impl("route", llamaseek::route);
  m.impl("linear_heads", llamaseek::linear_heads);
  m.impl("experts", llamaseek::experts);
  m.impl("attend", llamaseek::attend);
  m.impl("rotate_store", llamaseek::rotate_store);
  m.impl("rotate_store_latent", llamaseek::rotate_store_latent);
}

// A fragment: the namespace is defined in Python.
TORCH_LIBRARY_FRAGMENT(llamaseek, m) {
  using namespace llamaseek;
  m.class_<Weights>("Weights")
      .def(torch::init<std::vector<Tensor>, std::vector<Tensor>, int64_t, Whole, Whole>());
  m.class_<LatentAttention>("LatentAttention")
      .def(torch::init<LatentAttention::All, std::vector<Tensor>, double, double, int64_t, int64_t,
                       int64_t, double>())
      .def("run", &LatentAttention::run);
  m.class_<Mixture>("Mixture")
      .def(torch::init<Tensor, double, Tensor, Tensor, std::vector<int64_t>, bool, double,
                       Mixture::Maybe, std::vector<int64_t>, Mixture::All>())
      .def("run", &Mixture::run);
  m.class_<Layers>("Layers")
      .def(torch::init<Layers::Shared, Tensor, double, Layers::Shared>())
      .def("grouped", &Layers::grouped)
      .def("latent", &Layers::latent)
      .def("gated", &Layers::gated)
      .def("mixture", &Layers::mixture)
      .def("run", &Layers::run);
  m.class_<MultiToken>("MultiToken")
      .def(torch::init<std::vector<MultiToken::Shared>, std::vector<Tensor>, double,
                       c10::intrusive_ptr<LatentAttention>, c10::intrusive_ptr<Mixture>>())
      .def("run", &MultiToken::run);
}
