// context_switch.h - a cooperative switch between two stacks: 8 instructions on x86-64, ucontext elsewhere.
// Only callee-saved registers are kept; kernels do not change rounding modes, so mxcsr and the x87 control word stay.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(XLSTM_SIMT_UCONTEXT)
namespace xlstm::simt {
struct Context {
  void* stack_pointer = nullptr;
};
extern "C" void xlstm_simt_switch(void** save_sp, void* load_sp);
#define XLSTM_SIMT_DEFINE_SWITCH                                                             \
  asm(".text\n.p2align 4\n.globl xlstm_simt_switch\n.hidden xlstm_simt_switch\n"             \
      ".type xlstm_simt_switch,@function\nxlstm_simt_switch:\n"                              \
      "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n" \
      "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"                                             \
      "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"       \
      "  ret\n.size xlstm_simt_switch,.-xlstm_simt_switch\n");
inline void switch_context(Context& from, const Context& to) { xlstm_simt_switch(&from.stack_pointer, to.stack_pointer); }
// The first switch to the context "returns" into entry() with the stack aligned as the ABI wants it.
inline void make_context(Context& context, void* stack, size_t size, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15);
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // entry's return address; keeps rsp % 16 == 8
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  context.stack_pointer = sp;
}
}  // namespace xlstm::simt
#else
#include <ucontext.h>
#define XLSTM_SIMT_DEFINE_SWITCH
namespace xlstm::simt {
struct Context {
  ucontext_t ucontext;
};
inline void switch_context(Context& from, const Context& to) { swapcontext(&from.ucontext, &to.ucontext); }
inline void make_context(Context& context, void* stack, size_t size, void (*entry)()) {
  getcontext(&context.ucontext);
  context.ucontext.uc_stack.ss_sp = stack;
  context.ucontext.uc_stack.ss_size = size;
  context.ucontext.uc_link = nullptr;
  makecontext(&context.ucontext, entry, 0);
}
}  // namespace xlstm::simt
#endif
