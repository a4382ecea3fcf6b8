// Takes the place of the PyTorch fallbacks on CPUs; the schemas are defined in Python.
#include "ops.h"

#include <torch/library.h>

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
