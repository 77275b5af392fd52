// How a call is run on this instruction set: what is packed, and what the threads split.
#pragma once
#include "../machine/vectors-inl.h"
#include "../products/quads-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
Schedule choose_schedule(const LayerCall& call, Engine engine) {
  const int64_t B = call.B, D = call.D;
  const CellInfo& cell = *call.cell;
  const double recurrent = 2.0 * B * cell.hh_gates * call.H * call.P,
               instructions = cell.program ? cell.program->instructions : 0,
               step = recurrent + 2.0 * B * cell.ih_gates * call.H * call.I + 2.0 * B * call.H * instructions;
  Schedule s{engine, Layout::panels, Layout::panels, Layout::panels, 0, false, false, 1, 1};
  s.phases = call.cell->phases, s.normed = call.whole_rows();
  const int64_t threads = step * call.T * D < 1e6 ? 1 : thread_count();
  s.threaded = threads > 1;
  if (threads > D) {
    // Parts of the batch never wait for each other, but want full tiles, and each reads all weights; units wait at
    // every step, so steps must be long.
    const int64_t full = cell.hh_gates * call.H * call.P * int64_t(sizeof(A)) > kNearBytes ? 24 : 6;
    const int64_t wanted = (threads + D - 1) / D, by_batch = std::min(wanted, B / full);
    const int64_t by_units =
        std::min({threads, (call.H + Vec<A>::W - 1) / Vec<A>::W, int64_t(recurrent / double(call.cell->phases) / 1e5)});
    if (call.T == 1 && by_units > 1 && !s.normed) s.unit_threads = by_units;  // each weight is read once
    else if (by_batch > 1 && 2 * by_batch >= std::min(wanted, by_units)) s.row_jobs = by_batch;
    else if (by_units > 1 && !s.normed) s.unit_threads = by_units;  // a norm is of all units
    else if (D == 1) s.row_jobs = std::clamp<int64_t>(B, 1, wanted);
  }
  // Packing reads the weights once in an awkward order: a few steps do not earn that back, and a single row does not
  // need it, because it reads every weight once a step anyway.
  const int64_t rows = B / s.row_jobs;
  // Weights that are kept have been packed before. A single row of a single step reads large ones as fast as they lie.
  const int64_t bytes = (cell.ih_gates * call.I + cell.hh_gates * call.P) * call.H * int64_t(sizeof(A));
  const bool kept = call.kept_place >= 0 && (call.T * B > 1 || bytes <= kNearBytes), once = call.T == 1 && !kept,
             floats = call.storage == Storage::float32 || call.storage == Storage::float64;
  const int64_t least = std::min(cell.ih_gates > 0 ? call.I : kLong, cell.hh_gates > 0 ? call.P : kLong),
                passing = floats && least >= kLong ? kPassingLong : kPassing;
  const bool few_steps = !kept && (once ? rows < passing : call.T * ((B + 5) / 6) < 4);
  s.passing = once && !few_steps;
  const bool projects = cell.ih_gates > 0;
  s.chunked = projects && (s.normed || (call.T > 1 && rows < 16));  // few rows: poorly filled tiles
  if (few_steps || (!kept && !once && call.T * B <= 256 && call.I >= 128)) s.ih = Layout::in_place;
  const bool earns = call.T >= kEarningSteps && cell.hh_gates * call.H * call.P * int64_t(sizeof(A)) <= kNearBytes;
  if (few_steps || (!kept && rows == 1 && call.P >= 128 && !earns)) s.hh = Layout::in_place;
  // Few rows read weights of 16 bits as they are; more would widen them more than once.
  const bool narrow = kept && rows <= 4 && (call.storage == Storage::bfloat16 || call.storage == Storage::float16);
  if (narrow) s.hh = Layout::narrow;
  if (narrow && call.T * B <= 4) s.ih = Layout::narrow;
  // In int8 packing pays sooner, and for a single row too as long as the weights stay in the cache.
  if (takes_quads(call, engine)) {
    static const bool has_tiles = has_amx_int8();
    const int64_t row = call.cell->gates * call.H, few = row * (call.I + call.P) > kNearBytes ? 8 : 3;
    s.engine = engine == Engine::tiles && has_tiles ? Engine::tiles : Engine::bytes;
    s.ih = !kept && call.T * B <= few ? Layout::in_place : Layout::quads;
    s.hh =
        !kept && (call.T * rows <= few || (rows == 1 && row * call.P > kNearBytes)) ? Layout::in_place : Layout::quads;
    s.chunked = projects && call.T > 1 && rows < 32;
    return s;
  }
  // Pairs in vectors pay for a single part. Matrix registers take a float in three parts and still win, if there are
  // rows and columns to fill them, and if the weights, half as large again, still fit the cache or are used by many
  // rows.
  const int all = call.storage == Storage::bfloat16  ? 1
                  : call.storage == Storage::float16 ? 2
                                                     : 3,
            parts = call.parts && all == 3 ? call.parts : all;
  const bool single = parts == 1, tiles = engine == Engine::tiles;
  if (sizeof(A) == 8 || !(tiles || (engine == Engine::pairs && single))) return s;
  s.parts = parts;
  // Weights that are used once are split for so many rows, and only by matrix registers; never in three parts: that
  // takes as long as their products with a hundred rows, and gains a tenth at best while nobody else is on the matrix
  // unit. To split W_ih takes as long in a loop, too.
  const bool splits = !once || parts < 3;
  const int64_t few_once = single ? 16 : 64,
                few = once     ? few_once
                      : single ? 4
                               : 16,
                fewest = once             ? few
                         : single || kept ? 2 * few
                                          : 8 * few;
  // Six products a number earn the least where sums are short, and there the matrix unit of a virtual machine, which a
  // stranger may be using at the same time, is no faster than vectors.
  const bool sums = s.parts < 3 || once || call.I + call.P > kShortSums;
  const bool wide = sums && (call.H >= 64 || (single && call.H >= 32));
  const int64_t ih_bytes = 2 * s.parts * cell.ih_gates * call.H * call.I,
                hh_bytes = 2 * s.parts * cell.hh_gates * call.H * call.P;
  if (tiles && projects && call.T > 1) s.chunked = s.normed || rows < 32 || ih_bytes > kNearBytes;
  const bool near = s.parts < 3 || hh_bytes <= kNearBytes || rows >= 32;
  if (once && !tiles) return s;
  if (wide && splits && rows >= few && near) s.hh = Layout::pairs;
  if (wide && splits && call.I >= 32 && (s.chunked ? call.T * B : rows) >= fewest) s.ih = Layout::pairs;
  if (wide && call.I >= 32 && call.T * B >= (once ? 96 : 64)) s.products = Layout::pairs;
  return s;
}

inline Schedule schedule(const LayerCall& call, Engine engine) {
  return call.storage == Storage::float64 ? choose_schedule<double>(call, engine)
                                          : choose_schedule<float>(call, engine);
}
}  // namespace
}  // namespace RNNKERNELS_SET
