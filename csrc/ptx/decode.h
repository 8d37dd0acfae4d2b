// decode.h - from an opcode to its handler. Each family of opcodes has a file of its own, which knows the types it takes and
// checks the widths of its operands; what no family knows is an error with the instruction's text.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

#include "ptx/machine.h"

namespace xlstm::ptx {

struct Type {
  char letter = 0;  // f s u b, p for predicates
  int bits = 0;
};
bool type_of(const std::string& text, Type& type);

struct Decoding {
  Instruction& i;
  const std::string& opcode;
  std::vector<std::string> parts;  // between the dots
  Type type;                       // the last part
  bool plain = false;              // operation and type, nothing between

  Decoding(Instruction& instruction, const std::string& opcode);
  const std::string& op() const { return parts[0]; }
  bool has(const char* part) const;
  bool is(std::initializer_list<const char*> names) const;
  [[noreturn]] void unknown() const;
  void width(size_t n, int bits);                // operand n has this many bits
  void widths(std::initializer_list<int> bits);  // of all operands
  Handler with(std::initializer_list<int> bits, Handler handler) {
    widths(bits);
    return handler;
  }
};

// The handler, or nullptr where the opcode is another family's.
Handler decode_arithmetic(Decoding& d);
Handler decode_convert(Decoding& d);
Handler decode_move(Decoding& d);
Handler decode_memory(Decoding& d);
Handler decode_collective(Decoding& d);
Handler decode_matrix(Decoding& d);
Handler decode_control(Decoding& d);
Handler decode_barrier(Decoding& d);
Handler decode_mbarrier(Decoding& d);

void decode(Instruction& i, const std::string& opcode);

// make(T{}) with the C++ type of a PTX type
template <class Make>
Handler for_integer(const Type& t, Make make) {
  if (t.bits == 16) return t.letter == 's' ? make(int16_t{}) : make(uint16_t{});
  if (t.bits == 32) return t.letter == 's' ? make(int32_t{}) : make(uint32_t{});
  if (t.bits == 64) return t.letter == 's' ? make(int64_t{}) : make(uint64_t{});
  return nullptr;
}

template <class Make>
Handler for_any(const Type& t, Make make) {
  if (t.letter == 'f') return t.bits == 32 ? make(float{}) : t.bits == 64 ? make(double{}) : nullptr;
  return for_integer(t, make);
}

}  // namespace xlstm::ptx
