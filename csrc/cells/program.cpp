// The parser of programs: checks kinds, counts, bounds and order.
#include "program.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <locale>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace {
using Words = std::vector<std::string>;

// Sections, as bits.
enum Where : int { OPERAND = 1, FIRST = 2, FORWARD = 4, BACKWARD = 8, BACKWARD_FIRST = 16, BACKWARD_OPERAND = 32 };
constexpr int STEP = OPERAND | FIRST | FORWARD, BACK = BACKWARD | BACKWARD_FIRST | BACKWARD_OPERAND;

// What follows the name of a load or a put.
enum class Takes { nothing, both_gates, input, gate, state, vector, extra, plane, cross };

struct Load {
  Op op;
  Takes takes;
  int where;
};
const std::map<std::string, Load>& loads() {
  static const std::map<std::string, Load> table = {
      {"a", {Op::a, Takes::both_gates, FIRST | FORWARD}},
      {"x", {Op::x, Takes::input, FIRST | FORWARD | BACKWARD}},
      {"r", {Op::r, Takes::gate, FIRST | FORWARD}},
      {"s", {Op::s, Takes::state, STEP | BACK}},
      {"v", {Op::v, Takes::vector, STEP | BACK}},
      {"u", {Op::u, Takes::extra, STEP | BACK}},
      {"i", {Op::i, Takes::nothing, FORWARD}},
      {"cross", {Op::cross, Takes::cross, FORWARD}},
      {"k", {Op::k, Takes::plane, BACKWARD | BACKWARD_FIRST}},
      {"n", {Op::n, Takes::state, BACKWARD | BACKWARD_FIRST}},
      {"g", {Op::g, Takes::state, BACKWARD}},
      {"gy", {Op::gy, Takes::nothing, BACKWARD}},
      {"gi", {Op::gi, Takes::nothing, BACKWARD_FIRST}},
      {"dcross", {Op::dcross, Takes::cross, BACKWARD_FIRST}},
      {"go", {Op::go, Takes::nothing, BACKWARD_OPERAND}},
  };
  return table;
}

struct Gives {
  Put put;
  Takes takes;
  int where;
};
const std::map<std::string, Gives>& gives() {
  static const std::map<std::string, Gives> table = {
      {"operand", {Put::operand, Takes::nothing, OPERAND}},
      {"inner", {Put::inner, Takes::nothing, FIRST}},
      {"cross", {Put::cross, Takes::cross, FIRST}},
      {"keep", {Put::keep, Takes::plane, FIRST | FORWARD}},
      {"new", {Put::next, Takes::state, FORWARD}},
      {"y", {Put::y, Takes::nothing, FORWARD}},
      {"da", {Put::da, Takes::both_gates, BACKWARD | BACKWARD_FIRST}},
      {"dx", {Put::dx, Takes::input, BACKWARD | BACKWARD_FIRST}},
      {"dr", {Put::dr, Takes::gate, BACKWARD | BACKWARD_FIRST}},
      {"di", {Put::di, Takes::nothing, BACKWARD}},
      {"dcross", {Put::dcross, Takes::cross, BACKWARD}},
      {"ds", {Put::ds, Takes::state, BACK}},
      {"dv", {Put::dv, Takes::vector, BACK}},
      {"du", {Put::du, Takes::extra, BACK}},
  };
  return table;
}

struct Arithmetic {
  Op op;
  int operands;
};
const std::map<std::string, Arithmetic>& arithmetic() {
  static const std::map<std::string, Arithmetic> table = {
      {"add", {Op::add, 2}},
      {"sub", {Op::sub, 2}},
      {"mul", {Op::mul, 2}},
      {"div", {Op::div, 2}},
      {"neg", {Op::neg, 1}},
      {"abs", {Op::abs, 1}},
      {"sign", {Op::sign, 1}},
      {"sqrt", {Op::sqrt, 1}},
      {"exp", {Op::exp, 1}},
      {"log", {Op::log, 1}},
      {"log1p", {Op::log1p, 1}},
      {"expm1", {Op::expm1, 1}},
      {"sigmoid", {Op::sigmoid, 1}},
      {"tanh", {Op::tanh, 1}},
      {"relu", {Op::relu, 1}},
      {"min", {Op::min, 2}},
      {"max", {Op::max, 2}},
      {"lt", {Op::lt, 2}},
      {"le", {Op::le, 2}},
      {"eq", {Op::eq, 2}},
      {"where", {Op::where, 3}},
      {"tanh_back", {Op::tanh_back, 2}},
      {"sigmoid_back", {Op::sigmoid_back, 2}},
      {"relu_back", {Op::relu_back, 2}},
      {"through", {Op::through, 3}},
      {"layer_norm", {Op::layer_norm, 2}},
      {"layer_norm_back", {Op::layer_norm_back, 3}},
  };
  return table;
}

int position(const Words& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : int(found - names.begin());
}

class Parser {
 public:
  Parser(Program& program, const std::string& text) : p_(program) {
    if (text.size() > Program::kBytes) fail("it is longer than 64 KB");
    for (size_t from = 0; from < text.size();) {
      const size_t end = std::min(text.find('\n', from), text.size());
      if (end > from) lines_.push_back(words(text.substr(from, end - from)));
      from = end + 1;
    }
    header();
    sections();
    check();
  }

 private:
  Program& p_;
  std::vector<Words> lines_;
  size_t at_ = 0;
  std::map<std::pair<int, int>, int> given_;  // (kind of put, index) -> section
  bool has_dx_[Program::kGates] = {}, has_dr_[Program::kGates] = {};

  [[noreturn]] void fail(const std::string& why) const {
    const std::string line = lines_.empty() ? "" : "line " + std::to_string(std::min(at_ + 1, lines_.size())) + ": ";
    throw std::runtime_error("rnnkernels: not the program of a cell: " + line + why);
  }
  void require(bool fine, const std::string& why) const {
    if (!fine) fail(why);
  }

  static bool is_name(const std::string& word) {
    auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
    return !word.empty() && word.size() <= 64 && letter(word[0]) &&
           std::all_of(word.begin(), word.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
  }

  Words words(const std::string& line) {
    Words found;
    for (size_t from = 0; from <= line.size();) {
      const size_t end = std::min(line.find(' ', from), line.size());
      if (end == from) at_ = lines_.size(), lines_.emplace_back(), fail("a word is missing");
      found.push_back(line.substr(from, end - from));
      from = end + 1;
    }
    return found;
  }

  // A whole number below `limit`.
  int number(const std::string& word, size_t limit, const std::string& what) const {
    require(!word.empty() && word.size() <= 4 &&
                std::all_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; }),
            "expected the number of " + what);
    const int n = std::stoi(word);
    require(size_t(n) < limit, "there is no " + what + " " + word);
    return n;
  }
  double real(const std::string& word) const {
    require(word.size() <= 32 && word.find_first_not_of("0123456789eE+-.") == std::string::npos, "expected a number");
    std::istringstream from(word);
    from.imbue(std::locale::classic());
    double x = 0;
    from >> x;
    require(!from.fail() && from.eof() && std::isfinite(x), "expected a finite number");
    return x;
  }

  uint16_t constant(double x) {
    p_.constants.push_back(x);
    return uint16_t(p_.constants.size() - 1);
  }

  bool begins(const char* word) const { return at_ < lines_.size() && lines_[at_][0] == word; }

  // The names after the first word of a header line that may be left out.
  Words names(const char* word, size_t limit, const char* mark = nullptr, std::vector<bool>* marked = nullptr) {
    if (!begins(word)) return {};
    Words found(lines_[at_].begin() + 1, lines_[at_].end());
    require(!found.empty() && found.size() <= limit,
            std::string(word) + " takes 1 to " + std::to_string(limit) + " names");
    for (std::string& each : found) {
      const size_t length = mark ? std::string(mark).size() : 0;
      const bool narrow = mark && each.size() > length && each.compare(each.size() - length, length, mark) == 0;
      if (narrow) each.resize(each.size() - length);
      if (marked) marked->push_back(narrow);
      require(is_name(each), "expected a name");
    }
    require(std::set<std::string>(found.begin(), found.end()).size() == found.size(), "a name is there twice");
    ++at_;
    return found;
  }

  void header() {
    require(!lines_.empty() && lines_[0][0] == "cell" && lines_[0].size() == 3, "expected: cell 1 NAME");
    require(lines_[0][1] == "1", "this version of rnnkernels reads programs of version 1");
    require(is_name(lines_[0][2]), "expected a name");
    p_.name = lines_[0][2];
    ++at_;
    p_.inputs = names("inputs", Program::kGates);
    p_.recurrent = names("recurrent", Program::kGates);
    p_.states = names("states", Program::kStates);
    require(!p_.states.empty(), "expected the line: states NAMES");
    p_.vectors = names("vectors", Program::kNames);
    p_.extras = names("step", Program::kNames, ":1", &p_.narrow);
    p_.steps = int(p_.extras.size());
    for (const std::string& each : names("sequence", Program::kNames)) {
      require(position(p_.extras, each) < 0, "a name is there twice");
      p_.extras.push_back(each), p_.narrow.push_back(false);
    }
    if (begins("given")) {
      require(lines_[at_].size() == 1 && !p_.inputs.empty(), "given stands alone, and needs inputs");
      p_.given = true, ++at_;
    }
    if (begins("keep")) {
      require(lines_[at_].size() == 2, "keep takes one number");
      p_.kept = number(lines_[at_][1], Program::kKept + 1, "planes");
      ++at_;
    }
  }

  void sections() {
    // What comes before decides what may follow: is there an inner product?
    for (const Words& line : lines_) p_.inner |= line.size() == 1 && line[0] == "first";
    for (const Words& line : lines_) p_.has_operand |= line.size() == 1 && line[0] == "operand";
    for (const Words& line : lines_) p_.has_y |= line.size() == 3 && line[0] == "put" && line[1] == "y";
    const std::pair<const char*, std::pair<Section*, Where>> order[] = {
        {"operand", {&p_.operand, OPERAND}},
        {"first", {&p_.first, FIRST}},
        {"forward", {&p_.forward, FORWARD}},
        {"backward", {&p_.backward, BACKWARD}},
        {"backward_first", {&p_.backward_first, BACKWARD_FIRST}},
        {"backward_operand", {&p_.backward_operand, BACKWARD_OPERAND}},
    };
    for (const auto& [name, section] : order) {
      if (!begins(name) || lines_[at_].size() != 1) continue;
      if (section.second == BACKWARD_FIRST) require(p_.inner, "backward_first needs the section first");
      if (section.second == BACKWARD_OPERAND) require(p_.has_operand, "backward_operand needs the section operand");
      ++at_;
      section.first->there = true;
      body(*section.first, section.second);
    }
    require(at_ == lines_.size(), "expected an instruction, a put or the next section");
  }

  void body(Section& section, Where where) {
    for (; at_ < lines_.size() && lines_[at_][0] != "put"; ++at_) {
      const Words& line = lines_[at_];
      Instruction each{};
      if (const auto load = loads().find(line[0]); load != loads().end()) {
        require(load->second.where & where, line[0] + " is not read in this section");
        each.op = load->second.op;
        take(load->second.takes, line, 1, line.size(), each.index, each.other);
        if (each.op == Op::i) require(p_.inner, "i needs the section first");
        if (each.op == Op::x && where == BACKWARD)
          require(p_.given && !p_.inner, "backward reads x where it is given, and there is no inner product");
        if (each.op == Op::gy) require(p_.has_y, "gy needs: put y");
      } else if (line[0] == "const") {
        require(line.size() == 2, "const takes one number");
        each.op = Op::constant, each.index = constant(real(line[1]));
      } else if (const auto found = arithmetic().find(line[0]); found != arithmetic().end()) {
        each.op = found->second.op;
        require(int(line.size()) == 1 + found->second.operands,
                line[0] + " takes " + std::to_string(found->second.operands) + " values");
        uint16_t* const to[] = {&each.a, &each.b, &each.c};
        for (size_t k = 1; k < line.size(); ++k)
          *to[k - 1] = uint16_t(number(line[k], size_t(section.values), "value"));
        if (each.op == Op::layer_norm || each.op == Op::layer_norm_back) {
          const Instruction& eps = section.code[*to[line.size() - 2]];
          require(eps.op == Op::constant && p_.constants[eps.index] >= 0,
                  "the last value of " + line[0] + " is its eps, a constant of 0 or more");
        }
      } else {
        return;  // the next section, or an error
      }
      require(size_t(section.values) < Program::kInstructions, "a section has 512 instructions at most");
      each.value = uint16_t(section.values++);
      section.code.push_back(each);
    }
    for (; at_ < lines_.size() && lines_[at_][0] == "put"; ++at_) put(section, where);
  }

  // The words from..to of a line, which name what a load reads or a put gives.
  void take(Takes takes, const Words& line, size_t from, size_t to, uint16_t& index, uint16_t& other) const {
    require(to - from == (takes == Takes::nothing ? 0 : 1), line[0] + ": a name too many or too few");
    if (takes == Takes::nothing) return;
    const std::string& word = line[from];
    auto of = [&](const Words& names, const char* what) {
      const int found = position(names, word);
      require(found >= 0, std::string("there is no ") + what + " of this name");
      return uint16_t(found);
    };
    auto gate = [&] {
      const uint16_t found = of(p_.recurrent, "recurrent gate");
      require(found < p_.gates_of_first(), "the last recurrent gate is that of the inner product: i and di");
      return found;
    };
    switch (takes) {
      case Takes::both_gates:
        index = of(p_.inputs, "input gate"), other = gate();
        break;
      case Takes::input:
        index = of(p_.inputs, "input gate");
        break;
      case Takes::gate:
        index = gate();
        break;
      case Takes::state:
        index = of(p_.states, "state");
        break;
      case Takes::vector:
        index = of(p_.vectors, "vector");
        break;
      case Takes::extra:
        index = of(p_.extras, "step or sequence input");
        break;
      case Takes::plane:
        index = uint16_t(number(word, size_t(p_.kept), "kept plane"));
        break;
      case Takes::cross:
        index = uint16_t(number(word, Program::kNames, "value of first"));
        break;
      case Takes::nothing:
        break;
    }
  }

  void put(Section& section, Where where) {
    const Words& line = lines_[at_];
    require(line.size() >= 3, "put takes a kind, a name where there is one, and a value");
    const auto found = gives().find(line[1]);
    require(found != gives().end(), "there is no such put");
    require(found->second.where & where, "put " + line[1] + " does not belong to this section");
    PutOrder each{};
    each.kind = found->second.put;
    uint16_t other = 0;
    take(found->second.takes, line, 2, line.size() - 1, each.index, other);
    each.value = uint16_t(number(line.back(), size_t(section.values), "value"));
    if (each.kind == Put::di) require(p_.inner, "di needs the section first");
    const bool sums = each.kind == Put::ds || each.kind == Put::dv || each.kind == Put::du;
    const std::pair<int, int> key{int(each.kind), each.index};
    for (const PutOrder& before : section.puts)
      require(before.kind != each.kind || before.index != each.index, "this is put twice");
    require(sums || !given_.count(key), "this is put in another section already");
    each.add = given_.count(key) > 0;
    given_[key] = where;
    auto once = [&](bool* has, int gate) {
      require(!has[gate], "the gradient of a gate is put twice");
      has[gate] = true;
    };
    if (each.kind == Put::da || each.kind == Put::dx) once(has_dx_, each.index);
    if (each.kind == Put::da) once(has_dr_, other);
    if (each.kind == Put::dr) once(has_dr_, each.index);
    section.puts.push_back(each);
  }

  bool given(Put kind, int index = 0) const { return given_.count({int(kind), index}) > 0; }

  void check() {
    at_ = lines_.size();
    require(p_.forward.there && p_.backward.there, "the sections forward and backward must be there");
    require(!p_.first.there || !p_.recurrent.empty(), "an inner product needs recurrent gates");
    require(!p_.operand.there || !p_.recurrent.empty(), "an operand needs recurrent gates");
    require(p_.first.there == p_.backward_first.there, "first and backward_first come together");
    require(p_.operand.there == p_.backward_operand.there, "operand and backward_operand come together");
    for (const Instruction& each : p_.forward.code)
      require(!p_.inner || (each.op != Op::a && each.op != Op::x && each.op != Op::r),
              "with an inner product, forward reads pre-activations by cross");
    require(!p_.operand.there || given(Put::operand), "the section operand lacks: put operand");
    require(!p_.first.there || given(Put::inner), "the section first lacks: put inner");
    for (size_t k = 0; k < p_.states.size(); ++k)
      require(given(Put::next, int(k)), "the new state " + p_.states[k] + " is not put");
    for (int k = 0; k < p_.kept; ++k) require(given(Put::keep, k), "plane " + std::to_string(k) + " is not kept");
    while (given(Put::cross, p_.crossing)) ++p_.crossing;
    int crossing = 0;
    for (const PutOrder& put : p_.first.puts) crossing += put.kind == Put::cross;
    require(crossing == p_.crossing, "values of first are numbered 0, 1, ...");
    for (const Section* section : {&p_.forward, &p_.backward_first})
      for (const Instruction& each : section->code)
        require((each.op != Op::cross && each.op != Op::dcross) || each.index < p_.crossing,
                "there is no value of first of this number");
    for (const PutOrder& put : p_.backward.puts)
      require(put.kind != Put::dcross || put.index < p_.crossing, "there is no value of first of this number");
  }
};
}  // namespace

Program::Program(const std::string& text) {
  Parser(*this, text);
  lay_out(*this);
}
