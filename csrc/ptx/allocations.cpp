// allocations.cpp - PyTorch takes a CPU tensor's memory from posix_memalign and gives it back with free, both called from libc10
// through pointers that the loader filled in. Those two pointers are replaced by ours; nothing else in the process is touched.
#include "ptx/allocations.h"

#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace xlstm::ptx {
namespace {

constexpr size_t kPoisoned = 64u << 20;  // more than this is not filled: it would cost memory that nobody uses

std::mutex lock;
std::map<uint64_t, uint64_t>& table() {  // begin, size; outlives every tensor
  static auto* t = new std::map<uint64_t, uint64_t>;
  return *t;
}

int watched_memalign(void** p, size_t alignment, size_t size) {
  const int error = ::posix_memalign(p, alignment, size);
  if (error) return error;
  if (size <= kPoisoned) std::memset(*p, 0xff, size);
  add_allocation(*p, size);
  return 0;
}

void watched_free(void* p) {
  if (p) remove_allocation(p);
  ::free(p);
}

struct Replacement {
  const char* symbol;
  void* by;
  int count = 0;
};
Replacement replacements[] = {{"posix_memalign", reinterpret_cast<void*>(&watched_memalign)},
                              {"free", reinterpret_cast<void*>(&watched_free)}};

void replace_pointer(uint64_t slot, void* by) {
  const auto page = uint64_t(sysconf(_SC_PAGESIZE));
  auto* begin = reinterpret_cast<void*>(slot / page * page);
  if (mprotect(begin, page, PROT_READ | PROT_WRITE)) throw std::runtime_error("ptx: libc10's pointers cannot be written");
  *reinterpret_cast<void**>(slot) = by;
}

void replace_in(const dl_phdr_info& library, const ElfW(Dyn) * dynamic) {
  const ElfW(Sym)* symbols = nullptr;
  const char* names = nullptr;
  struct {
    const ElfW(Rela) * first = nullptr;
    size_t bytes = 0;
  } tables[2];  // of calls, of addresses
  for (const ElfW(Dyn)* d = dynamic; d->d_tag != DT_NULL; ++d) {
    if (d->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(d->d_un.d_ptr);
    if (d->d_tag == DT_STRTAB) names = reinterpret_cast<const char*>(d->d_un.d_ptr);
    if (d->d_tag == DT_JMPREL) tables[0].first = reinterpret_cast<const ElfW(Rela)*>(d->d_un.d_ptr);
    if (d->d_tag == DT_PLTRELSZ) tables[0].bytes = d->d_un.d_val;
    if (d->d_tag == DT_RELA) tables[1].first = reinterpret_cast<const ElfW(Rela)*>(d->d_un.d_ptr);
    if (d->d_tag == DT_RELASZ) tables[1].bytes = d->d_un.d_val;
  }
  for (const auto& t : tables)
    for (const ElfW(Rela)* r = t.first; r && r < t.first + t.bytes / sizeof(*r); ++r) {
      const auto symbol = ELF64_R_SYM(r->r_info);
      if (!symbol || r->r_addend) continue;
      for (Replacement& wanted : replacements)
        if (!std::strcmp(names + symbols[symbol].st_name, wanted.symbol)) {
          replace_pointer(library.dlpi_addr + r->r_offset, wanted.by);
          ++wanted.count;
        }
    }
}

int visit_library(dl_phdr_info* library, size_t, void*) {
  const char* slash = std::strrchr(library->dlpi_name, '/');
  if (std::strncmp(slash ? slash + 1 : library->dlpi_name, "libc10.so", 9)) return 0;
  for (int n = 0; n < library->dlpi_phnum; ++n)
    if (library->dlpi_phdr[n].p_type == PT_DYNAMIC)
      replace_in(*library, reinterpret_cast<const ElfW(Dyn)*>(library->dlpi_addr + library->dlpi_phdr[n].p_vaddr));
  return 0;
}

}  // namespace

void watch_allocations() {
  if (replacements[0].count) return;
  dl_iterate_phdr(visit_library, nullptr);
  for (const Replacement& r : replacements)
    if (!r.count)
      throw std::runtime_error(std::string("ptx: PyTorch's CPU allocator does not call ") + r.symbol + " from libc10");
}

void add_allocation(const void* p, uint64_t size) {
  const std::lock_guard<std::mutex> guard(lock);
  table()[reinterpret_cast<uint64_t>(p)] = size;
}

void remove_allocation(const void* p) {
  const std::lock_guard<std::mutex> guard(lock);
  table().erase(reinterpret_cast<uint64_t>(p));
}

bool allocation_before(uint64_t address, Range& range) {
  const std::lock_guard<std::mutex> guard(lock);
  auto at = table().upper_bound(address);
  range = Range();
  if (at == table().begin()) return false;
  --at;
  range = {at->first, at->first + at->second};
  return address < range.end;
}

}  // namespace xlstm::ptx
