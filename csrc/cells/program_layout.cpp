// Lays out a program that is known to be one: removes what nothing reads, gives values registers and gradients planes.
#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace {
int operands_of(const Instruction& each) {
  switch (each.op) {
    case Op::neg:
    case Op::abs:
    case Op::sign:
    case Op::sqrt:
    case Op::exp:
    case Op::log:
    case Op::log1p:
    case Op::expm1:
    case Op::sigmoid:
    case Op::tanh:
    case Op::relu:
    case Op::through:  // only its value counts
      return 1;
    case Op::where:
    case Op::layer_norm_back:
    case Op::mul_add:
    case Op::mul_tanh_back:
    case Op::mul_sigmoid_back:
      return 3;
    default:
      return each.op < Op::add ? 0 : 2;
  }
}

// A value that is another one's, and only has a derivative of its own, is that one.
void resolve(Section& section) {
  std::vector<uint16_t> is(size_t(section.values));
  std::iota(is.begin(), is.end(), uint16_t(0));
  for (Instruction& each : section.code) {
    uint16_t* const from[] = {&each.a, &each.b, &each.c};
    for (int j = 0; j < operands_of(each); ++j) *from[j] = is[*from[j]];
    if (each.op == Op::through) is[each.value] = each.a;
  }
  for (PutOrder& put : section.puts) put.value = is[put.value];
}

// Makes one instruction of two where nothing else reads the first one's value: it stays in a register of the machine.
void fuse(Section& section) {
  std::vector<int> uses(size_t(section.values), 0);
  std::vector<const Instruction*> made(size_t(section.values), nullptr);
  for (const Instruction& each : section.code) {
    const uint16_t from[] = {each.a, each.b, each.c};
    for (int j = 0; j < operands_of(each); ++j) ++uses[from[j]];
    made[each.value] = &each;
  }
  for (const PutOrder& put : section.puts) ++uses[put.value];
  auto is = [&](uint16_t value, Op op) {
    return uses[value] == 1 && made[value]->op == op && made[value]->after == Op::through;
  };
  auto multiply = [&](Instruction& each, uint16_t product, uint16_t other, Op op) {
    const Instruction& mul = *made[product];
    each.op = op, each.a = mul.a, each.b = mul.b, each.c = other;
  };
  for (Instruction& each : section.code) {
    if ((each.op == Op::sigmoid || each.op == Op::tanh) && is(each.a, Op::a)) {
      const Op after = each.op;
      const uint16_t value = each.value;
      each = *made[each.a], each.value = value, each.after = after;
    } else if (each.op == Op::add && is(each.a, Op::mul)) {
      multiply(each, each.a, each.b, Op::mul_add);
    } else if (each.op == Op::add && is(each.b, Op::mul)) {
      multiply(each, each.b, each.a, Op::mul_add);
    } else if (each.op == Op::tanh_back && is(each.a, Op::mul)) {
      multiply(each, each.a, each.b, Op::mul_tanh_back);
    } else if (each.op == Op::sigmoid_back && is(each.a, Op::mul)) {
      multiply(each, each.a, each.b, Op::mul_sigmoid_back);
    }
  }
}

// Removes what no put reads, and gives the rest registers: a value's is free again after its last use.
void allocate(Section& section) {
  std::vector<int> last(size_t(section.values), -1);
  const int end = section.values;
  for (const PutOrder& put : section.puts) last[put.value] = end;
  for (size_t k = section.code.size(); k-- > 0;) {
    const Instruction& each = section.code[k];
    if (last[each.value] < 0) continue;
    const uint16_t from[] = {each.a, each.b, each.c};
    for (int j = 0; j < operands_of(each); ++j) last[from[j]] = std::max(last[from[j]], int(each.value));
  }
  section.code.erase(std::remove_if(section.code.begin(), section.code.end(),
                                    [&](const Instruction& each) { return last[each.value] < 0; }),
                     section.code.end());
  section.norms = std::any_of(section.code.begin(), section.code.end(), [](const Instruction& each) {
    return each.op == Op::layer_norm || each.op == Op::layer_norm_back;
  });
  std::vector<int> free, of(size_t(section.values), -1);
  for (Instruction& each : section.code) {
    std::set<uint16_t> ends;  // an operand's register may become the result's: instructions go vector by vector
    const uint16_t from[] = {each.a, each.b, each.c};
    for (int j = 0; j < operands_of(each); ++j)
      if (last[from[j]] == each.value && of[from[j]] >= 0) ends.insert(from[j]);
    for (const uint16_t value : ends) free.push_back(of[value]);
    each.copied = each.op == Op::s && last[each.value] == end;
    if (each.op == Op::constant) continue;
    if (free.empty()) free.push_back(section.registers++);
    of[each.value] = free.back(), free.pop_back();
    each.reg = int16_t(of[each.value]);
  }
}

int position(const std::vector<std::string>& names, const std::string& name) {
  return int(std::find(names.begin(), names.end(), name) - names.begin());
}

// Gradients of gates first. Two puts of one value become one, of both gates.
void give_planes(Program& p) {
  const int inputs = int(p.inputs.size()), recurrent = int(p.recurrent.size());
  p.shared.x.assign(p.inputs.size(), -1), p.shared.r.assign(p.recurrent.size(), -1);
  for (Section* section : {&p.backward, &p.backward_first}) {
    std::vector<PutOrder> puts;
    for (PutOrder put : section->puts) {
      if (put.kind == Put::da || put.kind == Put::dx) put.x_gate = int16_t(put.index);
      if (put.kind == Put::da) put.r_gate = int16_t(position(p.recurrent, p.inputs[put.index]));
      if (put.kind == Put::dr) put.r_gate = int16_t(put.index);
      if (put.kind == Put::di) put.r_gate = int16_t(recurrent - 1);
      auto same = std::find_if(puts.begin(), puts.end(), [&](const PutOrder& other) {
        return other.value == put.value && ((put.x_gate >= 0 && other.x_gate < 0 && other.r_gate >= 0) ||
                                            (put.r_gate >= 0 && other.r_gate < 0 && other.x_gate >= 0));
      });
      if (same == puts.end() || (put.x_gate >= 0 && put.r_gate >= 0)) {
        puts.push_back(put);
        continue;
      }
      same->x_gate = std::max(same->x_gate, put.x_gate), same->r_gate = std::max(same->r_gate, put.r_gate);
    }
    section->puts = puts;
    for (const PutOrder& put : puts) {
      if (put.x_gate < 0 && put.r_gate < 0) continue;
      if (put.x_gate >= 0) p.shared.x[size_t(put.x_gate)] = p.shared.gates;
      if (put.r_gate >= 0) p.shared.r[size_t(put.r_gate)] = p.shared.gates;
      ++p.shared.gates;
    }
  }
  for (int g = 0; g < inputs + recurrent; ++g) {
    auto& plane = g < inputs ? p.shared.x[size_t(g)] : p.shared.r[size_t(g - inputs)];
    (g < inputs ? p.apart.x : p.apart.r).push_back(g);
    if (plane >= 0) continue;
    plane = p.shared.gates++;
    p.shared.empty.push_back(plane), p.apart.empty.push_back(g);
  }
  p.apart.gates = inputs + recurrent;
  for (Program::Planes* planes : {&p.shared, &p.apart}) {
    planes->vector.assign(p.vectors.size(), -1), planes->extra.assign(p.extras.size(), -1);
    planes->all = planes->gates;
    for (const Section* section : {&p.backward, &p.backward_first, &p.backward_operand})
      for (const PutOrder& put : section->puts) {
        if (put.kind != Put::dv && put.kind != Put::du) continue;
        int& plane = (put.kind == Put::dv ? planes->vector : planes->extra)[put.index];
        if (plane < 0) plane = planes->all++;
      }
  }
}

// The instructions from which the operand of the inner product follows, down to values that `first` keeps.
void make_inner_operand_again(Program& p) {
  if (!p.inner) return;
  std::vector<int> kept(size_t(p.first.values), -1);
  uint16_t inner = 0;
  for (const PutOrder& put : p.first.puts) {
    if (put.kind == Put::keep) kept[put.value] = put.index;
    if (put.kind == Put::inner) inner = put.value;
  }
  p.again = p.first, p.again.puts = {{Put::inner, 0, inner}};
  for (Instruction& each : p.again.code)
    if (kept[each.value] >= 0) {
      const uint16_t value = each.value;
      each = {}, each.op = Op::k, each.value = value, each.index = uint16_t(kept[value]);
    }
  allocate(p.again);
  p.again_there = std::none_of(p.again.code.begin(), p.again.code.end(), [](const Instruction& each) {
    return each.op == Op::a || each.op == Op::x || each.op == Op::r;
  });
}

// The same of the first state, which a projection multiplies: from kept planes, and from new states that the backward
// pass reads anyway. unfused: `forward` as it came.
void make_output_again(Program& p, const Section& unfused) {
  if (p.inner || p.has_operand || p.has_y || p.recurrent.empty()) return;
  auto of_h = [](const Instruction& each) { return (each.op == Op::s || each.op == Op::n) && each.index == 0; };
  for (const Section* section : {&p.forward, &p.backward}) {
    if (std::any_of(section->code.begin(), section->code.end(), of_h)) return;
    for (const PutOrder& put : section->puts)
      if (put.kind == Put::ds && put.index == 0) return;
  }
  Section section = unfused;
  section.puts.clear();
  std::vector<Instruction> had(size_t(section.values));  // loads in the place of values; constants: there is none
  for (Instruction& each : had) each.op = Op::constant;
  for (const PutOrder& put : unfused.puts) {
    const bool again = put.kind == Put::next && std::find(p.zoned.begin(), p.zoned.end(), put.index) != p.zoned.end();
    if (put.kind == Put::keep) had[put.value].op = Op::k, had[put.value].index = put.index;
    else if (again && had[put.value].op != Op::k) had[put.value].op = Op::n, had[put.value].index = put.index;
    if (put.kind == Put::next && put.index == 0) section.puts.push_back(put);
  }
  for (Instruction& each : section.code)
    if (const Instruction& load = had[each.value]; load.op != Op::constant) {
      const uint16_t value = each.value;
      each = load, each.value = value;
    }
  allocate(section);
  section.there = std::none_of(section.code.begin(), section.code.end(), [](const Instruction& each) {
    return each.op == Op::a || each.op == Op::x || each.op == Op::r;
  });
  p.output_again = section;
}
}  // namespace

void lay_out(Program& p) {
  const auto sections = {&p.operand, &p.first, &p.forward, &p.backward, &p.backward_first, &p.backward_operand};
  for (Section* section : sections) resolve(*section);
  const Section forward = p.forward;
  give_planes(p);
  make_inner_operand_again(p);
  for (Section* section : sections) fuse(*section), allocate(*section), p.norms |= section->norms;
  p.instructions = int(p.operand.code.size() + p.first.code.size() + p.forward.code.size());
  std::set<int> zoned;
  for (const Section* section : {&p.backward, &p.backward_first})
    for (const Instruction& each : section->code)
      if (each.op == Op::n) zoned.insert(each.index);
  p.zoned.assign(zoned.begin(), zoned.end());
  make_output_again(p, forward);
}
