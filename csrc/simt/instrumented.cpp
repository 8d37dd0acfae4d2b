// instrumented.cpp - the one file that tells an instrumented module from a plain one.
#include "simt/executor.h"

namespace xlstm::simt {
bool instrumented() {
#ifdef XLSTM_SIMT_INSTRUMENTED
  return true;
#else
  return false;
#endif
}
}  // namespace xlstm::simt
