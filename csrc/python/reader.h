// reader.h - how a launcher's parameter struct is filled from Python, and how a launcher becomes a Python function.
//
// A struct P says once what its fields are called: template <class R> void read(R& r, P& p) { r("L", p.L)...; }. `bind` makes
// of a launcher void launch(const P&, Stream) the function name(**fields, stream=(handle, device)). Every field must be given and
// none that the struct has not: a module of other sources than the Python files is found at the first call, by name. Fields that
// are given in the struct's order are read without a search.
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
  template <class... T>
  Names& operator()(const char* name, T&...) {
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

// The keyword arguments of one call as Python passes them, without a dict: the values, and a tuple of their names.
class Keywords {
 public:
  Keywords(PyObject* const* values, PyObject* names)
      : values_(values), names_(names), size_(names ? PyTuple_GET_SIZE(names) : 0) {}

  size_t size() const { return size_t(size_); }
  py::handle name(size_t place) const { return PyTuple_GET_ITEM(names_, Py_ssize_t(place)); }

  // The value of an interned name, or null; searched from behind the last one that was found.
  PyObject* take(PyObject* wanted) {
    for (Py_ssize_t tried = 0; tried < size_; ++tried) {
      const Py_ssize_t place = next_;
      next_ = place + 1 < size_ ? place + 1 : 0;
      if (PyTuple_GET_ITEM(names_, place) == wanted) return values_[place];
    }
    for (Py_ssize_t place = 0; place < size_; ++place)  // keys of a dict need not be interned
      if (PyUnicode_Compare(PyTuple_GET_ITEM(names_, place), wanted) == 0) return values_[place];
    return nullptr;
  }

 private:
  PyObject* const* values_;
  PyObject* names_;
  Py_ssize_t size_, next_ = 0;
};

class Reader {
 public:
  Reader(const char* launcher, Keywords given, const Names& names) : label(launcher), names(names), keywords(given) {}
  // Of the field `name` of `outer`, whose attributes are the fields of this one.
  Reader(const char* name, py::handle given, const Names& names, const Reader& outer)
      : label(name), names(names), object(given), outer(&outer) {}

  // More than one field of the struct under one name is a tuple of them.
  template <class... T>
  Reader& operator()(const char* name, T&... to) {
    PyObject* const key = names[next++];
    const auto value = outer ? py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), key))
                             : py::reinterpret_borrow<py::object>(keywords.take(key));
    if (!value) {
      PyErr_Clear();
      throw py::type_error(where() + ": missing field '" + name + "'" + kOtherSources);
    }
    if constexpr (sizeof...(T) == 1) {
      take(name, value, to...);
    } else {
      take_tuple(name, value, ("a tuple of " + std::to_string(sizeof...(T))).c_str(), to...);
    }
    return *this;
  }

  // Nothing was given that is not read.
  void finish() const {
    if (keywords.size() == names.size()) return;
    for (size_t place = 0; place < keywords.size(); ++place) {
      bool known = false;
      for (const py::handle name : names) known = known || keywords.name(place).equal(name);
      if (!known)
        throw py::type_error(where() + ": unknown field '" + keywords.name(place).cast<std::string>() + "'" + kOtherSources);
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
      Reader inner(name, value, names_of<T>(), *this);
      read(inner, to);
    }
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  template <class T>
  void take(const char* name, py::handle value, View<T>& to) const {
    take_tuple(name, value, "(address, batch, step, head)", to.data, to.batch, to.step, to.head);
  }
  void take(const char* name, py::handle value, Stream& to) const {
    take_tuple(name, value, "(handle, device)", to.handle, to.device);
  }
  template <class... T>
  void take_tuple(const char* name, py::handle value, const char* expected, T&... to) const {
    if (!PyTuple_Check(value.ptr()) || PyTuple_GET_SIZE(value.ptr()) != sizeof...(T)) wrong(name, value, expected);
    Py_ssize_t place = 0;
    (take(name, PyTuple_GET_ITEM(value.ptr(), place++), to), ...);
  }
  [[noreturn]] void wrong(const char* name, py::handle value, const char* expected) const {
    PyErr_Clear();
    throw py::type_error(where() + ": " + name + ": got " + py::repr(value).cast<std::string>() + ", expected " + expected);
  }
  std::string where() const { return outer ? outer->where() + ": " + label : label; }

  const char* label;
  const Names& names;
  Keywords keywords{nullptr, nullptr};  // where fields are keywords
  py::handle object;                    // where they are attributes
  const Reader* outer = nullptr;
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

// A launcher as a Python function. Not by pybind11, which makes a dict of the keywords: that takes longer than a short launch.
template <class P, class To>
class Function {
 public:
  Function(const std::string& name, void (*launcher)(const P&, To)) : name_(name), launcher_(launcher) {
    void (*const untyped)() = reinterpret_cast<void (*)()>(&Function::called);
    definition_ = {name_.c_str(), reinterpret_cast<PyCFunction>(untyped), METH_FASTCALL | METH_KEYWORDS, nullptr};
  }

  // Of this object, which must live as long as the result.
  py::object in(const py::module_& m) {
    const py::capsule self(this);
    PyObject* const made = PyCFunction_NewEx(&definition_, self.ptr(), m.attr("__name__").ptr());
    if (!made) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
  }

 private:
  static PyObject* called(PyObject* capsule, PyObject* const* values, Py_ssize_t positional, PyObject* names) noexcept {
    try {
      const auto& self = *static_cast<const Function*>(PyCapsule_GetPointer(capsule, nullptr));
      if (positional != 0) throw py::type_error(self.name_ + ": fields are keywords");
      self.launch(Keywords(values, names));
      return py::none().release().ptr();
    } catch (py::error_already_set& error) {
      error.restore();
    } catch (const py::builtin_exception& error) {
      error.set_error();
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }

  void launch(Keywords fields) const {
    Launch<P, To> launch{};
    Reader reader(name_.c_str(), fields, names_of<Launch<P, To>>());
    read(reader, launch);
    reader.finish();
    const py::gil_scoped_release released;
    launcher_(launch.params, launch.to);
  }

  const std::string name_;
  void (*const launcher_)(const P&, To);
  PyMethodDef definition_;
};

template <class P, class To>
void bind(py::module_& m, const std::string& name, void (*launcher)(const P&, To)) {
  m.attr(name.c_str()) = (new Function(name, launcher))->in(m);  // modules live as long as the process
}

}  // namespace xlstm::python
