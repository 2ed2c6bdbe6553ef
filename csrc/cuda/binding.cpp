// Python bindings of the CUDA extension: device addresses and the stream as integers, the GIL released around launches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "cuda/ops.h"
#include "preprocess.h"

namespace py = pybind11;
using namespace minilava;

namespace {

using PassTuple = std::tuple<uintptr_t, ptrdiff_t, uintptr_t, int, int, int, uintptr_t>;

// The table that cuda::Pass describes, written to host memory.
void fill_axis(uintptr_t address, int in, int out) {
    auto* table = reinterpret_cast<int32_t*>(address);
    std::vector<double> weight(max_window(in, out));
    for (int i = 0; i < out; ++i) {
        const Window at = window(in, out, i);
        table[i] = at.first;
        table[out + i] = at.count;
        coefficients(at, weight.data(), table + 2 * static_cast<ptrdiff_t>(out) + i, out);
    }
}

void resample(const std::vector<PassTuple>& tuples, bool across, int channels, int patch, int device,
              uintptr_t stream) {
    std::vector<cuda::Pass> passes;
    for (const auto& [src, stride, axis, axis_size, rows, cols, dst] : tuples) {
        passes.push_back({reinterpret_cast<const uint8_t*>(src), stride, reinterpret_cast<const int32_t*>(axis),
                          axis_size, rows, cols, reinterpret_cast<void*>(dst)});
    }
    cuda::resample_pictures(passes, across, channels, patch, device, stream);
}

void bind_preprocess(py::module_& m) {
    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    m.def("axis_taps", &max_window, py::arg("size_in"), py::arg("size_out"));
    m.def("fill_axis", &fill_axis, without_gil);
    m.def("resample", &resample, without_gil);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "minilava CUDA kernels; every pointer is a device address checked by the caller";
    bind_preprocess(m);
}
