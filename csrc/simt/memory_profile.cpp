// memory_profile.cpp - what a launch asks of the memory system: bytes, 32-byte sectors, shared-memory wavefronts, per source
// line. The n-th access of every lane from one place, since the warp last synchronised, is taken as one request of the warp.
#include <algorithm>
#include <array>
#include <unordered_map>

#include "simt/trace.h"

namespace xlstm::simt {
namespace {

struct Request {
  uint32_t lanes = 0;
  uint16_t bytes = 0;
  bool write = false, shared = false;
  uint64_t address[32];
};
struct WarpLog {
  std::unordered_map<uint64_t, Request> requests;                      // by place << 32 | occurrence
  std::unordered_map<uint32_t, std::array<uint32_t, 32>> occurrences;  // by place, per lane
};
struct Traffic {
  uint64_t requests = 0, bytes = 0, transactions = 0, least = 0;
};
using TrafficKey = std::tuple<uint32_t, bool, bool>;  // place, shared, write

std::vector<WarpLog> logs;
std::map<TrafficKey, Traffic> traffic;
std::vector<LaunchRecord> launches;
constexpr int kSectorBytes = 32, kBanks = 32, kBankBytes = 4, kWavefrontBytes = kBanks * kBankBytes;

// Wavefronts of one shared-memory request: 8- and 16-byte accesses are served in halves and quarters of the warp; within one
// part, as many as the fullest bank has different words.
int wavefronts(const uint64_t* address, uint32_t lanes, int bytes) {
  const int part = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
  int total = 0;
  for (int first = 0; first < 32; first += part) {
    std::vector<uint64_t> words[kBanks];
    size_t fullest = 0;
    for (int lane = first; lane < first + part; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (uint64_t word = address[lane] / kBankBytes; word <= (address[lane] + bytes - 1) / kBankBytes; ++word) {
        auto& bank = words[word % kBanks];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        fullest = std::max(fullest, bank.size());
      }
    }
    total += int(fullest);
  }
  return total;
}

struct Extent {
  uint64_t bytes, sectors;
};
Extent distinct(const Request& r) {  // a broadcast asks for its bytes once
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (int lane = 0; lane < 32; ++lane)
    if (r.lanes >> lane & 1) spans.emplace_back(r.address[lane], r.address[lane] + r.bytes);
  std::sort(spans.begin(), spans.end());
  Extent extent{0, 0};
  uint64_t covered = 0, next_sector = 0;
  for (const auto& [from, to] : spans) {
    if (to > covered) extent.bytes += to - std::max(from, covered);
    covered = std::max(covered, to);
    const uint64_t first = std::max(from / kSectorBytes, next_sector), last = (to - 1) / kSectorBytes;
    if (last >= first) extent.sectors += last - first + 1;
    next_sector = std::max(next_sector, last + 1);
  }
  return extent;
}

}  // namespace

void profile_launch_begins() { traffic.clear(); }
void profile_domain_begins() { logs.assign(machine.options.profile ? machine.warps.size() : 0, WarpLog{}); }

void profile_access(const Access& a) {
  const Machine& m = machine;
  WarpLog& log = logs[self->warp->index];
  const uint32_t lane = self->lane, occurrence = log.occurrences[a.place][lane]++;
  Request& r = log.requests[uint64_t(a.place) << 32 | occurrence];
  r.lanes |= 1u << lane;
  r.bytes = uint16_t(a.bytes);
  r.write = a.flags & kWrite;
  r.shared = a.space == Space::Shared;
  r.address[lane] = r.shared ? uint64_t(a.address - m.slab) % m.slab_stride : reinterpret_cast<uint64_t>(a.address);
}

void profile_flush(Warp& warp) {
  WarpLog& log = logs[warp.index];
  for (const auto& [key, r] : log.requests) {
    Traffic& t = traffic[{uint32_t(key >> 32), r.shared, r.write}];
    const Extent extent = distinct(r);
    ++t.requests;
    t.bytes += extent.bytes;
    if (r.shared) {
      t.transactions += wavefronts(r.address, r.lanes, r.bytes);
      t.least += (extent.bytes + kWavefrontBytes - 1) / kWavefrontBytes;
    } else {
      t.transactions += extent.sectors;
      t.least += (extent.bytes + kSectorBytes - 1) / kSectorBytes;
    }
  }
  log.requests.clear();
  log.occurrences.clear();
}

void profile_matrix_rows(const void* const* rows, int count, bool write, const Site& site) {
  if (!machine.options.profile) return;
  Traffic& t = traffic[{intern(Place{site, nullptr}), true, write}];
  ++t.requests;
  for (int first = 0; first < count; first += 8) {
    uint64_t address[32] = {};
    for (int i = 0; i < 8; ++i)
      address[i] = uint64_t(static_cast<const char*>(rows[first + i]) - machine.slab) % machine.slab_stride;
    t.transactions += wavefronts(address, 0xff, 16);
    t.bytes += 128;
    t.least += 1;
  }
}

void profile_domain_ends() {
  if (machine.options.profile)
    for (Warp& warp : machine.warps) profile_flush(warp);
}

void profile_launch_ends() {
  const Machine& m = machine;
  if (!m.options.profile) return;
  LaunchRecord record{
      m.kernel, m.grid, m.block_shape, m.cluster, m.config.cooperative, m.config.shared_bytes + m.static_used, m.counters, 0,
      0,        {}};
  for (const auto& [key, t] : traffic) {
    const auto [place, shared, write] = key;
    record.lines.push_back({describe_place(place), shared, write, t.requests, t.bytes, t.transactions, t.least});
    if (!shared) (write ? record.global_bytes_written : record.global_bytes_read) += t.bytes;
  }
  launches.push_back(std::move(record));
}

std::vector<LaunchRecord> take_launches() { return std::exchange(launches, {}); }

}  // namespace xlstm::simt
