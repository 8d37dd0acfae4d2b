// cell.cuh - one scalar sLSTM cell, forward and backward: pure functions used by every kernel, by the CPU backend and by the
// executor.
//
//   raw = x + R h_ + b for gates i, f, z, o;   lf = log sigmoid(raw_f), or raw_f itself;   "_" marks the previous step
//   m = raw_i if n_ = 0 else max(raw_i, lf + m_)                                                                     (S1)
//   d = lf + m_ - raw_i, -inf if n_ = 0:   i' = exp(-d) if d > 0 else 1,   f' = 1 if d > 0 else exp(d)               (S2)
//   c = f' c_ + i' tanh(raw_z)    n = f' n_ + i'    h = o' c / n,  o' = sigmoid(raw_o);  h = 0 while n = 0           (S3)
//   dc += dy o'/n    dn -= dy h/n
//   dg_i = i' (z dc + dn)   dg_f = f' sigmoid(-raw_f) (dc c_ + dn n_)   dg_z = i' (1 - z^2) dc   dg_o = (1 - o') h dy
//   dc_ = f' dc   dn_ = f' dn                                                                                        (S4)
//
// S2 needs one exponential, because one of i', f' is always 1.  A fresh element (n = 0) carries m = kFresh, far below every
// finite gate: S1 and S2 then come out right without a branch on n.  A gate below kFresh / 2 counts as -inf.
// Backward needs four numbers per cell besides c and n.  They are *tails*, which keep their relative precision, in 16 bits
// too, when a gate saturates:  d,  sf = sigmoid(-raw_f),  u = sign(raw_z) (1 - |z|) / 2,  w = sign(raw_o) sigmoid(-|raw_o|).
// Comparisons are written so that NaN comes through.
#pragma once
#include <stdexcept>
#include <type_traits>

#include "device/math.cuh"
#include "device/unreachable.cuh"
#include "slstm/params.h"

namespace xlstm::slstm {

template <typename Real>
constexpr Real kFresh = Real(-1e30);

template <typename Real>
struct CellState {
  Real c, n, m;  // m = kFresh while n = 0
};
template <typename Real>
struct CellSaved {
  Real d, sf, u, w;
};

template <typename Real>
XLSTM_DEVICE CellState<Real> cell_state(Real c, Real n, Real m) {
  return {c, n, n == Real(0) ? kFresh<Real> : m};
}
template <typename Real>
XLSTM_DEVICE Real returned_m(const CellState<Real>& state) {
  return state.n == Real(0) ? Real(0) : state.m;
}

template <ForgetGate gate>
using ForgetGateConstant = std::integral_constant<ForgetGate, gate>;

// visit(ForgetGateConstant<gate>). Launchers have asked check_forget_gate, so a kernel ends in one of the branches.
template <class Visit>
XLSTM_DEVICE auto with_forget_gate(ForgetGate gate, Visit&& visit) {
  switch (gate) {
    case ForgetGate::kSigmoid:
      return visit(ForgetGateConstant<ForgetGate::kSigmoid>{});
    case ForgetGate::kExp:
      return visit(ForgetGateConstant<ForgetGate::kExp>{});
  }
  device::unreachable("slstm: a forget gate without a branch");
}
inline void check_forget_gate(ForgetGate gate) {
  if (gate != ForgetGate::kSigmoid && gate != ForgetGate::kExp)
    throw std::invalid_argument("slstm: a forget gate without a branch");
}

// S1-S3: returns h, advances the state.  In float on a GPU: 7 MUFU (4 ex2, 1 lg2, 2 rcp).
template <ForgetGate forget_gate, typename Real>
XLSTM_DEVICE Real cell_forward(Real raw_i, Real raw_f, Real raw_z, Real raw_o, CellState<Real>& state, CellSaved<Real>& saved) {
  constexpr Real log2e = device::Constants<Real>::log2e, ln2 = device::Constants<Real>::ln2, none = kFresh<Real> / 2;
  const Real ez = device::exp2_approx(Real(-2) * log2e * device::absolute(raw_z));
  const Real eo = device::exp2_approx(-log2e * device::absolute(raw_o));
  const Real pz = Real(1) + ez, po = Real(1) + eo;
  Real lf, u, w;
  if constexpr (forget_gate == ForgetGate::kSigmoid) {
    const Real ef = device::exp2_approx(-log2e * device::absolute(raw_f)), pf = Real(1) + ef;
    const Real pfo = pf * po, r = device::rcp_approx(pfo * pz), rpz = r * pz;  // each factor in [1, 2]: one reciprocal serves all
    lf = (raw_f < Real(0) ? raw_f : Real(0)) - ln2 * device::log2_1p(ef);
    saved.sf = (raw_f < Real(0) ? Real(1) : ef) * (rpz * po);
    u = ez * (r * pfo);
    w = eo * (rpz * pf);
  } else {
    static_assert(forget_gate == ForgetGate::kExp, "a forget gate without an equation");
    const Real r = device::rcp_approx(pz * po);
    lf = raw_f;
    saved.sf = Real(1);
    u = ez * (r * po);
    w = eo * (r * pz);
  }
  // Whatever is forgotten sinks to 2 kFresh, a closed input gate to kFresh, so the difference has the right sign in all four
  // cases.
  const bool closed = raw_i < none;
  const Real input_m = closed ? kFresh<Real> : raw_i;
  const Real kept_m = lf + state.m < none ? 2 * kFresh<Real> : lf + state.m;
  const Real d = kept_m - input_m;
  const Real e = device::exp2_approx(-log2e * device::absolute(d));
  const bool keep = d > Real(0);
  const Real ip = closed ? Real(0) : keep ? e : Real(1), fp = keep ? Real(1) : e;
  const Real z = device::with_sign(Real(1) - Real(2) * u, raw_z), o = raw_o < Real(0) ? w : Real(1) - w;
  state.c = fp * state.c + ip * z;
  state.n = fp * state.n + ip;
  state.m = keep ? kept_m : input_m;
  saved.d = d;
  saved.u = device::with_sign(u, raw_z);
  saved.w = device::with_sign(w, raw_o);
  return o * state.c * device::rcp_approx(state.n == Real(0) ? Real(1) : state.n);  // n = 0 only with c = 0
}

// The part of S4 that does not depend on incoming gradients; S4 is linear in (dy, dc, dn) with these coefficients.
// h is rebuilt from c, n, o' and never taken from its rounded copy: dg_f cancels c_ / n_ against c / n.
template <typename Real>
struct CellCoefficients {
  Real h, on, hn, ko, ip, iz, izz, kfc, kfn, fp;
};

template <typename Real>
XLSTM_DEVICE CellCoefficients<Real> cell_coefficients(const CellSaved<Real>& saved, Real c, Real n, Real c_prev, Real n_prev) {
  const Real e = device::exp2_approx(-device::Constants<Real>::log2e * device::absolute(saved.d));
  const Real au = device::absolute(saved.u), aw = device::absolute(saved.w);
  const bool keep = saved.d > Real(0), empty = n == Real(0);
  const Real ip = empty ? Real(0) : keep ? e : Real(1), fp = keep ? Real(1) : e;
  const Real rn = empty ? Real(0) : device::rcp_approx(n);  // h is the constant 0 while n = 0
  const bool closing = device::with_sign(Real(1), saved.w) < Real(0);
  const Real o = closing ? aw : Real(1) - aw, one_minus_o = closing ? Real(1) - aw : aw;
  const Real z = device::with_sign(Real(1) - Real(2) * au, saved.u), kf = fp * saved.sf;
  CellCoefficients<Real> k;
  k.on = o * rn;
  k.h = k.on * c;
  k.hn = k.h * rn;
  k.ko = one_minus_o * k.h;
  k.ip = ip;
  k.iz = ip * z;
  k.izz = ip * (Real(4) * au * (Real(1) - au));
  k.kfc = kf * c_prev;
  k.kfn = kf * n_prev;
  k.fp = fp;
  return k;
}

// S4.  dc, dn: gradients of c, n on entry, of c_, n_ on return.  dg in the order i, f, z, o.
template <typename Real>
XLSTM_DEVICE void cell_backward(const CellCoefficients<Real>& k, Real dy, Real& dc, Real& dn, Real (&dg)[4]) {
  dc += dy * k.on;
  dn -= dy * k.hn;
  dg[0] = k.iz * dc + k.ip * dn;
  dg[1] = k.kfc * dc + k.kfn * dn;
  dg[2] = k.izz * dc;
  dg[3] = k.ko * dy;
  dc *= k.fp;
  dn *= k.fp;
}

}  // namespace xlstm::slstm
