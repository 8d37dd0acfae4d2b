// mlstm_backward.cpp - all gradients of one head of one sequence (M7, and M7a of README.md for the gates), compiled once per
// instruction set (XLSTM_ISA names the namespace). The states at inner borders are those that forward kept, or are computed once
// more; then chunks are walked from the last to the first. As in mlstm_forward.cpp scores and their gradients are kept
// transposed; Q, r dH and one panel of C or dC at a time are the other transposes.
#include "cpu/mlstm_state.h"

namespace xlstm::cpu {
namespace {

template <typename Real>
class Backward {
 public:
  Backward(const MlstmBackward<Real>& p, int64_t task)
      : p_(p),
        head_(p, task),
        gates_(scratch_, head_.L),
        q_(scratch_, head_, p, p.q, p.DHQK),
        k_(scratch_, head_, p, p.k, p.DHQK),
        v_(scratch_, head_, p, p.v, p.DHHV),
        h_(scratch_, head_, p, p.h, p.DHHV),
        dh_(scratch_, head_, p, p.dh, p.DHHV),
        dq_(scratch_, head_, p, p.dq, p.DHQK),
        dk_(scratch_, head_, p, p.dk, p.DHQK),
        dv_(scratch_, head_, p, p.dv, p.DHHV) {
    const int64_t L = head_.L, room = head_.room, DK = head_.DK, DV = head_.DV;
    QT_ = scratch_.take<Real>(DK * room);
    rG_ = scratch_.take<Real>(L * DV);
    rGT_ = scratch_.take<Real>(DV * room);
    PT_ = scratch_.take<Real>(L * room);
    dPT_ = scratch_.take<Real>(L * room);
    panel_ = scratch_.take<Real>(kTileColumns<Real> * DV);
    sums_ = scratch_.take<Real>(room * kLanes<Real>);
    written_ = scratch_.take<double>(L);
    for (Real** vector : {&dot_, &r_, &active_, &rdelta_, &urdelta_, &X_row_, &X_column_, &X_diagonal_, &x_, &y_}) {
      *vector = scratch_.take<Real>(room);
    }
    dstate_ = take_state(scratch_, head_);
  }

  void run() {
    if (!states_at_borders()) return lose();
    const bool given = p_.dC || p_.dn;
    if (given) read_state(p_, head_, p_.dC, p_.dn, dstate_);
    after_ = given ? dstate_ : State<Real>{};
    for (int64_t chunk = head_.chunks; chunk-- > 0;) {
      const int64_t first = chunk * head_.L;
      steps_ = head_.steps_of(chunk);
      Q_ = q_.read(first, steps_);
      K_ = k_.read(first, steps_);
      V_ = v_.read(first, steps_);
      G_ = dh_.read(first, steps_);
      before_ = states_[chunk];
      scan(first, m_[chunk]);
      normalisers(first);
      next_ = {head_.long_way && chunk > 0 ? first - head_.L : first, first};
      scores();
      query_gradient(first);
      key_gradient(first);
      value_gradient(first);
      gate_gradients(first, before_ ? state_gradient() : 0);
    }
    if (!p_.C0) return;
    if (!after_) read_state<Real>(p_, head_, nullptr, nullptr, dstate_);
    write_state(p_, head_, dstate_, p_.dC0, p_.dn0);
    const double product = inner_product(p_.C0, p_.dC0, p_.DHQK * p_.DHHV) + inner_product(p_.n0, p_.dn0, p_.DHQK);
    p_.dm0[head_.task] = static_cast<Real>(product);
  }

 private:
  // C, n and m before every chunk; whether all steps are sound.
  bool states_at_borders() {
    states_ = scratch_.take<State<Real>>(head_.chunks + 1);
    m_ = scratch_.take<Real>(head_.chunks + 1);
    states_[0] = {};
    m_[0] = 0;
    if (p_.C0) {
      states_[0] = take_state(scratch_, head_);
      read_state(p_, head_, p_.C0, p_.n0, states_[0]);
      m_[0] = p_.m0[head_.task];
      if (!(m_[0] < std::numeric_limits<Real>::infinity())) return head_.steps == 0;
    }
    const bool sound = head_.steps > 0 && dot_of(head_.steps - 1) == dot_of(head_.steps - 1);  // else forward left a NaN there
    if (sound && p_.borders) {
      for (int64_t chunk = 1; chunk < head_.chunks; ++chunk) {
        states_[chunk] = border_state(p_, head_, chunk);
        m_[chunk] = border_m(p_, states_[chunk]);
      }
      return true;
    }
    for (int64_t chunk = 0; chunk < head_.chunks; ++chunk) {
      const int64_t first = chunk * head_.L, steps = head_.steps_of(chunk);
      const Rows<const Real> K = k_.read(first, steps), V = v_.read(first, steps);
      if (!sound && sound_steps(p_, head_, K, V, first, steps) < steps) return false;
      if (chunk + 1 == head_.chunks) break;
      steps_ = steps;
      scan(first, m_[chunk]);
      states_[chunk + 1] = take_state(scratch_, head_);
      advance(head_, gates_, K, V, steps, rG_, states_[chunk], states_[chunk + 1]);
      m_[chunk + 1] = gates_.m_after;
    }
    return true;
  }

  void scan(int64_t first, Real m) {
    gates_.scan(head_.template at<const Real>(p_.i, first), p_.i.step, head_.template at<const Real>(p_.f, first), p_.f.step,
                steps_, m, p_.sigmoid_igate());
  }

  Real dot_of(int64_t t) const { return p_.dot[(head_.batch * p_.S + head_.first + t) * p_.NH + head_.head]; }

  double inner_product(const Real* x, const Real* dx, int64_t count) const {
    double sum = 0;
    for (int64_t at = head_.task * count; at < (head_.task + 1) * count; ++at) sum += static_cast<double>(x[at]) * dx[at];
    return sum;
  }

  // r_t, r_t delta_t with delta_t = -[|s d_t| > exp(-m_t)] sign(d_t) (dh_t.h_t), and r dH in both orders.
  void normalisers(int64_t first) {
    for (int64_t t = 0; t < steps_; ++t) dot_[t] = dot_of(first + t);
    normaliser(dot_, gates_.m, steps_, p_.scale, p_.eps, p_.normalize, r_, active_);
    const int64_t vectors = whole_vectors<Real>(steps_);
    if (p_.exact && p_.normalize) {
      const Rows<const Real> H = h_.read(first, steps_);
      row_dots(G_.data, G_.step, H.data, H.step, steps_, head_.DV, rdelta_);
      for (int64_t t = 0; t < steps_; ++t) {
        rdelta_[t] = active_[t] == 0 ? Real(0) : -r_[t] * (dot_[t] > 0 ? rdelta_[t] : dot_[t] < 0 ? -rdelta_[t] : dot_[t]);
      }
    } else {
      for (int64_t t = 0; t < vectors; ++t) rdelta_[t] = 0;
    }
    for (int64_t t = 0; t < vectors; ++t) urdelta_[t] = gates_.u[t] * rdelta_[t];
    transposed(Q_.data, Q_.step, steps_, head_.DK, QT_, head_.room);
    transposed(G_.data, G_.step, steps_, head_.DV, rGT_, head_.room, r_);
    scaled(G_.data, G_.step, steps_, head_.DV, r_, rG_);
  }

  // P_tj = (q_t.k_j) W_tj,  dP_tj = (dh_t.v_j + delta_t) W_tj r_t  and the sums of X_tj = P_tj dP_tj / W_tj
  void scores() {
    const int64_t room = head_.room;
    clear_sums(sums_, steps_);
    for (int64_t t = 0; t < whole_vectors<Real>(steps_); ++t) X_row_[t] = X_diagonal_[t] = 0;
    triangle<Real>(steps_, [&](auto tile, int64_t j, int64_t t) {
      constexpr int rows = tile.rows, width = tile.width;
      Vector<Real> W[rows][width];
      auto dtile = tile;
      ask();
      tile.template product<Order::kRows>(K_.at(j), K_.step, QT_ + t, room, p_.DHQK);
      tile.each([&](int row, int v, Vector<Real>& y) {
        W[row][v] = gates_.weight(j + row, t + v * kLanes<Real>);
        y *= W[row][v];
      });
      tile.write(PT_ + j * room + t, room);
      dtile.template product<Order::kRows>(V_.at(j), V_.step, rGT_ + t, room, p_.DHHV);
      const bool diagonal = t < j + rows;
      dtile.each([&](int row, int v, Vector<Real>& y) {
        const int64_t at = t + v * kLanes<Real>;
        y += load(rdelta_ + at);
        Vector<Real> X = load(PT_ + (j + row) * room + at) * y;
        if (diagonal) {
          const auto on_it = lane_numbers<Real>() == static_cast<typename VectorOf<Real>::Integer>(j + row - at);
          store(X_diagonal_ + at, load(X_diagonal_ + at) + (on_it ? X : Vector<Real>{}));
          X = on_it ? Vector<Real>{} : X;
        }
        store(X_row_ + at, load(X_row_ + at) + X);
        add_to_sum(sums_, j + row, X);
        y *= W[row][v];
      });
      dtile.write(dPT_ + j * room + t, room);
    });
    finish_sums(sums_, steps_, X_column_);
  }

  void ask() { next_.ask<Real>({&q_, &k_, &v_, &dh_, &h_}); }

  // Columns of the transpose of a state matrix.
  auto panel_of(const Real* matrix) {
    return [this, matrix](int64_t column, int64_t columns) {
      if (matrix) transposed(matrix + column * head_.DV, head_.DV, columns, head_.DV, panel_, kTileColumns<Real>);
    };
  }

  void zeros(Real* vector) const { std::fill(vector, vector + steps_, Real(0)); }

  // dq_t = sum_j dP_tj k_j + u_t r_t (C_{k-1} dh_t + delta_t n_{k-1})
  void query_gradient(int64_t first) {
    const Rows<Real> dQ = dq_.target(first);
    if (before_) clear_sums(sums_, steps_);
    tiles<Real>(steps_, head_.DK, panel_of(before_.C), [&](auto tile, int64_t t, int64_t column) {
      ask();
      if (before_) {
        tile.template product<Order::kColumns>(rGT_ + t, head_.room, panel_, kTileColumns<Real>, p_.DHHV);
        tile.each([&](int row, int v, Vector<Real>& y) {
          const int64_t at = column + v * kLanes<Real>;
          y = (y + rdelta_[t + row] * load(before_.n + at)) * gates_.u[t + row];
          add_to_sum(sums_, t + row, y * load(Q_.at(t + row) + at));
        });
      }
      tile.template product<Order::kColumns>(dPT_ + t, head_.room, K_.data + column, K_.step, t + tile.rows);
      tile.write(dQ.at(t) + column, dQ.step);
    });
    before_ ? finish_sums(sums_, steps_, x_) : zeros(x_);
    dq_.written(first, steps_);
  }

  // dk_j = sum_t dP_tj q_t + w_j (dC_k v_j + dn_k)
  void key_gradient(int64_t first) {
    const Rows<Real> dK = dk_.target(first);
    if (after_) clear_sums(sums_, steps_);
    tiles<Real>(steps_, head_.DK, panel_of(after_.C), [&](auto tile, int64_t j, int64_t column) {
      ask();
      if (after_) {
        tile.template product<Order::kRows>(V_.at(j), V_.step, panel_, kTileColumns<Real>, p_.DHHV);
        tile.each([&](int row, int v, Vector<Real>& y) {
          const int64_t at = column + v * kLanes<Real>;
          y = (y + load(after_.n + at)) * gates_.w[j + row];
          add_to_sum(sums_, j + row, y * load(K_.at(j + row) + at));
        });
      }
      tile.template product<Order::kRows>(dPT_ + j * head_.room + j, head_.room, Q_.at(j) + column, Q_.step, steps_ - j);
      tile.write(dK.at(j) + column, dK.step);
    });
    after_ ? finish_sums(sums_, steps_, y_) : zeros(y_);
    dk_.written(first, steps_);
  }

  // dv_j = sum_t P_tj r_t dh_t + w_j dC_k^T k_j
  void value_gradient(int64_t first) {
    const Rows<Real> dV = dv_.target(first);
    tiles<Real>(steps_, head_.DV, nothing, [&](auto tile, int64_t j, int64_t column) {
      ask();
      if (after_) {
        tile.template product<Order::kRows>(K_.at(j), K_.step, after_.C + column, head_.DV, p_.DHQK);
        tile.scale_rows(gates_.w + j);
      }
      tile.template product<Order::kRows>(PT_ + j * head_.room + j, head_.room, rG_ + j * head_.DV + column, head_.DV,
                                          steps_ - j);
      tile.write(dV.at(j) + column, dV.step);
    });
    dv_.written(first, steps_);
  }

  // di and df (M7a). kept: g (<C_{k-1}, dC_k> + <n_{k-1}, dn_k>). No sum goes across a reset.
  void gate_gradients(int64_t first, double kept) {
    for (int64_t t = 0; t < steps_; ++t) {
      written_[t] = kept;
      kept += y_[t];
    }
    gates_.slopes(steps_, p_.sigmoid_igate());
    double read = 0;
    for (int64_t t = steps_ - 1; t >= 0; --t) {
      read += static_cast<double>(X_row_[t]) - X_column_[t] + x_[t];
      *head_.template at<Real>(p_.df, first + t) = static_cast<Real>(read + written_[t]) * gates_.f[t];
      *head_.template at<Real>(p_.di, first + t) = (X_column_[t] + X_diagonal_[t] + y_[t]) * gates_.i[t];
      if (gates_.resets_at(t)) read = 0;
    }
  }

  // dC_{k-1} = g dC_k + sum_t u_t r_t q_t dh_t^T,  dn_{k-1} = g dn_k + sum_t u_t r_t delta_t q_t.
  // Returns g (<C_{k-1}, dC_k> + <n_{k-1}, dn_k>), summed tile by tile.
  double state_gradient() {
    for (int64_t row = 0; row < head_.DK; ++row) {
      for (int64_t t = 0; t < steps_; t += kLanes<Real>) {
        store(QT_ + row * head_.room + t, load(QT_ + row * head_.room + t) * load(gates_.u + t));
      }
    }
    double kept = 0;
    for (int64_t column = 0; after_ && column < head_.DK; column += kLanes<Real>) {
      kept += gates_.g * sum_of<Real>(load(after_.n + column) * load(before_.n + column));
    }
    tiles<Real>(head_.DK, head_.DV, nothing, [&](auto tile, int64_t row, int64_t column) {
      tile.template product<Order::kRows>(QT_ + row * head_.room, head_.room, rG_ + column, head_.DV, steps_);
      Vector<Real> sum = {};
      tile.each([&](int y, int v, Vector<Real>& value) {
        const int64_t at = (row + y) * head_.DV + column + v * kLanes<Real>;
        if (after_) {
          const Vector<Real> carried = gates_.g * load(after_.C + at);
          sum += carried * load(before_.C + at);
          value += carried;
        }
        store(dstate_.C + at, value);
      });
      kept += sum_of<Real>(sum);
    });
    row_product(urdelta_, Q_.data, Q_.step, steps_, head_.DK, gates_.g, static_cast<const Real*>(after_.n), dstate_.n);
    after_ = dstate_;
    return kept;
  }

  // A step that is not sound has no gradient that is a number, nor has any that it takes part in.
  void lose() {
    constexpr Real nan = std::numeric_limits<Real>::quiet_NaN();
    for (const RowsOf<Real>* rows : {&dq_, &dk_, &dv_}) rows->fill(0, head_.steps, nan);
    for (int64_t t = 0; t < head_.steps; ++t) *head_.template at<Real>(p_.di, t) = *head_.template at<Real>(p_.df, t) = nan;
    if (!p_.C0) return;
    std::fill(dstate_.C, dstate_.C + head_.DK * head_.DV, nan);
    std::fill(dstate_.n, dstate_.n + head_.DK, nan);
    write_state(p_, head_, dstate_, p_.dC0, p_.dn0);
    p_.dm0[head_.task] = nan;
  }

  const MlstmBackward<Real>& p_;
  Scratch scratch_;
  const Head<Real> head_;
  Gates<Real> gates_;
  RowsOf<Real> q_, k_, v_, h_, dh_, dq_, dk_, dv_;
  Rows<const Real> Q_, K_, V_, G_;  // G: dH
  int64_t steps_ = 0;               // of the chunk
  NextChunk next_;
  Real *QT_, *rG_, *rGT_, *PT_, *dPT_, *panel_, *dot_, *r_, *active_, *rdelta_, *urdelta_;
  Real *X_row_, *X_column_, *X_diagonal_, *x_, *y_, *sums_;
  double* written_;      // what earlier steps of the chunk, and those before it, contribute to df_t
  State<Real>* states_;  // before every chunk
  Real* m_;
  State<Real> dstate_;          // memory of dC and dn
  State<Real> before_, after_;  // the state before the chunk, and the gradient of the one after it; null: fresh, and none
};

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
void mlstm_backward_task(const MlstmBackward<Real>& p, int64_t task) {
  Backward<Real>(p, task).run();
}

template void mlstm_backward_task(const MlstmBackward<float>&, int64_t);
template void mlstm_backward_task(const MlstmBackward<double>&, int64_t);

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
