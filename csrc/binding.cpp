// Python bindings of the CPU extension: raw addresses in, nothing allocated, the GIL released around the work.
// Shapes, dtypes and contiguity are checked by the Python callers in kernels/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/attention.h"
#include "cpu/decoder_i8.h"
#include "cpu/encoder_i8.h"
#include "cpu/linear.h"
#include "cpu/linear_i8.h"
#include "cpu/ops.h"
#include "cpu/rowwise.h"
#include "cpu/simd.h"

namespace py = pybind11;
using namespace minilava;

namespace {

template <typename T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const auto without_gil = py::call_guard<py::gil_scoped_release>();

void bind_simd(py::module_& m) {
    m.def("simd_level", &simd_name, "The instruction set in use: avx512_bf16, avx512, avx2 or portable.");
    m.def("set_simd", &set_simd, py::arg("name"), "Use this instruction set from now on; auto for the best.");
}

void bind_preprocess(py::module_& m) {
    m.def(
        "resize",
        [](uintptr_t src, int h, int w, int channels, ptrdiff_t stride, uintptr_t dst, int out_h, int out_w,
           bool vertical_first, int threads) {
            resize({at<uint8_t>(src), h, w, channels, stride}, at<uint8_t>(dst), out_h, out_w, vertical_first, threads);
        },
        without_gil);
    m.def(
        "patchify",
        [](uintptr_t views, uintptr_t dst, int n, int view, int patch, int threads) {
            patchify(at<uint8_t>(views), at<float>(dst), n, view, patch, threads);
        },
        without_gil);
    m.def(
        "resize_patchify",
        [](uintptr_t src, int h, int w, ptrdiff_t stride, uintptr_t dst, int view, int patch, bool vertical_first,
           int threads) {
            resize_patchify({at<uint8_t>(src), h, w, 3, stride}, at<float>(dst), view, patch, vertical_first, threads);
        },
        without_gil);
}

void bind_linear(py::module_& m) {
    m.def(
        "linear_rows",
        [](uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t residual, uintptr_t y, long rows, long n, long k,
           bool is_bf16) {
            linear_rows({at<void>(x), at<void>(w), at<void>(bias), at<void>(residual), at<void>(y), rows, n, k},
                        is_bf16);
        },
        without_gil);
}

void bind_linear_i8(py::module_& m) {
    m.def(
        "linear_i8",
        [](uintptr_t x, uintptr_t weight, uintptr_t scales, uintptr_t bias, uintptr_t residual, uintptr_t y, long rows,
           long n, long width, long k, long group, int bits, bool gelu_tanh) {
            const RoundedRows r = rounded_rows(at<float>(x), rows, width, k, group, bits);
            const LinearI8 product = {at<uint8_t>(weight), at<uint16_t>(scales), r.values, r.scales, r.sums,
                                      at<float>(bias), at<float>(residual), at<float>(y), rows, n, k, group, bits,
                                      gelu_tanh ? Activation::kGeluTanh : Activation::kNone};
            linear_i8(&product, 1);
        },
        without_gil);
    m.def(
        "dequantize_rows",
        [](uintptr_t weight, uintptr_t scales, uintptr_t ids, uintptr_t y, long rows, long width, long k, long group,
           int bits) {
            dequantize_rows(at<uint8_t>(weight), at<uint16_t>(scales), at<int64_t>(ids), at<float>(y), rows, width, k,
                            group, bits);
        },
        without_gil);
}

// (values, scales, bias, n, width, k, group, bits)
using Matrix = std::tuple<uintptr_t, uintptr_t, uintptr_t, long, long, long, long, int>;

MatrixI8 matrix(const Matrix& m) {
    return {at<uint8_t>(std::get<0>(m)),
            at<uint16_t>(std::get<1>(m)),
            at<float>(std::get<2>(m)),
            std::get<3>(m),
            std::get<4>(m),
            std::get<5>(m),
            std::get<6>(m),
            std::get<7>(m)};
}

void bind_decoder_i8(py::module_& m) {
    py::class_<DecoderI8>(m, "DecoderI8")
        .def(py::init<long, long, long, float>())
        .def("add",
             [](DecoderI8& d, uintptr_t norm1, uintptr_t norm2, const std::array<Matrix, 7>& w) {
                 d.blocks.push_back({at<float>(norm1), at<float>(norm2), matrix(w[0]), matrix(w[1]), matrix(w[2]),
                                     matrix(w[3]), matrix(w[4]), matrix(w[5]), matrix(w[6])});
             })
        .def(
            "run",
            [](const DecoderI8& d, uintptr_t x, uintptr_t cos, uintptr_t sin, uintptr_t positions, uintptr_t slots,
               uintptr_t cu_q, uintptr_t k_start, uintptr_t k_len, uintptr_t last, long rows, long sequences,
               long lasts, long table_rows, long cache_rows, float scale, bool i8_cache, bool prompt,
               const std::vector<uintptr_t>& keys, const std::vector<uintptr_t>& values) {
                std::vector<void*> k, v;
                for (const uintptr_t p : keys) k.push_back(at<void>(p));
                for (const uintptr_t p : values) v.push_back(at<void>(p));
                d.run({at<float>(x), at<float>(cos), at<float>(sin), at<int64_t>(positions), at<int64_t>(slots),
                       at<int32_t>(cu_q), at<int32_t>(k_start), at<int32_t>(k_len), at<int64_t>(last), rows, sequences,
                       lasts, table_rows, cache_rows, scale, i8_cache, prompt},
                      k, v);
            },
            without_gil);
}

void bind_encoder_i8(py::module_& m) {
    m.def("free_scratch", [] {
        block_scratch() = {};
        attention_scratch(0);
    });
    py::class_<EncoderBlockI8>(m, "EncoderBlockI8")
        .def(py::init([](const std::array<uintptr_t, 4>& norms, const std::array<Matrix, 6>& w, long heads, float eps,
                         float scale) {
            return EncoderBlockI8{at<float>(norms[0]), at<float>(norms[1]), at<float>(norms[2]), at<float>(norms[3]),
                                  matrix(w[0]), matrix(w[1]), matrix(w[2]), matrix(w[3]), matrix(w[4]), matrix(w[5]),
                                  heads, eps, scale};
        }))
        .def(
            "run",
            [](const EncoderBlockI8& b, uintptr_t x, long views, long patches) { b.run(at<float>(x), views, patches); },
            without_gil);
}

void bind_attention(py::module_& m) {
    py::enum_<Kind>(m, "Kind")
        .value("float32", Kind::kFloat)
        .value("bfloat16", Kind::kBfloat16)
        .value("i8_cache", Kind::kI8Cache);
    m.def(
        "attention",
        [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t cu_q, uintptr_t k_start, uintptr_t k_len,
           long queries, long rows, long sequences, long heads, long kv_heads, long dim, long q_stride, long k_stride,
           long v_stride, bool causal, float scale, Kind kind, uintptr_t lse, bool narrow) {
            attention({at<void>(q), at<void>(k), at<void>(v), at<void>(out), at<int32_t>(cu_q), at<int32_t>(k_start),
                       at<int32_t>(k_len), sequences, heads, kv_heads, dim, q_stride, k_stride, v_stride, causal, scale,
                       at<float>(lse), narrow},
                      queries, rows, kind);
        },
        without_gil);
    m.def(
        "attention_backward",
        [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t grad, uintptr_t lse, uintptr_t dq,
           uintptr_t dk, uintptr_t dv, uintptr_t cu, long rows, long sequences, long heads, long kv_heads, long dim,
           long q_stride, long k_stride, long v_stride, bool causal, float scale, bool is_bf16) {
            attention_backward({at<void>(q), at<void>(k), at<void>(v), at<void>(out), at<void>(grad), at<float>(lse),
                                at<void>(dq), at<void>(dk), at<void>(dv), at<int32_t>(cu), sequences, heads, kv_heads,
                                dim, q_stride, k_stride, v_stride, causal, scale},
                               rows, is_bf16);
        },
        without_gil);
}

void bind_norm(py::module_& m) {
    m.def(
        "rms_norm",
        [](uintptr_t x, uintptr_t weight, uintptr_t y, long rows, long dim, float eps, bool is_bf16) {
            rms_norm(at<void>(x), at<float>(weight), at<void>(y), rows, dim, eps, is_bf16);
        },
        without_gil);
    m.def(
        "rms_norm_backward",
        [](uintptr_t x, uintptr_t weight, uintptr_t grad, uintptr_t dx, uintptr_t dw, long rows, long dim, float eps,
           bool is_bf16) {
            rms_norm_backward(at<void>(x), at<float>(weight), at<void>(grad), at<void>(dx), at<float>(dw), rows, dim,
                              eps, is_bf16);
        },
        without_gil);
    m.def(
        "layer_norm",
        [](uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias, uintptr_t total, uintptr_t y, long rows,
           long dim, float eps, bool is_bf16) {
            layer_norm({at<void>(x), at<void>(residual), at<float>(weight), at<float>(bias), at<void>(total),
                        at<void>(y), rows, dim, eps},
                       is_bf16);
        },
        without_gil);
}

void bind_rope_kv(py::module_& m) {
    m.def(
        "rope_kv",
        [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t cos, uintptr_t sin, uintptr_t positions, uintptr_t slots,
           uintptr_t k_cache, uintptr_t v_cache, long rows, long heads, long kv_heads, long dim, long table_rows,
           long cache_rows, long q_stride, long k_stride, long v_stride, Kind kind) {
            rope_kv({at<void>(q), at<void>(k), at<void>(v), at<void>(cos), at<void>(sin), at<int64_t>(positions),
                     at<int64_t>(slots), at<void>(k_cache), at<void>(v_cache), rows, heads, kv_heads, dim, table_rows,
                     cache_rows, q_stride, k_stride, v_stride},
                    kind);
        },
        without_gil);
    m.def(
        "rope",
        [](uintptr_t q, uintptr_t k, uintptr_t cos, uintptr_t sin, uintptr_t q_out, uintptr_t k_out, long rows,
           long heads, long kv_heads, long dim, long q_stride, long k_stride, float sign, bool is_bf16) {
            rope({at<void>(q), at<void>(k), at<void>(cos), at<void>(sin), at<void>(q_out), at<void>(k_out), rows, heads,
                  kv_heads, dim, q_stride, k_stride, sign},
                 is_bf16);
        },
        without_gil);
}

void bind_swiglu(py::module_& m) {
    m.def(
        "swiglu",
        [](uintptr_t gate, uintptr_t up, uintptr_t y, long rows, long width, long gate_stride, long up_stride,
           long y_stride, bool is_bf16) {
            swiglu({at<void>(gate), at<void>(up), at<void>(y), nullptr, nullptr, nullptr, rows, width, gate_stride,
                    up_stride, y_stride},
                   is_bf16);
        },
        without_gil);
    m.def(
        "swiglu_backward",
        [](uintptr_t gate, uintptr_t up, uintptr_t grad, uintptr_t dgate, uintptr_t dup, long rows, long width,
           long gate_stride, long up_stride, bool is_bf16) {
            swiglu_backward({at<void>(gate), at<void>(up), nullptr, at<void>(grad), at<void>(dgate), at<void>(dup),
                             rows, width, gate_stride, up_stride, 0},
                            is_bf16);
        },
        without_gil);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "minilava CPU kernels; every pointer is an address of contiguous memory checked by the caller";
    bind_simd(m);
    bind_preprocess(m);
    bind_linear(m);
    bind_linear_i8(m);
    bind_decoder_i8(m);
    bind_encoder_i8(m);
    bind_attention(m);
    bind_norm(m);
    bind_rope_kv(m);
    bind_swiglu(m);
}
