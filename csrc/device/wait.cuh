// wait.cuh - the only way to spin: until another thread has done its part.
// Built with XLSTM_BOUNDED_WAITS (on where the self-tests are), a wait that nobody ends stops the kernel after kPatience and
// prints the file and line that waited, its block and thread (cudaErrorAssert). Without, it costs nothing. The executor, which
// sees that no thread can go on, needs no clock.
#pragma once
#include "device/kernel.cuh"

#ifndef __CUDACC__
#define XLSTM_WAIT_SITE XLSTM_SITE  // a last parameter of a function that waits: the caller's source line
#define XLSTM_FORWARD_WAIT_SITE XLSTM_FORWARD_SITE
#elif defined(XLSTM_BOUNDED_WAITS)
#define XLSTM_WAIT_SITE , const ::xlstm::device::Site site = {}
#define XLSTM_FORWARD_WAIT_SITE , site
#else
#define XLSTM_WAIT_SITE
#define XLSTM_FORWARD_WAIT_SITE
#endif

namespace xlstm::device {

#if defined(__CUDACC__) && defined(XLSTM_BOUNDED_WAITS)

constexpr uint64_t kPatience = 10'000'000'000;  // nanoseconds: no launch of the tests takes as long, under any tool

struct Site {
  const char* file;
  int line;
  __device__ constexpr Site(const char* file_ = __builtin_FILE(), int line_ = __builtin_LINE()) : file(file_), line(line_) {}
};

XLSTM_DEVICE uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

#endif

// Calls done() until it is true.
template <class Done>
XLSTM_DEVICE void wait_until(Done&& done XLSTM_WAIT_SITE) {
#if defined(__CUDACC__) && defined(XLSTM_BOUNDED_WAITS)
  const uint64_t start = nanoseconds();
  while (!done())
    if (nanoseconds() - start > kPatience)
      __assert_fail("another thread ends this wait", site.file, unsigned(site.line), "wait_until");
#else
#ifndef __CUDACC__
  (void)site;  // what done() waits in has its own
#endif
  while (!done()) {
  }
#endif
}

}  // namespace xlstm::device
