// How a call is run on this instruction set: what the threads split, what is packed, and in which numbers.
#pragma once
#include "../machine/vectors-inl.h"
#include "../products/quads-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The choice of a schedule; A: the type computed in.
template <class A>
class Choice {
 public:
  Choice(const LayerCall& c, Engine e) : call(c), engine(e) {}

  Schedule made() {
    s.phases = cell.phases, s.normed = call.whole_rows();
    share_among_threads();
    pack_floats();
    if (takes_quads(call, engine)) pack_quads();
    else if (sizeof(A) == 4) pack_pairs();
    return s;
  }

 private:
  const LayerCall& call;
  const Engine engine;
  const CellInfo& cell = *call.cell;
  const int64_t T = call.T, B = call.B, H = call.H;
  const int64_t hh_bytes = cell.hh_gates * H * call.P * int64_t(sizeof(A)),
                bytes = cell.ih_gates * H * call.I * int64_t(sizeof(A)) + hh_bytes;
  const bool projects = cell.ih_gates > 0;
  // Weights that stay packed between calls. A single row of a single step reads large ones as fast as they lie.
  const bool kept = call.kept_place >= 0 && (T * B > 1 || bytes <= kNearBytes);
  const bool once = T == 1 && !kept;  // weights are used in a single step
  Schedule s{engine, Layout::panels, Layout::panels, Layout::panels, 0, false, false, 1, 1};
  int64_t rows = B;  // of a job

  // Parts of the batch never wait for each other, but want full tiles, and each reads all weights; units wait at every
  // step, so steps must be long.
  void share_among_threads() {
    const double recurrent = 2.0 * B * cell.hh_gates * H * call.P,
                 instructions = cell.program ? cell.program->instructions : 0,
                 step = recurrent + 2.0 * B * cell.ih_gates * H * call.I + 2.0 * B * H * instructions;
    const int64_t D = call.D, threads = step * T * D < 1e6 ? 1 : thread_count();
    s.threaded = threads > 1;
    if (threads <= D) return;
    const int64_t full = hh_bytes > kNearBytes ? 24 : 6, wanted = (threads + D - 1) / D,
                  by_batch = std::min(wanted, B / full),
                  by_units = std::min(
                      {threads, (H + Vec<A>::W - 1) / Vec<A>::W, int64_t(recurrent / double(cell.phases) / 1e5)});
    const bool units = by_units > 1 && !s.normed;    // a norm is of all units
    if (T == 1 && units) s.unit_threads = by_units;  // each weight is read once
    else if (by_batch > 1 && 2 * by_batch >= std::min(wanted, by_units)) s.row_jobs = by_batch;
    else if (units) s.unit_threads = by_units;
    else if (D == 1) s.row_jobs = std::clamp<int64_t>(B, 1, wanted);
    rows = B / s.row_jobs;
  }

  // Weights that few rows use are read where they lie: to pack them takes longer than to add up the lanes of a vector
  // for every sum, which is less of a product the longer sums are. It was measured from how many uses on packing pays.
  bool few(int64_t uses, int64_t sums) const {
    const bool floats = call.storage == Storage::float32 || call.storage == Storage::float64;
    const int64_t most = floats ? std::min(kFewUses, sums / 12) : std::min(kFewUses16, sums / 18);
    return !kept && uses < std::max<int64_t>(2, most);
  }
  // A single row reads every weight once a step anyway.
  void pack_floats() {
    s.passing = once;
    s.chunked = projects && (s.normed || (T > 1 && rows < 16));  // few rows: poorly filled tiles
    if (few(once ? rows : T * B, call.I)) s.ih = Layout::in_place;
    const bool earns = T >= kEarningSteps && hh_bytes <= kNearBytes;
    if (few(T * rows, call.P) || (!kept && rows == 1 && call.P >= 128 && !earns)) s.hh = Layout::in_place;
    // Few rows read weights of 16 bits as they are; more would widen them more than once.
    const bool narrow = kept && rows <= 4 && (call.storage == Storage::bfloat16 || call.storage == Storage::float16);
    if (narrow) s.hh = Layout::narrow;
    if (narrow && T * B <= 4) s.ih = Layout::narrow;
  }

  // In int8 packing pays sooner, and for a single row too as long as the weights stay in the cache.
  void pack_quads() {
    static const bool has_tiles = has_amx_int8();
    const int64_t row = cell.gates * H, few = row * (call.I + call.P) > kNearBytes ? 8 : 3;
    s.engine = engine == Engine::tiles && has_tiles ? Engine::tiles : Engine::bytes;
    s.ih = !kept && T * B <= few ? Layout::in_place : Layout::quads;
    s.hh = !kept && (T * rows <= few || (rows == 1 && row * call.P > kNearBytes)) ? Layout::in_place : Layout::quads;
    s.chunked = projects && T > 1 && rows < 32;
  }

  // Pairs in vectors pay for a single part. Matrix registers take a float in three parts and still win, if there are
  // rows and columns to fill them, and if the weights, half as large again, still fit the cache or are used by many
  // rows.
  void pack_pairs() {
    const int all = call.storage == Storage::bfloat16  ? 1
                    : call.storage == Storage::float16 ? 2
                                                       : 3,
              parts = call.parts && all == 3 ? call.parts : all;
    const bool single = parts == 1, tiles = engine == Engine::tiles;
    if (!tiles && !(engine == Engine::pairs && single)) return;
    s.parts = parts;
    // Rows from which it pays: of h, and of x.
    int64_t few = single ? 4 : 16, fewest = single || kept ? 2 * few : 8 * few;
    if (once) fewest = few *= 4;
    // Six products a number earn the least where sums are short, and there the matrix unit of a virtual machine, which
    // a stranger may be using at the same time, is no faster than vectors.
    const bool sums = parts < 3 || once || call.I + call.P > kShortSums;
    const bool wide = sums && (H >= 64 || (single && H >= 32));
    const int64_t of_ih = 2 * parts * cell.ih_gates * H * call.I, of_hh = 2 * parts * cell.hh_gates * H * call.P;
    if (tiles && projects && T > 1) s.chunked = s.normed || rows < 32 || of_ih > kNearBytes;
    if (once && !tiles) return;
    // Weights that are used once are never split in three: that takes as long as their products with a hundred rows,
    // and gains a tenth at best while nobody else is on the matrix unit. To split W_ih takes as long in a loop, too.
    const bool splits = !once || parts < 3, near = parts < 3 || of_hh <= kNearBytes || rows >= 32;
    if (wide && splits && rows >= few && near) s.hh = Layout::pairs;
    if (wide && splits && call.I >= 32 && (s.chunked ? T * B : rows) >= fewest) s.ih = Layout::pairs;
    if (wide && call.I >= 32 && T * B >= (once ? 96 : 64)) s.products = Layout::pairs;
  }
};

template <class A>
Schedule choose_schedule(const LayerCall& call, Engine engine) {
  return Choice<A>(call, engine).made();
}

inline Schedule schedule(const LayerCall& call, Engine engine) {
  return call.storage == Storage::float64 ? choose_schedule<double>(call, engine)
                                          : choose_schedule<float>(call, engine);
}
}  // namespace
}  // namespace RNNKERNELS_SET
