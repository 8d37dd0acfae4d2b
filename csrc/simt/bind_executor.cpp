// bind_executor.cpp - the executor's options and records for Python: simt_configure(...) and simt_take_launches().
#include "simt/bind_executor.h"

#include <pybind11/stl.h>

#include <utility>

#include "simt/executor.h"
#include "simt/limits.h"

namespace py = pybind11;

namespace xlstm::simt {
namespace {

template <class E>
E parse(const std::string& option, const std::string& name, const std::vector<std::string>& names) {
  std::string expected;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<E>(i);
    expected += (i ? ", " : "") + names[i];
  }
  throw py::value_error("simt: " + option + ": got '" + name + "', expected one of " + expected);
}

void configure(const std::string& order, uint64_t seed, const std::string& landing, const std::string& mma, int sm,
               int largest_cluster, bool races, bool profile) {
  Options next;
  next.order = parse<Order>("order", order, {"fifo", "reverse", "lifo", "random", "starve"});
  next.seed = seed;
  next.landing = parse<Landing>("landing", landing, {"late", "early", "random"});
  next.mma = parse<MmaModel>("mma", mma, {"float64", "float32", "hopper"});
  next.architecture = sm;
  next.largest_cluster = largest_cluster;
  next.races = races;
  next.profile = profile;
  options() = next;
}

py::tuple shape(uint3 v) { return py::make_tuple(v.x, v.y, v.z); }
double ratio(uint64_t a, uint64_t b) { return b ? double(a) / double(b) : 1.0; }

py::dict describe(const LaunchRecord& r) {
  py::dict d;
  d["kernel"] = r.kernel;
  d["grid"] = shape(r.grid);
  d["block"] = shape(r.block);
  d["cluster"] = shape(r.cluster);
  d["cooperative"] = r.cooperative;
  d["shared_bytes"] = r.shared_bytes;
  const Counters& c = r.counters;
  const std::pair<const char*, uint64_t> counts[] = {{"blocks", c.blocks},
                                                     {"threads", c.threads},
                                                     {"mma", c.mma},
                                                     {"ldmatrix", c.ldmatrix},
                                                     {"stmatrix", c.stmatrix},
                                                     {"shuffles", c.shuffles},
                                                     {"warp_collectives", c.warp_collectives},
                                                     {"block_barriers", c.block_barriers},
                                                     {"mbarrier_phases", c.mbarrier_phases},
                                                     {"async_copies", c.async_copies},
                                                     {"global_bytes_read", r.global_bytes_read},
                                                     {"global_bytes_written", r.global_bytes_written}};
  for (const auto& [name, count] : counts) d[name] = count;
  uint64_t sectors = 0, least_sectors = 0, requests = 0, wavefronts = 0, least_wavefronts = 0;
  py::list lines;
  for (const LineTraffic& line : r.lines) {
    (line.shared ? wavefronts : sectors) += line.transactions;
    (line.shared ? least_wavefronts : least_sectors) += line.least;
    if (!line.shared) requests += line.requests;
    py::dict l;
    l["where"] = line.where;
    l["space"] = line.shared ? "shared" : "global";
    l["write"] = line.write;
    l["requests"] = line.requests;
    l["bytes"] = line.bytes;
    l[line.shared ? "wavefronts" : "sectors"] = line.transactions;
    l["ratio"] = ratio(line.transactions, line.least);
    lines.append(l);
  }
  d["global_requests"] = requests;
  d["global_sectors"] = sectors;
  d["sectors_per_request"] = ratio(sectors, requests);
  d["sector_factor"] = ratio(sectors, least_sectors);
  d["shared_wavefronts"] = wavefronts;
  d["bank_conflict_factor"] = ratio(wavefronts, least_wavefronts);
  d["lines"] = lines;
  return d;
}

}  // namespace

void bind_executor(py::module_& m) {
  m.attr("simt_instrumented") = instrumented();
  m.def("simt_configure", &configure, py::kw_only(), py::arg("order"), py::arg("seed"), py::arg("landing"), py::arg("mma"),
        py::arg("sm"), py::arg("largest_cluster"), py::arg("races"), py::arg("profile"), "how the next launches run");
  m.def(
      "simt_take_launches",
      [] {
        py::list all;
        for (const LaunchRecord& record : take_launches()) all.append(describe(record));
        return all;
      },
      "a dictionary per launch recorded since the last call");
}

}  // namespace xlstm::simt
