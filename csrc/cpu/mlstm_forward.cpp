// mlstm_forward.cpp - h, s q.n and the last state of one head of one sequence, compiled once per instruction set (XLSTM_ISA names
// the namespace). Everything of a chunk stays in the second-level cache. Scores are kept transposed, P[j][t] = (q_t.k_j) W_tj, so
// that gates and normalisers of t and sums over j are vectors along t; only Q is transposed.
#include "cpu/mlstm_state.h"

namespace xlstm::cpu {
namespace {

template <typename Real>
class Forward {
 public:
  Forward(const MlstmForward<Real>& p, int64_t task)
      : p_(p),
        head_(p, task),
        gates_(scratch_, head_.L),
        q_(scratch_, head_, p, p.q, p.DHQK),
        k_(scratch_, head_, p, p.k, p.DHQK),
        v_(scratch_, head_, p, p.v, p.DHHV),
        h_(scratch_, head_, p, p.h, p.DHHV) {
    QT_ = scratch_.take<Real>(head_.DK * head_.room);
    PT_ = scratch_.take<Real>(head_.L * head_.room);
    wV_ = scratch_.take<Real>(head_.L * head_.DV);
    for (Real** vector : {&dot_, &r_, &active_}) *vector = scratch_.take<Real>(head_.room);
    const bool in_place = p.C && head_.DK == p.DHQK && head_.DV == p.DHHV;
    last_ = in_place ? State<Real>{p.C + task * p.DHQK * p.DHHV, p.n + task * p.DHQK} : take_state(scratch_, head_);
  }

  void run() {
    State<Real> state;  // at the start of the chunk
    Real m = 0;
    if (p_.C0) {
      read_state(p_, head_, p_.C0, p_.n0, last_);
      m = p_.m0[head_.task];
      state = last_;
    }
    int64_t sound = m < std::numeric_limits<Real>::infinity() ? head_.steps : 0;
    for (int64_t chunk = 0; chunk * head_.L < sound; ++chunk) {
      const int64_t first = chunk * head_.L;
      K_ = k_.read(first, head_.steps_of(chunk));
      V_ = v_.read(first, head_.steps_of(chunk));
      steps_ = sound_steps(p_, head_, K_, V_, first, head_.steps_of(chunk));
      if (steps_ < head_.steps_of(chunk)) sound = first + steps_;
      if (steps_ == 0) break;
      gates_.scan(head_.template at<const Real>(p_.i, first), p_.i.step, head_.template at<const Real>(p_.f, first), p_.f.step,
                  steps_, m, p_.sigmoid_igate());
      next_ = {first + steps_, first + steps_};
      if (head_.long_way && chunk + 1 < head_.chunks) next_.end += head_.steps_of(chunk + 1);
      scores(first, state);
      outputs(first, state);
      if (!p_.C && chunk + 1 == head_.chunks) break;  // nobody reads the state
      const bool kept = p_.borders && chunk + 1 < head_.chunks;
      const State<Real> after = kept ? border_state(p_, head_, chunk + 1) : last_;
      advance(head_, gates_, K_, V_, steps_, wV_, state, after);
      state = after;
      m = gates_.m_after;
      if (kept) border_m(p_, after) = m;
    }
    finish(sound, state, m);
  }

 private:
  // P and d_t = sum_j P_tj + u_t q_t.n_{k-1}, then r.
  void scores(int64_t first, const State<Real>& state) {
    const int64_t vectors = whole_vectors<Real>(steps_), room = head_.room;
    const Rows<const Real> Q = q_.read(first, steps_);
    transposed(Q.data, Q.step, steps_, head_.DK, QT_, room);
    if (state) {
      row_product(state.n, QT_, room, p_.DHQK, vectors, Real(0), static_cast<const Real*>(nullptr), dot_);
      for (int64_t t = 0; t < vectors; ++t) dot_[t] *= gates_.u[t];
    } else {
      for (int64_t t = 0; t < vectors; ++t) dot_[t] = 0;
    }
    triangle<Real>(steps_, [&](auto tile, int64_t j, int64_t t) {
      tile.template product<Order::kRows>(K_.at(j), K_.step, QT_ + t, room, p_.DHQK);
      ask();
      Vector<Real> d[tile.width];
      for (int v = 0; v < tile.width; ++v) d[v] = load(dot_ + t + v * kLanes<Real>);
      tile.each([&](int row, int v, Vector<Real>& y) {
        y *= gates_.weight(j + row, t + v * kLanes<Real>);
        d[v] += y;
      });
      for (int v = 0; v < tile.width; ++v) store(dot_ + t + v * kLanes<Real>, d[v]);
      tile.write(PT_ + j * room + t, room);
    });
    Real* const dot = p_.dot + (head_.batch * p_.S + head_.first + first) * p_.NH + head_.head;
    for (int64_t t = 0; t < steps_; ++t) dot[t * p_.NH] = dot_[t] *= p_.scale;
    normaliser(dot_, gates_.m, steps_, p_.scale, p_.eps, p_.normalize, r_, active_);
  }

  // h_t = r_t (sum_j P_tj v_j + u_t C_{k-1}^T q_t)
  void outputs(int64_t first, const State<Real>& state) {
    const Rows<Real> H = h_.target(first);
    tiles<Real>(steps_, head_.DV, nothing, [&](auto tile, int64_t t, int64_t column) {
      ask();
      if (state) {
        tile.template product<Order::kColumns>(QT_ + t, head_.room, state.C + column, head_.DV, p_.DHQK);
        tile.scale_rows(gates_.u + t);
      }
      tile.template product<Order::kColumns>(PT_ + t, head_.room, V_.data + column, V_.step, t + tile.rows);
      tile.scale_rows(r_ + t);
      tile.write(H.at(t) + column, H.step);
    });
    h_.written(first, steps_);
  }

  void ask() {  // twice, because a chunk has half as many tiles as in backward
    for (int i = 0; i < 2; ++i) next_.ask<Real>({&k_, &v_, &q_});
  }

  // The state after the last step, and NaN from the first step on that is not sound.
  void finish(int64_t sound, State<Real> state, Real m) {
    constexpr Real nan = std::numeric_limits<Real>::quiet_NaN();
    const bool lost = sound < head_.steps;
    if (lost) {
      h_.fill(sound, head_.steps, nan);
      Real* const dot = p_.dot + (head_.batch * p_.S + head_.first) * p_.NH + head_.head;
      for (int64_t t = sound; t < head_.steps; ++t) dot[t * p_.NH] = nan;
    }
    if (!p_.C) return;
    if (!state) read_state<Real>(p_, head_, nullptr, nullptr, last_);
    if (lost) {
      std::fill(last_.C, last_.C + head_.DK * head_.DV, nan);
      std::fill(last_.n, last_.n + head_.DK, nan);
    }
    if (last_.C != p_.C + head_.task * p_.DHQK * p_.DHHV) write_state(p_, head_, last_, p_.C, p_.n);
    p_.m[head_.task] = lost ? nan : m;
  }

  const MlstmForward<Real>& p_;
  Scratch scratch_;
  const Head<Real> head_;
  Gates<Real> gates_;
  RowsOf<Real> q_, k_, v_, h_;
  Rows<const Real> K_, V_;
  int64_t steps_ = 0;  // of the chunk
  NextChunk next_;
  Real *QT_, *PT_, *wV_, *dot_, *r_, *active_;
  State<Real> last_;
};

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
void mlstm_forward_task(const MlstmForward<Real>& p, int64_t task) {
  Forward<Real>(p, task).run();
}

template void mlstm_forward_task(const MlstmForward<float>&, int64_t);
template void mlstm_forward_task(const MlstmForward<double>&, int64_t);

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
