#include "ptx/decode.h"

#include <cctype>

namespace xlstm::ptx {

bool type_of(const std::string& text, Type& type) {
  if (text == "pred") {
    type = {'p', 1};
    return true;
  }
  if (text.size() < 2 || !std::strchr("fsub", text[0])) return false;
  for (size_t k = 1; k < text.size(); ++k)
    if (!std::isdigit(static_cast<unsigned char>(text[k]))) return false;
  const int bits = std::stoi(text.substr(1));
  if (bits != 8 && bits != 16 && bits != 32 && bits != 64) return false;
  type = {text[0], bits};
  return true;
}

Decoding::Decoding(Instruction& instruction, const std::string& text) : i(instruction), opcode(text) {
  for (size_t at = 0; at <= opcode.size();) {
    size_t dot = opcode.find('.', at);
    if (dot == std::string::npos) dot = opcode.size();
    if (dot > at) parts.push_back(opcode.substr(at, dot - at));
    at = dot + 1;
  }
  type_of(parts.back(), type);
  plain = parts.size() == 2;
}

bool Decoding::has(const char* part) const {
  for (size_t n = 1; n < parts.size(); ++n)
    if (parts[n] == part) return true;
  return false;
}

bool Decoding::is(std::initializer_list<const char*> names) const {
  for (const char* name : names)
    if (op() == name) return true;
  return false;
}

void Decoding::unknown() const { throw Fault("unknown instruction: " + i.text); }

void Decoding::width(size_t n, int bits) {
  if (n >= i.o.size()) throw Fault("too few operands: " + i.text);
  Operand& o = i.o[n];
  const int bytes = bits == 64 ? 8 : 4;
  if (o.kind == Operand::Immediate) {
    if (o.parameter) throw Fault("address of a parameter here: " + i.text);
    o.width = uint8_t(bytes);
  } else if (o.kind == Operand::Register) {
    if (o.width != bytes) throw Fault("operand width: " + i.text);
  } else if (o.kind != Operand::Sink) {
    throw Fault("operand kind: " + i.text);
  }
}

void Decoding::widths(std::initializer_list<int> bits) {
  size_t n = 0;
  for (const int b : bits) width(n++, b);
  if (n != i.o.size()) throw Fault("operand count: " + i.text);
}

void decode(Instruction& i, const std::string& opcode) {
  Decoding d(i, opcode);
  for (const auto family : {decode_arithmetic, decode_convert, decode_move}) {
    i.run = family(d);
    if (!i.run) continue;
    if (i.undefined == Undefined::Report) i.undefined = Undefined::Pass;
    return;
  }
  for (const auto family : {decode_memory, decode_collective, decode_matrix, decode_control, decode_barrier, decode_mbarrier}) {
    i.run = family(d);
    if (i.run) return;
  }
  d.unknown();
}

}  // namespace xlstm::ptx
