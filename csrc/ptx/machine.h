// machine.h - a parsed kernel, and the state of the warps, blocks and clusters that run it.
// A register is a vector of 32 lanes, 4 or 8 bytes each (8 and 16 bit registers take 4); a predicate is one 32-bit mask.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace xlstm::ptx {

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

// What goes wrong in a kernel, or in its text; becomes the message of the launch's error.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Operand {
  enum Kind : uint8_t { None, Register, Immediate, Predicate, Address, Sink, Label, Clock } kind = None;
  uint8_t width = 0;          // bytes per lane: 4 or 8
  uint8_t base = 0;           // 0: the warp's registers, 1: the kernel's constants
  bool negated = false;       // !%p
  bool parameter = false;     // Immediate, Address: an offset into the kernel's parameters
  bool has_register = false;  // Address
  uint32_t offset = 0;        // in 4-byte words from the base
  uint32_t id = 0;            // number of the register or predicate
  int64_t immediate = 0;      // its value; Address: what is added
};

enum class Space : uint8_t { Generic, Global, Shared, SharedCluster, Param };

// What an instruction does with a register that nobody wrote. Arithmetic passes it on to its result; what decides, addresses,
// synchronises, multiplies matrices or goes to global memory reports it.
enum class Undefined : uint8_t { Report, Pass, Select, Store };

struct Instruction {
  Handler run = nullptr;
  std::vector<Operand> o;
  int32_t guard = -1;  // word offset of the guard predicate's mask
  uint32_t guard_id = 0;
  bool guard_negated = false;
  bool aligned = false;  // all lanes of the warp must be here
  Undefined undefined = Undefined::Report;
  uint8_t results = 1;  // the first operands are written
  uint8_t n = 0;        // vector length
  Space space = Space::Generic;
  int32_t target = -1;  // of a branch
  uint32_t aux = 0;     // the handler's own
  int32_t place = -1;   // in Kernel::places
  std::string text;
};

struct Parameter {
  size_t size, offset;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<uint32_t> constants;
  std::vector<Parameter> parameters;
  std::vector<std::pair<std::string, uint32_t>> specials;  // special register, word offset
  std::vector<uint32_t> special_ids;
  std::vector<std::string> places;  // source lines, file:line
  std::deque<std::string> strings;  // literals; a kernel has their addresses
  size_t parameter_bytes = 0;
  uint32_t register_words = 0, register_count = 0;
  uint32_t static_shared = 0, dynamic_align = 16, dynamic_offset = 0;  // the offset is one within the shared window
  bool uses_dynamic = false;
  int max_threads = 0;  // .maxntid, 0 where there is none
};

constexpr uint32_t kSharedStart = 1024;  // the first byte of a block's shared memory within its window
constexpr uint64_t kWindow = 1u << 24;   // bytes of address space of one block's shared window

using Clock = std::vector<uint32_t>;  // a vector clock: one entry per warp of the set that runs together

struct Copy {  // a cp.async on its way
  uint8_t* to;
  const uint8_t* from;
  uint32_t size, source_size;
};

struct Group {  // lanes that stand at one instruction
  int pc;
  uint32_t mask;
};

struct Block;
struct Cluster;
enum class State : uint8_t { Running, AtBarrier, AtClusterBarrier, Done };

struct Warp {
  uint32_t* base[2];  // registers, constants
  std::vector<uint32_t> registers;
  std::vector<uint32_t> defined;  // per register number, the lanes that wrote it; empty where nobody asks
  const Kernel* kernel = nullptr;
  Block* block = nullptr;
  int index = 0;
  uint32_t serial = 0;                     // number among all warps of the launch
  uint32_t alive = 0, mask = 0, exec = 0;  // lanes that have not exited; that stand at pc; that the guard lets through
  int pc = 0, next_pc = 0x7fffffff;        // next_pc: the lowest of the others
  std::vector<Group> others;
  State state = State::Running;
  bool yield = false;         // what it waits for is not there: others first
  int64_t uninterrupted = 0;  // instructions since it last waited for anything
  int barrier = -1;
  const Instruction* vote = nullptr;  // bar.red to be answered when the barrier opens
  uint64_t cluster_phase = 0;
  std::vector<Copy> open[32];                // cp.async not yet committed, per lane
  std::deque<std::vector<Copy>> groups[32];  // committed
  Clock clock, fenced, gathered;             // races.h
  void regroup();
};

struct Barrier {
  int arrived = 0, expected = 0;
  uint32_t any = 0, all = 1, count = 0;
  std::vector<Warp*> waiting;
  Clock clock;
};

// What the race detector remembers of a byte: who wrote it last, and who has read it since.
struct Touch {
  uint32_t serial = 0, time = 0;
  const Instruction* by = nullptr;
};
struct Word {
  Touch write;
  std::vector<Touch> reads;
};

struct Block {
  uint8_t* window = nullptr;  // where shared address 0 is
  uint32_t shared_bytes = 0;  // static and dynamic
  Cluster* cluster = nullptr;
  uint32_t rank = 0, index[3] = {0, 0, 0};
  std::vector<std::unique_ptr<Warp>> warps;
  Barrier barriers[16];
  int threads = 0;
  std::vector<uint8_t> defined;  // per byte of shared memory: written? empty where nobody asks
  std::vector<Word> words;       // of shared memory, for the race detector
  bool exited() const {
    for (const auto& w : warps)
      if (w->state != State::Done) return false;
    return true;
  }
};

struct Delivery {  // a st.async on its way
  Block* to;
  uint32_t offset, bytes, barrier;
  uint8_t data[16];
  uint32_t serial;  // of the sending warp
  Clock clock;
  const Instruction* by;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  uint8_t* windows = nullptr;  // blocks * kWindow bytes
  uint64_t phase = 0;
  int arrived = 0;
  std::vector<Delivery> flying;
  Clock clock[2];  // arrivals of the even and the odd phases
};

struct Launch {
  const Kernel* kernel;
  uint32_t grid[3], block[3], cluster[3];
  uint32_t dynamic_shared;
  bool cooperative;
  std::vector<uint8_t> parameters;
  void* workspace;                           // of a cooperative grid
  uint64_t nanoseconds;                      // %globaltimer
  uint32_t first_serial = 0, set_warps = 0;  // of the set that runs now
};

struct Settings {
  std::string target = "90a";                                          // which PTX runs: 80, 90a, 100f, ...
  int architecture = 90, processors = 132, shared_limit = 227 * 1024;  // of the card that is played
  uint64_t seed = 1;
  bool late = true;               // cp.async and st.async land as late as they may; otherwise at once
  bool starve = false;            // for long stretches one warp or one block gets no turn while any other can go on
  bool reads = true;              // report reads of registers and shared memory that nobody wrote
  bool races = false;             // report accesses that nothing orders
  bool float32_products = false;  // mma sums in float32, in order; otherwise in float64 with one rounding
};
extern Settings settings;
extern Launch* current;
extern std::mt19937_64 dice;

std::unique_ptr<Kernel> parse_kernel(const std::string& module, const std::string& name);
void run(Launch& launch);
[[noreturn]] void fault(const Warp* w, const Instruction* i, const std::string& what);

}  // namespace xlstm::ptx
