// mlstm_options.h - the options of the mLSTM (M1-M3 of csrc/mlstm/README.md) as the CPU's loops take them.
#pragma once
#include "mlstm/params.h"

namespace xlstm::cpu {

template <typename Real>
struct MlstmOptions {
  Real scale = 1, eps = 0;
  InputGate input_gate = InputGate::Exponential;
  bool normalize = true;

  bool sigmoid_igate() const { return input_gate == InputGate::Sigmoid; }
};
template <class R, typename Real>
void read(R& r, MlstmOptions<Real>& o) {
  r("igate", o.input_gate)("normalize", o.normalize)("scale", o.scale)("eps", o.eps);
}

}  // namespace xlstm::cpu
