// bind_mlstm.cpp - csrc/cpu/mlstm.h for Python: every field by its name, a missing or unknown one is a TypeError.
#include "cpu/bind_mlstm.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cpu/mlstm.h"

namespace py = pybind11;

namespace xlstm::cpu {
namespace {

class Fields {
 public:
  explicit Fields(const py::kwargs& given) : given_(given) {}

  template <typename T>
  void operator()(const char* name, T& field) {
    field = of(name).cast<T>();
  }
  // tensor.data_ptr(), 0 for None
  template <typename T>
  void operator()(const char* name, T*& field) {
    field = reinterpret_cast<T*>(of(name).cast<uintptr_t>());
  }
  // (data_ptr, strides of batch, step and head)
  void operator()(const char* name, View& field) {
    const auto [data, batch, step, head] = of(name).cast<std::array<int64_t, 4>>();
    field = {reinterpret_cast<void*>(data), batch, step, head};
  }
  void operator()(const char* name, Storage& field) {
    const std::string dtype = of(name).cast<std::string>();
    if (dtype == "bfloat16") {
      field = Storage::kBFloat16;
    } else if (dtype == "float16") {
      field = Storage::kFloat16;
    } else if (dtype == "real") {
      field = Storage::kReal;
    } else {
      throw std::invalid_argument("storage: got '" + dtype + "', expected real, bfloat16 or float16");
    }
  }
  void complete() const {
    if (read_ == given_.size()) return;
    throw py::type_error("got " + std::to_string(given_.size()) + " fields, expected " + std::to_string(read_));
  }

 private:
  py::handle of(const char* name) {
    if (!given_.contains(name)) throw py::type_error(std::string("missing field ") + name);
    ++read_;
    return given_[name];
  }
  const py::kwargs& given_;
  size_t read_ = 0;
};

template <typename Real>
void read(Fields& field, MlstmInputs<Real>& p) {
  field("B", p.B);
  field("S", p.S);
  field("NH", p.NH);
  field("DHQK", p.DHQK);
  field("DHHV", p.DHHV);
  field("L", p.L);
  field("N", p.N);
  field("cu_seqlens", p.cu_seqlens);
  field("storage", p.storage);
  field("scale", p.scale);
  field("eps", p.eps);
  field("sigmoid_igate", p.sigmoid_igate);
  field("normalize", p.normalize);
  field("q", p.q);
  field("k", p.k);
  field("v", p.v);
  field("i", p.i);
  field("f", p.f);
  field("C0", p.C0);
  field("n0", p.n0);
  field("m0", p.m0);
}

template <typename Real>
void read(Fields& field, MlstmForward<Real>& p) {
  read(field, static_cast<MlstmInputs<Real>&>(p));
  field("h", p.h);
  field("C", p.C);
  field("n", p.n);
  field("m", p.m);
  field("dot", p.dot);
}

template <typename Real>
void read(Fields& field, MlstmBackward<Real>& p) {
  read(field, static_cast<MlstmInputs<Real>&>(p));
  field("exact", p.exact);
  field("h", p.h);
  field("dh", p.dh);
  field("dot", p.dot);
  field("dC", p.dC);
  field("dn", p.dn);
  field("dq", p.dq);
  field("dk", p.dk);
  field("dv", p.dv);
  field("di", p.di);
  field("df", p.df);
  field("dC0", p.dC0);
  field("dn0", p.dn0);
  field("dm0", p.dm0);
}

template <typename Params>
auto reading(void (*run)(const Params&, int)) {
  return [run](int threads, const py::kwargs& given) {
    Params p;
    Fields field(given);
    read(field, p);
    field.complete();
    const py::gil_scoped_release released;
    run(p, threads);
  };
}

}  // namespace

void bind_mlstm(py::module_& m) {
  m.def("mlstm_forward_cpu_float32", reading(&mlstm_forward<float>));
  m.def("mlstm_forward_cpu_float64", reading(&mlstm_forward<double>));
  m.def("mlstm_backward_cpu_float32", reading(&mlstm_backward<float>));
  m.def("mlstm_backward_cpu_float64", reading(&mlstm_backward<double>));
}

}  // namespace xlstm::cpu
