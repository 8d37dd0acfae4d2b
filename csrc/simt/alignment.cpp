// alignment.cpp - the alignment of accesses that no function of csrc/device makes: *reinterpret_cast<float4*>(p) and the like.
// The traced kernels are compiled with -fsanitize=alignment, whose checks call the handler below; libubsan is not linked. The layout
// of its argument is that of gcc and clang (ubsan_handlers.h).
#include <cstdint>

#include "simt/state.h"

namespace {
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const TypeDescriptor* type;
  unsigned char log_alignment, check;
};
}  // namespace

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(const TypeMismatch* access, void*) {
  using namespace xlstm::simt;
  if (!self) return;  // host code
  fail("an access of type " + std::string(access->type->name) + " at " + to_string(Site{access->file, int(access->line)}) +
       ": the address is not aligned to " + std::to_string(1 << access->log_alignment) + " bytes");
}
