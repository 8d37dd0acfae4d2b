#include "cpu/threads.h"

#include <dlfcn.h>
#include <strings.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace xlstm::cpu {
namespace {

// Tells the processor that this thread only waits.
void pause() {
#ifdef XLSTM_X86_64
  __builtin_ia32_pause();
#endif
}

// One loop: whoever takes part draws indices until none are left.
struct Loop {
  Loop(const std::function<void(int64_t)>& body, int64_t count) : body(body), count(count) {}

  const std::function<void(int64_t)>& body;
  const int64_t count;
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;

  void work() {
    try {
      for (int64_t index = next++; index < count; index = next++) body(index);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  }
};

// How long a thread looks for what it waits for before it sleeps: one operator has many loops with little between them, and
// sleeping and waking between them cost a layer up to a third of its time (docs/kernel-notes.md). A longer look would take the
// processor from others.
constexpr std::chrono::microseconds kLook{50};

template <typename Condition>
void look_for(const Condition& condition) {
  for (const auto start = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - start < kLook;) {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return;
      pause();
    }
  }
}

// Threads that sleep between loops, because starting one costs more than a short sequence. They live as long as the process.
class Pool {
 public:
  const pid_t process = getpid();
  std::mutex in_use;  // one loop at a time

  void run(Loop& loop, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; started_ < helpers; ++started_) std::thread(&Pool::sleep_and_help, this).detach();
      loop_ = &loop;
      wanted_ = running_ = helpers;
    }
    work_.notify_all();
    loop.work();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      running_ -= wanted_;  // helpers that never woke up are not waited for
      wanted_ = 0;
    }
    look_for([&] { return running_ == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void sleep_and_help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      lock.unlock();
      look_for([&] { return wanted_ > 0; });
      lock.lock();
      work_.wait(lock, [&] { return wanted_ > 0; });
      --wanted_;
      Loop& loop = *loop_;
      lock.unlock();
      loop.work();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, done_;
  Loop* loop_ = nullptr;
  int started_ = 0;              // threads of this pool
  std::atomic<int> wanted_{0};   // helpers that may still join the loop; changed under the mutex, as is the next
  std::atomic<int> running_{0};  // helpers that joined or may still join, and have not finished
};

// A forked process has none of its parent's threads, so it gets a pool of its own; the parent's is left as it is. Pools are
// never destroyed: their threads may be asleep in them when the process ends.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!current || current->process != getpid()) current = new Pool;
  return *current;
}

// What compilers call for a parallel region of OpenMP: body(data) on so many threads.
typedef void (*Region)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

bool is(const char* variable, const char* value) {
  const char* const found = std::getenv(variable);
  return found && strcasecmp(found, value) == 0;
}

const pid_t loaded_in = getpid();

// That of PyTorch's own OpenMP, or null. Its threads spin for some milliseconds after each of PyTorch's loops: they are there at
// once, and ours would have to share processors with them. Where they were told to sleep, ours are there sooner.
Region region_of_pytorch() {
  static const Region region = []() -> Region {
    if (is("OMP_WAIT_POLICY", "PASSIVE") || is("GOMP_SPINCOUNT", "0") || is("KMP_BLOCKTIME", "0")) return nullptr;
    void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Region>(dlsym(library, "GOMP_parallel")) : nullptr;
  }();
  return loaded_in == getpid() ? region : nullptr;  // after a fork OpenMP would wait for threads that are not there
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
  Loop loop(body, count);
  if (helpers > 0) {
    Pool& shared = pool();
    const std::unique_lock<std::mutex> ours(shared.in_use, std::try_to_lock);
    if (!ours) {  // another Python thread is computing: the machine is busy
      loop.work();
    } else if (const Region region = region_of_pytorch()) {
      // All threads, though some may find nothing to do: OpenMP ends those that a smaller team leaves out.
      region([](void* data) { static_cast<Loop*>(data)->work(); }, &loop, static_cast<unsigned>(threads), 0);
    } else {
      shared.run(loop, helpers);
    }
  } else {
    loop.work();
  }
  if (loop.failure) std::rethrow_exception(loop.failure);
}

}  // namespace xlstm::cpu
