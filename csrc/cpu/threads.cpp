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
#include <utility>
#include <vector>

namespace xlstm::cpu {
namespace {

// Tells the processor that this thread only waits.
void pause() {
#ifdef XLSTM_X86_64
  __builtin_ia32_pause();
#endif
}

// One loop. A thread draws the indices of its own share first, neighbours after neighbours, which lie in the caches of one core
// from loop to loop, and on PyTorch's OpenMP are those that its loops give it; then what is left of the others'.
struct Loop {
  Loop(const std::function<void(int64_t)>& body, int64_t count, int64_t n) : body(body), shares(n) {
    for (int64_t s = 0; s < n; ++s) shares[s].next = count * s / n, shares[s].end = count * (s + 1) / n;
  }

  struct alignas(64) Share {  // a cache line, because each is counted on by another core
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  const std::function<void(int64_t)>& body;
  std::vector<Share> shares;
  std::exception_ptr failure;
  std::mutex failure_mutex;

  void work(int thread) {
    try {
      for (size_t s = 0; s < shares.size(); ++s) {
        Share& share = shares[(thread + s) % shares.size()];
        for (int64_t index = share.next++; index < share.end; index = share.next++) body(index);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      for (Share& share : shares) share.next = share.end;
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
      for (; started_ < helpers; ++started_) std::thread(&Pool::sleep_and_help, this, started_ + 1).detach();
      loop_ = &loop;
      wanted_ = running_ = helpers;
    }
    work_.notify_all();
    loop.work(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      running_ -= wanted_;  // helpers that never woke up are not waited for
      wanted_ = 0;
    }
    const auto done = [&] { return running_ == 0; };
    std::unique_lock<std::mutex> lock = lock_when(done);
    done_.wait(lock, done);
  }

 private:
  void sleep_and_help(int thread) {
    const auto wanted = [&] { return wanted_ > 0; };
    for (;;) {
      std::unique_lock<std::mutex> lock = lock_when(wanted);
      work_.wait(lock, wanted);
      --wanted_;
      Loop& loop = *loop_;
      lock.unlock();
      loop.work(thread);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  // The lock, if possible once the condition holds. Whoever made it hold may have the lock still, so it is tried, not waited for.
  template <typename Condition>
  std::unique_lock<std::mutex> lock_when(const Condition& condition) {
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    look_for([&] { return condition() && lock.try_lock(); });
    if (!lock.owns_lock()) lock.lock();
    return lock;
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

// PyTorch's own OpenMP.
struct OpenMP {
  // What compilers call for a parallel region: body(data) on so many threads.
  void (*region)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;  // which of them this is
};

bool is(const char* variable, const char* value) {
  const char* const found = std::getenv(variable);
  return found && strcasecmp(found, value) == 0;
}

const pid_t loaded_in = getpid();

// PyTorch's own OpenMP, or null. Its threads spin for some milliseconds after each of PyTorch's loops: they are there at once,
// and ours would have to share processors with them. Where they were told to sleep, ours are there sooner.
const OpenMP* openmp_of_pytorch() {
  static const OpenMP openmp = []() -> OpenMP {
    if (is("OMP_WAIT_POLICY", "PASSIVE") || is("GOMP_SPINCOUNT", "0") || is("KMP_BLOCKTIME", "0")) return {};
    void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return {};
    OpenMP found;
    found.region = reinterpret_cast<decltype(found.region)>(dlsym(library, "GOMP_parallel"));
    found.thread_num = reinterpret_cast<decltype(found.thread_num)>(dlsym(library, "omp_get_thread_num"));
    return found;
  }();
  if (loaded_in != getpid()) return nullptr;  // after a fork OpenMP would wait for threads that are not there
  return openmp.region && openmp.thread_num ? &openmp : nullptr;
}

void run(Loop& loop, const OpenMP& openmp, int threads) {
  std::pair<Loop*, const OpenMP*> both{&loop, &openmp};
  const auto work = [](void* data) {
    const auto [loop, openmp] = *static_cast<decltype(both)*>(data);
    loop->work(openmp->thread_num());
  };
  // All threads, though some may find nothing to do: OpenMP ends those that a smaller team leaves out.
  openmp.region(work, &both, static_cast<unsigned>(threads), 0);
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body, bool longest_first) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
  Loop loop(body, count, longest_first ? 1 : std::max(helpers + 1, 1));
  if (helpers > 0) {
    Pool& shared = pool();
    const std::unique_lock<std::mutex> ours(shared.in_use, std::try_to_lock);
    if (!ours) {  // another Python thread is computing: the machine is busy
      loop.work(0);
    } else if (const OpenMP* const openmp = openmp_of_pytorch()) {
      run(loop, *openmp, threads);
    } else {
      shared.run(loop, helpers);
    }
  } else {
    loop.work(0);
  }
  if (loop.failure) std::rethrow_exception(loop.failure);
}

}  // namespace xlstm::cpu
