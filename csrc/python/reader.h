// reader.h - how a launcher's parameter struct is filled from Python, and how a launcher becomes a Python function.
//
// A struct P says once what its fields are called: template <class R> void read(R& r, P& p) { r("L", p.L)...; }. `bind` makes
// of a launcher void launch(const P&, Stream) the function name(**fields, stream=(handle, device)). Every field must be given and
// none that the struct has not: a module of other sources than the Python files is found at the first call, by name.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "common/view.h"
#include "python/spelling.h"

namespace xlstm::python {

namespace py = pybind11;

// The names that a struct's `read` gives to its own fields, in order; they live as long as the process.
struct Names : std::vector<PyObject*> {
  template <class T>
  Names& operator()(const char* name, T&) {
    push_back(PyUnicode_InternFromString(name));
    return *this;
  }
};
template <class P>
const Names& names_of() {
  static const Names* const names = [] {
    auto* collected = new Names;
    P fields{};
    read(*collected, fields);
    return collected;
  }();
  return *names;
}

class Reader {
 public:
  // label: of the launcher, or inside `outer` of the field whose attributes these fields are.
  Reader(const char* label, py::handle given, const Names& names, const Reader* outer = nullptr)
      : label(label), given(given), names(names), outer(outer) {}

  template <class T>
  Reader& operator()(const char* name, T& to) {
    PyObject* const key = names[next++];
    const auto value = outer ? py::reinterpret_steal<py::object>(PyObject_GetAttr(given.ptr(), key))
                             : py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(given.ptr(), key));
    PyErr_Clear();
    if (!value) throw py::type_error(where() + ": missing field '" + name + "'" + kOtherSources);
    take(name, value, to);
    return *this;
  }

  // Nothing was given that is not read.
  void finish() const {
    if (PyDict_Size(given.ptr()) == Py_ssize_t(names.size())) return;
    for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(given)) {
      bool known = false;
      for (const py::handle name : names) known = known || key.equal(name);
      if (!known) throw py::type_error(where() + ": unknown field '" + key.cast<std::string>() + "'" + kOtherSources);
    }
  }

 private:
  static constexpr const char* kOtherSources = "; the compiled module is of other sources, reinstall the package";

  template <class T>
  void take(const char* name, py::handle value, T& to) const {
    PyObject* const object = value.ptr();
    if constexpr (std::is_same_v<T, bool>) {
      if (!PyBool_Check(object)) wrong(name, value, "a bool");
      to = object == Py_True;
    } else if constexpr (std::is_integral_v<T>) {
      const long long wide = PyLong_Check(object) ? PyLong_AsLongLong(object) : 0;
      to = T(wide);
      if (!PyLong_Check(object) || PyErr_Occurred() || to != wide) wrong(name, value, "an int of the field's size");
    } else if constexpr (std::is_floating_point_v<T>) {
      if (!PyFloat_Check(object) && !PyLong_Check(object)) wrong(name, value, "a number");
      to = T(PyFloat_AsDouble(object));
    } else if constexpr (std::is_pointer_v<T>) {  // 0 for an absent tensor
      if (!PyLong_Check(object)) wrong(name, value, "an address");
      to = static_cast<T>(PyLong_AsVoidPtr(object));
    } else if constexpr (std::is_enum_v<T>) {
      const T* const known = meaning<T>(value);
      to = known ? *known : spelled<T>(where() + ": " + name, value);
    } else {
      Reader inner(name, value, names_of<T>(), this);
      read(inner, to);
    }
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  template <class T>
  void take(const char* name, py::handle value, View<T>& to) const {
    if (!PyTuple_Check(value.ptr()) || PyTuple_GET_SIZE(value.ptr()) != 4) wrong(name, value, "(address, batch, step, head)");
    take(name, PyTuple_GET_ITEM(value.ptr(), 0), to.data);
    take(name, PyTuple_GET_ITEM(value.ptr(), 1), to.batch);
    take(name, PyTuple_GET_ITEM(value.ptr(), 2), to.step);
    take(name, PyTuple_GET_ITEM(value.ptr(), 3), to.head);
  }
  void take(const char* name, py::handle value, Stream& to) const {
    if (!PyTuple_Check(value.ptr()) || PyTuple_GET_SIZE(value.ptr()) != 2) wrong(name, value, "(handle, device)");
    take(name, PyTuple_GET_ITEM(value.ptr(), 0), to.handle);
    take(name, PyTuple_GET_ITEM(value.ptr(), 1), to.device);
  }
  [[noreturn]] void wrong(const char* name, py::handle value, const char* expected) const {
    PyErr_Clear();
    throw py::type_error(where() + ": " + name + ": got " + py::repr(value).cast<std::string>() + ", expected " + expected);
  }
  std::string where() const { return outer ? outer->where() + ": " + label : label; }

  const char* label;
  py::handle given;
  const Names& names;
  const Reader* outer;
  size_t next = 0;
};

// A launch and where it goes to: a stream, or so many threads of the CPU.
template <class P, class To>
struct Launch {
  P params;
  To to;
};
template <class R, class P, class To>
void read(R& r, Launch<P, To>& launch) {
  read(r, launch.params);
  r(std::is_same_v<To, Stream> ? "stream" : "threads", launch.to);
}

template <class Result, class P, class To>
void bind(py::module_& m, const std::string& name, Result (*launcher)(const P&, To)) {
  m.def(name.c_str(), [name, launcher](const py::kwargs& fields) {
    Launch<P, To> launch{};
    Reader reader(name.c_str(), fields, names_of<Launch<P, To>>());
    read(reader, launch);
    reader.finish();
    const py::gil_scoped_release released;
    return launcher(launch.params, launch.to);
  });
}

}  // namespace xlstm::python
