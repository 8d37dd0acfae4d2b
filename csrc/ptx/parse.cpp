// parse.cpp - PTX text to a Kernel: declarations, scopes, labels, operands. What an opcode does is decode.h's business.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "ptx/decode.h"

namespace xlstm::ptx {
namespace {

bool space(char c) { return std::isspace(static_cast<unsigned char>(c)); }
bool digit(char c) { return std::isdigit(static_cast<unsigned char>(c)); }
bool of_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

uint32_t round_up(uint32_t value, uint32_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::string without_comments(const std::string& s) {
  std::string kept;
  kept.reserve(s.size());
  for (size_t i = 0; i < s.size(); ++i) {
    if (s.compare(i, 2, "//") == 0) {
      i = std::min(s.find('\n', i), s.size());
      kept += '\n';
    } else if (s.compare(i, 2, "/*") == 0) {
      i = s.find("*/", i) + 1;
    } else {
      kept += s[i];
    }
  }
  return kept;
}

std::vector<std::string> words(const std::string& s) {  // between blanks and commas
  std::vector<std::string> all;
  std::string word;
  for (const char c : s + " ") {
    if (!space(c) && c != ',') {
      word += c;
    } else if (!word.empty()) {
      all.push_back(word);
      word.clear();
    }
  }
  return all;
}

int type_bytes(const std::string& type) { return type == ".pred" ? 1 : std::stoi(type.substr(2)) / 8; }

// The value of a literal: decimal, 0x, 0f (float bits), 0d (double bits).
bool number(const std::string& t, uint64_t& value) {
  if (t.empty()) return false;
  const bool bits = t[0] == '0' && t.size() > 1 && std::strchr("fFdD", t[1]);
  if (bits && (t.size() == 10 || t.size() == 18)) {
    value = std::stoull(t.substr(2), nullptr, 16);
    return true;
  }
  const bool negative = t[0] == '-';
  std::string digits = t.substr(negative);
  if (digits.empty() || !digit(digits[0])) return false;
  if (digits.back() == 'U') digits.pop_back();
  const uint64_t magnitude = std::stoull(digits, nullptr, 0);
  value = negative ? 0 - magnitude : magnitude;
  return true;
}

const std::set<std::string> kSpecialRegisters{
    "%tid.x",       "%tid.y",       "%tid.z",      "%ntid.x",   "%ntid.y",      "%ntid.z",          "%ctaid.x",
    "%ctaid.y",     "%ctaid.z",     "%nctaid.x",   "%nctaid.y", "%nctaid.z",    "%laneid",          "%warpid",
    "%nwarpid",     "%smid",        "%envreg1",    "%envreg2",  "%clusterid.x", "%cluster_ctarank", "%cluster_nctarank",
    "%lanemask_lt", "%lanemask_le", "%lanemask_eq"};

struct Symbol {
  enum Kind { Register, Predicate, Shared, Dynamic, Parameter, String } kind;
  uint8_t width;  // of a register
  uint32_t at;    // word offset, shared address, offset of the parameter or number of the string
  uint32_t id;    // of a register or predicate
};

struct SharedVariable {
  std::string name;
  uint32_t align, size;
};

// ".shared .align 4 .b8 name[12]"
SharedVariable shared_variable(const std::vector<std::string>& w) {
  SharedVariable v{w.back(), 1, uint32_t(type_bytes(w[w.size() - 2]))};
  const size_t bracket = v.name.find('[');
  v.align = v.size;
  if (bracket != std::string::npos) {
    v.size *= uint32_t(std::strtoul(v.name.c_str() + bracket + 1, nullptr, 10));  // an extern one has no size
    v.name.resize(bracket);
  }
  for (size_t n = 1; n + 1 < w.size(); ++n)
    if (w[n] == ".align") v.align = std::max(v.align, uint32_t(std::stoi(w[n + 1])));
  return v;
}

class Parser {
 public:
  explicit Parser(Kernel& kernel) : k(kernel), scopes(1) {}

  void add_parameter(const std::string& name, uint32_t offset) { scopes.back().names[name] = {Symbol::Parameter, 8, offset, 0}; }
  void add_string(const std::string& name, std::string value) {
    scopes.back().names[name] = {Symbol::String, 8, uint32_t(k.strings.size()), 0};
    k.strings.push_back(std::move(value));
  }
  void add_dynamic(const std::string& name) { scopes.back().names[name] = {Symbol::Dynamic, 4, 0, 0}; }

  void add_shared(const SharedVariable& v) {
    const uint32_t at = round_up(kSharedStart + k.static_shared, v.align);
    scopes.back().names[v.name] = {Symbol::Shared, 4, at, 0};
    k.static_shared = at + v.size - kSharedStart;
  }

  void body(const std::string& text, const std::map<int, std::string>& files) {
    open_scope();
    for (size_t i = 0; i < text.size();) {
      if (space(text[i]) || text[i] == ';') {
        ++i;
      } else if (text[i] == '{') {
        open_scope();
        ++i;
      } else if (text[i] == '}') {
        scopes.pop_back();
        ++i;
      } else if (text.compare(i, 5, ".loc ") == 0 ||
                 text.compare(i, 5, ".loc\t") == 0) {  // the only statement without a semicolon
        const size_t end = text.find('\n', i);
        source_line(words(text.substr(i, end - i)), files);
        i = end;
      } else {
        i = statement_or_label(text, i);
      }
    }
    for (const Jump& j : jumps) k.code[j.instruction].target = target_of(j);
    k.register_words = round_up(register_words, 16);
    k.register_count = registers;
  }

 private:
  struct Scope {
    int id = 0;
    std::map<std::string, Symbol> names;
  };
  struct Jump {
    size_t instruction;
    std::vector<int> scopes;  // innermost last
    std::string label;
  };

  Kernel& k;
  std::vector<Scope> scopes;
  int scope_count = 0;
  std::map<std::pair<int, std::string>, int> labels;  // scope, name
  std::vector<Jump> jumps;
  std::map<std::pair<int, uint64_t>, uint32_t> constants;  // width, value
  uint32_t register_words = 0, registers = 0;
  int place = -1;

  [[noreturn]] void bad(const std::string& what, const std::string& text) {
    throw Fault(what + ": " + text + " (in " + k.name + ")");
  }

  void open_scope() {
    scopes.emplace_back();
    scopes.back().id = ++scope_count;
  }

  void source_line(const std::vector<std::string>& w, const std::map<int, std::string>& files) {
    const auto file = files.find(std::stoi(w[1]));
    const std::string name = (file == files.end() ? "?" : file->second) + ":" + w[2];
    if (place < 0 || k.places[size_t(place)] != name) {
      place = int(k.places.size());
      k.places.push_back(name);
    }
  }

  size_t statement_or_label(const std::string& text, size_t i) {
    size_t end = i;
    while (end < text.size() && of_name(text[end])) ++end;
    size_t colon = end;
    while (colon < text.size() && space(text[colon])) ++colon;
    if (end > i && text[colon] == ':' && text[colon + 1] != ':') {
      labels[{scopes.back().id, text.substr(i, end - i)}] = int(k.code.size());
      return colon + 1;
    }
    end = text.find(';', i);
    std::string statement = text.substr(i, end - i);
    while (!statement.empty() && space(statement.back())) statement.pop_back();
    if (statement[0] == '.')
      declare(statement);
    else
      instruction(statement);
    return end + 1;
  }

  int target_of(const Jump& j) {
    for (auto scope = j.scopes.rbegin(); scope != j.scopes.rend(); ++scope) {
      const auto label = labels.find({*scope, j.label});
      if (label != labels.end()) return label->second;
    }
    bad("unknown label", j.label);
  }

  const Symbol* find(const std::string& name) const {
    for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
      const auto symbol = scope->names.find(name);
      if (symbol != scope->names.end()) return &symbol->second;
    }
    return nullptr;
  }

  Symbol new_register(int width) {
    register_words = round_up(register_words, 16);
    const uint32_t at = register_words;
    register_words += width == 8 ? 64 : 32;
    return {Symbol::Register, uint8_t(width), at, registers++};
  }
  Symbol new_predicate() { return {Symbol::Predicate, 1, register_words++, registers++}; }

  void declare(const std::string& s) {  // .reg .b32 %r<5>, and .reg .pred done, .shared, and .param of a call, a register
    const std::vector<std::string> w = words(s);
    if (w[0] == ".pragma") return;
    if (w[0] == ".shared") return add_shared(shared_variable(w));
    if (w[0] != ".reg" && !(w[0] == ".param" && w.size() == 3)) bad("unknown declaration", s);
    for (size_t n = 2; n < w.size(); ++n) {
      const auto add = [&](const std::string& name) {
        scopes.back().names[name] = w[1] == ".pred" ? new_predicate() : new_register(type_bytes(w[1]) == 8 ? 8 : 4);
      };
      const size_t bracket = w[n].find('<');
      if (bracket == std::string::npos) {
        add(w[n]);
        continue;
      }
      const int count = std::stoi(w[n].substr(bracket + 1));
      for (int j = 0; j < count; ++j) add(w[n].substr(0, bracket) + std::to_string(j));
    }
  }

  uint32_t constant(uint64_t value, int width) {  // 32 lanes of it
    if (width == 4) value &= 0xffffffffu;
    const auto known = constants.find({width, value});
    if (known != constants.end()) return known->second;
    k.constants.resize(round_up(uint32_t(k.constants.size()), 16), 0);
    const auto at = uint32_t(k.constants.size());
    for (int l = 0; l < 32; ++l) {
      k.constants.push_back(uint32_t(value));
      if (width == 8) k.constants.push_back(uint32_t(value >> 32));
    }
    constants[{width, value}] = at;
    return at;
  }

  static Operand immediate(uint64_t value) {
    Operand o;
    o.kind = Operand::Immediate;
    o.base = 1;
    o.immediate = int64_t(value);
    return o;
  }

  static Operand register_operand(uint32_t at, uint32_t id, uint8_t width, Operand::Kind kind) {
    Operand o;
    o.kind = kind;
    o.width = width;
    o.offset = at;
    o.id = id;
    return o;
  }

  Operand special_register(const std::string& name) {
    for (size_t n = 0; n < k.specials.size(); ++n)
      if (k.specials[n].first == name) return register_operand(k.specials[n].second, k.special_ids[n], 4, Operand::Register);
    if (!kSpecialRegisters.count(name)) bad("unknown register", name);
    const Symbol s = new_register(4);
    k.specials.push_back({name, s.at});
    k.special_ids.push_back(s.id);
    return register_operand(s.at, s.id, 4, Operand::Register);
  }

  Operand operand(const std::string& t) {
    if (t[0] == '!') {
      Operand o = operand(t.substr(1));
      o.negated = true;
      return o;
    }
    Operand o;
    uint64_t value;
    if (t == "_") {
      o.kind = Operand::Sink;
      return o;
    }
    if (number(t, value)) return immediate(value);
    if (const Symbol* s = find(t)) {
      switch (s->kind) {
        case Symbol::Register:
          return register_operand(s->at, s->id, s->width, Operand::Register);
        case Symbol::Predicate:
          return register_operand(s->at, s->id, 1, Operand::Predicate);
        case Symbol::Shared:
          return immediate(s->at);
        case Symbol::Dynamic:
          k.uses_dynamic = true;
          return immediate(k.dynamic_offset);
        case Symbol::String:
          return immediate(reinterpret_cast<uint64_t>(k.strings[s->at].c_str()));
        case Symbol::Parameter:
          o = immediate(s->at);
          o.parameter = true;
          return o;
      }
    }
    if (t == "%globaltimer") {
      o.kind = Operand::Clock;
      return o;
    }
    if (t[0] == '%') return special_register(t);
    o.kind = Operand::Label;
    return o;
  }

  Operand address(const std::string& inner) {  // base, base+offset
    const size_t plus = inner.find('+');
    uint64_t added = 0;
    if (plus != std::string::npos && !number(inner.substr(plus + 1), added)) bad("address", inner);
    const Operand base = operand(inner.substr(0, plus));
    Operand o;
    o.kind = Operand::Address;
    o.immediate = int64_t(added);
    if (base.kind == Operand::Register) {
      o.has_register = true;
      o.width = base.width;
      o.offset = base.offset;
      o.id = base.id;
    } else if (base.kind == Operand::Immediate) {
      o.immediate += base.immediate;
      o.parameter = base.parameter;
    } else {
      bad("address", inner);
    }
    return o;
  }

  // "a, {b, c}, [d+4], e|p" becomes a flat list. Returns the label, if there is one.
  std::string operands(const std::string& text, std::vector<Operand>& all) {
    std::string label;
    for (size_t i = 0; i < text.size();) {
      if (space(text[i]) || std::strchr(",{}|()", text[i])) {
        ++i;
        continue;
      }
      if (text[i] == '[') {
        const size_t end = text.find(']', i);
        std::string inner = text.substr(i + 1, end - i - 1);
        inner.erase(std::remove_if(inner.begin(), inner.end(), space), inner.end());
        all.push_back(address(inner));
        i = end + 1;
        continue;
      }
      size_t end = i;
      while (end < text.size() && (of_name(text[end]) || text[end] == '!' || text[end] == '-')) ++end;
      if (end == i) bad("operand", text);
      const std::string word = text.substr(i, end - i);
      all.push_back(operand(word));
      if (all.back().kind == Operand::Label) label = word;
      i = end;
    }
    return label;
  }

  void instruction(const std::string& s) {
    Instruction i;
    i.text = s;
    i.place = place;
    size_t at = 0;
    if (s[0] == '@') {
      i.guard_negated = s[1] == '!';
      const size_t begin = i.guard_negated ? 2 : 1;
      at = begin;
      while (of_name(s[at])) ++at;
      const Symbol* p = find(s.substr(begin, at - begin));
      if (!p || p->kind != Symbol::Predicate) bad("guard", s);
      i.guard = int32_t(p->at);
      i.guard_id = p->id;
      while (space(s[at])) ++at;
    }
    size_t end = at;
    while (end < s.size() && (of_name(s[end]) || s[end] == ':')) ++end;
    const std::string opcode = s.substr(at, end - at);
    const std::string label = operands(s.substr(end), i.o);
    if (!label.empty()) {
      if (opcode == "call.uni" && label == "__assertfail") {
        i.text = "call.uni __assertfail";
      } else if (opcode.compare(0, 3, "bra") == 0) {
        Jump jump{k.code.size(), {}, label};
        for (const Scope& scope : scopes) jump.scopes.push_back(scope.id);
        jumps.push_back(jump);
      } else {
        bad("unknown name", s);
      }
    }
    decode(i, opcode);
    for (Operand& o : i.o)
      if (o.kind == Operand::Immediate && o.width) o.offset = constant(uint64_t(o.immediate), o.width);
    k.code.push_back(std::move(i));
  }
};

struct Entry {
  size_t begin, open, end;  // of ".entry", of its body's braces
};

Entry locate(const std::string& module, const std::string& name) {
  Entry e{};
  while ((e.begin = module.find(".entry " + name, e.begin)) != std::string::npos && of_name(module[e.begin + 7 + name.size()]))
    ++e.begin;
  if (e.begin == std::string::npos) throw Fault("no kernel " + name + " in this PTX");
  e.open = module.find("\n{", e.begin) + 1;
  int depth = 0;
  for (e.end = e.open; e.end < module.size(); ++e.end) {
    if (module[e.end] == '{') ++depth;
    if (module[e.end] == '}' && --depth == 0) break;
  }
  return e;
}

std::map<int, std::string> source_files(const std::string& module) {  // .file 3 "path"
  std::map<int, std::string> files;
  for (size_t at = 0; (at = module.find(".file", at)) != std::string::npos; at += 5) {
    const size_t quote = module.find('"', at), end = module.find('"', quote + 1);
    if (end == std::string::npos || !digit(module[module.find_first_not_of(" \t", at + 5)])) continue;
    const std::string path = module.substr(quote + 1, end - quote - 1);
    const size_t csrc = path.rfind("csrc/");
    files[std::stoi(module.substr(at + 5))] = csrc == std::string::npos ? path : path.substr(csrc);
  }
  return files;
}

// visit(words) for every declaration of the text that begins with `head`.
template <class Visit>
void declarations(const std::string& text, const std::string& head, Visit visit) {
  for (size_t at = 0; (at = text.find(head, at)) != std::string::npos; ++at)
    visit(words(text.substr(at, text.find(';', at) - at)));
}

void parse_parameters(const std::string& list, Kernel& k, Parser& parser) {
  size_t offset = 0;
  for (size_t at = 0, comma; at < list.size(); at = comma + 1) {
    comma = std::min(list.find(',', at), list.size());
    const std::vector<std::string> w = words(list.substr(at, comma - at));
    if (w.empty() || w[0] != ".param") continue;
    size_t align = 0, size = 1;
    for (size_t n = 1; n + 1 < w.size(); ++n) {
      if (w[n] == ".ptr") break;  // what follows is of the memory that it points to
      if (w[n] == ".align")
        align = std::stoul(w[++n]);
      else if (w[n][0] == '.')
        size = size_t(type_bytes(w[n]));
    }
    const size_t bracket = w.back().find('[');
    align = std::max(align, size);
    if (bracket != std::string::npos) size *= std::stoul(w.back().substr(bracket + 1));
    offset = (offset + align - 1) / align * align;
    k.parameters.push_back({size, offset});
    parser.add_parameter(w.back().substr(0, bracket), uint32_t(offset));
    offset += size;
  }
  k.parameter_bytes = offset;
}

}  // namespace

std::unique_ptr<Kernel> parse_kernel(const std::string& module, const std::string& name) {
  auto k = std::make_unique<Kernel>();
  k->name = name;
  const Entry e = locate(module, name);
  const std::string before = without_comments(module.substr(0, e.begin));
  const std::string head = without_comments(module.substr(e.begin, e.open - e.begin));
  const std::string text = without_comments(module.substr(e.open + 1, e.end - e.open - 1));
  Parser parser(*k);
  declarations(before, ".extern .shared", [&](std::vector<std::string> w) {
    w.erase(w.begin());
    const SharedVariable v = shared_variable(w);
    k->dynamic_align = std::max(k->dynamic_align, v.align);
    parser.add_dynamic(v.name);
  });
  declarations(before, "\n.shared", [&](const std::vector<std::string>& w) {  // those of other kernels are not this one's
    const SharedVariable v = shared_variable(w);
    if (text.find(v.name) != std::string::npos) parser.add_shared(v);
  });
  declarations(before, "\n.global .align 1 .b8 ", [&](const std::vector<std::string>& w) {  // name[11] = {119 ... 108}
    if (w.size() < 7 || w[5] != "=") return;
    const std::string name = w[4].substr(0, w[4].find('['));
    if (text.find(name) == std::string::npos) return;
    std::string value;
    for (size_t n = 6; n < w.size(); ++n) value += char(std::stoi(w[n].substr(w[n][0] == '{')));
    parser.add_string(name, value);
  });
  const size_t parenthesis = head.find('(');
  if (parenthesis != std::string::npos)
    parse_parameters(head.substr(parenthesis + 1, head.find(')') - parenthesis - 1), *k, parser);
  const size_t most = head.find(".maxntid");
  if (most != std::string::npos) {
    int x = 1, y = 1, z = 1;
    std::sscanf(head.c_str() + most + 8, "%d , %d , %d", &x, &y, &z);
    k->max_threads = x * y * z;
  }
  // Dynamic memory follows the variables inside the body, so those are placed once to learn their size.
  const uint32_t of_module = k->static_shared;
  declarations(text, ".shared .align", [&](const std::vector<std::string>& w) { parser.add_shared(shared_variable(w)); });
  k->dynamic_offset = round_up(kSharedStart + k->static_shared, k->dynamic_align);
  k->static_shared = of_module;
  parser.body(text, source_files(module));
  return k;
}

}  // namespace xlstm::ptx
