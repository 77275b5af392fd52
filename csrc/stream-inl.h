// A layer that is run a few steps at a time and keeps its weights and its state in between: Forward's parts under a
// schedule that does not depend on how many steps come, so that every cut of a sequence gives the same bits.

// Few rows read weights of 16 bits as they are (narrow-inl.h), and W_ih and W_hh are then none of Forward's; more rows
// would widen them more than once.
inline bool is_narrow(const LayerCall& call) {
  return call.B <= 4 && (call.storage == Storage::bfloat16 || call.storage == Storage::float16);
}
inline Schedule stream_schedule(const LayerCall& call) {
  const Form form = is_narrow(call) ? Form::elsewhere : Form::panels;
  return {Level::vectors, form, form, Form::panels, 0, false, false, 1, 1};
}

template <class A, class Cell, int NV>
class StreamOf final : public Stream {
 public:
  StreamOf(const LayerCall& given, int64_t members)
      : call_(endless(given)),
        loop_(call_, stream_schedule(call_)),
        job_{0, 0, call_.B, {}, {}, {}, {}, {}},
        inputs_(members) {
    for (int64_t u = 0; u < loop_.panels; ++u) loop_.pack_panel(0, u);
    for (int64_t u = 0; call_.project && u < loop_.out_panels; ++u) loop_.pack_projection(0, u);
    if (is_narrow(call_)) {
      w_ih_.pack(call_.weights[0], call_.storage, Cell::G, call_.H, call_.I);
      w_hh_.pack(call_.weights[1], call_.storage, Cell::G, call_.H, call_.P);
    }
    loop_.start(job_);
    for (auto& input : inputs_) input.rows.allocate(call_.B * call_.I);
  }

  void read(const void* x, int64_t stride_T, int64_t stride_B) override {
    loop_.x_in = loop_.port(x), call_.x_stride_T = stride_T, call_.x_stride_B = stride_B;
  }
  void write(void* y, int64_t stride_T, int64_t stride_B) override {
    loop_.y = loop_.port(y), loop_.y_stride_T = stride_T, loop_.y_stride_B = stride_B;
  }

  bool step(int64_t t, Team::Member& member) override {
    const Left<A> x = loop_.rows_of_x(job_, inputs_[member.index()], t, 1);
    const int64_t slot = now_ + t;
    Tiles tiles;
    alignas(64) A sums[kRows * Loop::SUMS], x_sums[kRows * Loop::SUMS];
    for_blocks(loop_.panels, slot & 1, member, [&](int64_t u, int64_t r, int64_t n) {
      multiply(tiles, u, n, x.from(r), true, x_sums);
      multiply(tiles, u, n, {job_.h.data() + job_.at(slot, r) * loop_.Pp, loop_.Pp}, false, sums);
      loop_.apply(job_, t, u, slot, r, n, x_sums, Loop::SUMS, sums);
    });
    if (!member.barrier()) return false;
    if (!call_.project) return true;
    for_blocks(loop_.out_panels, slot & 1, member,
               [&](int64_t u, int64_t r, int64_t n) { loop_.project(job_, tiles, t, u, slot, r, n, sums); });
    return member.barrier();
  }
  void advance(int64_t steps) override { now_ = (now_ + steps) & 1; }

  void reset(int64_t row) override {
    std::fill_n(h(row), loop_.Pp, A(0));
    if (Cell::STATES > 1) std::fill_n(c(row), loop_.Hp, A(0));
  }
  void get_state(int k, void* to) const override {
    for (int64_t r = 0; r < call_.B; ++r) std::copy_n(state(k, r), width(k), static_cast<A*>(to) + r * width(k));
  }
  void set_state(int k, const void* from) override {
    for (int64_t r = 0; r < call_.B; ++r)
      std::copy_n(static_cast<const A*>(from) + r * width(k), width(k), state(k, r));
  }

 private:
  using Loop = Forward<A, Cell, NV>;
  static constexpr int64_t kRows = 48;  // whose sums are kept at a time

  static LayerCall endless(LayerCall call) {
    call.T = INT64_MAX;
    return call;
  }

  void multiply(Tiles& tiles, int64_t u, int64_t n, const Left<A>& left, bool input, A* sums) const {
    const auto& narrow = input ? w_ih_ : w_hh_;
    if constexpr (sizeof(A) == 4)
      if (narrow) return narrow.multiply(n, left.a, left.row, u, sums, Loop::SUMS);
    loop_.multiply(tiles, 0, u, n, left, input, sums, Loop::SUMS);
  }

  // Up and down in turn, so that what the cache still holds of the weights is what the next step begins with.
  template <class F>
  void for_blocks(int64_t all, bool down, const Team::Member& member, const F& f) const {
    const auto [lo, hi] = member.share(all);
    for (int64_t i = lo; i < hi; ++i)
      for (int64_t r = 0; r < call_.B; r += kRows) f(down ? hi - 1 - (i - lo) : i, r, std::min(kRows, call_.B - r));
  }

  A* h(int64_t row) const { return job_.h.data() + job_.at(now_, row) * loop_.Pp; }
  A* c(int64_t row) const { return job_.c.data() + row * loop_.Hp; }
  A* state(int k, int64_t row) const { return k ? c(row) : h(row); }
  int64_t width(int k) const { return k ? call_.H : call_.P; }

  LayerCall call_;
  Loop loop_;
  typename Loop::Job job_;
  std::vector<typename Loop::Input> inputs_;  // of each member
  Narrow<Loop::NB> w_ih_, w_hh_;
  int64_t now_ = 0;  // the slot of h that holds the state
};

template <class A, class Cell>
std::unique_ptr<Stream> stream_of(const LayerCall& call, int64_t members) {
  if constexpr (Cell::G > 1) return std::make_unique<StreamOf<A, Cell, 1>>(call, members);
  else if (wide_panels<A>(call.H)) return std::make_unique<StreamOf<A, Cell, 4>>(call, members);
  else return std::make_unique<StreamOf<A, Cell, 2>>(call, members);
}

inline std::unique_ptr<Stream> stream(const LayerCall& call, int64_t members) {
#define CELL(name, type)                                                             \
  case CellKind::name:                                                               \
    return call.storage == Storage::float64 ? stream_of<double, type>(call, members) \
                                            : stream_of<float, type>(call, members);
  switch (call.cell->kind) { FOR_EACH_CELL(CELL) }
#undef CELL
  return nullptr;
}
