// Python bindings of the CUDA extension: device addresses and the stream as integers, the GIL released around launches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "cuda/ops.h"
#include "preprocess.h"

namespace py = pybind11;
using namespace minilava;

namespace {

// src, stride, across, its size, down, its size, rows, cols, tile rows, tile cols, down first, dst
using Tuple = std::tuple<uintptr_t, ptrdiff_t, uintptr_t, int, uintptr_t, int, int, int, int, int, bool, uintptr_t>;

// The table that cuda::Resize describes, written to host memory.
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

// device: below 0 for the host.
void resize(const std::vector<Tuple>& tuples, int channels, int patch, int shared, int device, uintptr_t stream) {
    std::vector<cuda::Resize> pictures;
    for (const auto& [src, stride, across, across_size, down, down_size, rows, cols, tile_rows, tile_cols, down_first,
                      dst] : tuples) {
        pictures.push_back({reinterpret_cast<const uint8_t*>(src), stride, reinterpret_cast<const int32_t*>(across),
                            reinterpret_cast<const int32_t*>(down), across_size, down_size, rows, cols, tile_rows,
                            tile_cols, down_first, reinterpret_cast<void*>(dst)});
    }
    if (device < 0) {
        cuda::resize_pictures_on_host(pictures, channels, patch, shared);
    } else {
        cuda::resize_pictures(pictures, channels, patch, shared, device, stream);
    }
}

void bind_preprocess(py::module_& m) {
    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    m.def("axis_taps", &max_window, py::arg("size_in"), py::arg("size_out"));
    m.def("fill_axis", &fill_axis, without_gil);
    m.def("resize", &resize, without_gil);
    m.attr("SHARED_BYTES") = cuda::kSharedBytes;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "minilava CUDA kernels; every pointer is a device address checked by the caller";
    bind_preprocess(m);
}
