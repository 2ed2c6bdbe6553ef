// Python bindings of the CPU extension: raw addresses in, nothing allocated, the GIL released around the work.
// Shapes, dtypes and contiguity are checked by the Python callers in kernels/.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "minilava CPU kernels; every pointer is an address of contiguous memory checked by the caller";
}
