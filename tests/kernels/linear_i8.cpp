// Reads {m, n, width, k, group, bits} (int64), x, the weight and its scales from stdin and writes y to stdout, so that
// linear_i8 can be tried without Python: on an emulated processor.
#include "cpu/linear_i8.h"

#include <cstdio>
#include <vector>

template <class T>
std::vector<T> read(size_t count) {
    std::vector<T> v(count);
    if (fread(v.data(), sizeof(T), count, stdin) != count) throw 1;
    return v;
}

int main() {
    const auto shape = read<int64_t>(6);
    const long m = shape[0], n = shape[1], width = shape[2], k = shape[3], group = shape[4], bits = shape[5];
    const long rows = (n + PANEL - 1) / PANEL * PANEL;
    const auto x = read<float>(m * width);
    const auto values = read<uint8_t>(rows * k * bits / 8);
    const auto scales = read<uint16_t>(rows * (k / group));
    std::vector<float> y(m * n);
    const RoundedRows r = rounded_rows(x.data(), m, width, k, group, bits);
    const LinearI8 product = {values.data(), scales.data(), r.values, r.scales, r.sums, nullptr, nullptr, y.data(),
                              m, n, k, group, int(bits), Activation::kNone};
    linear_i8(&product, 1);
    fwrite(y.data(), sizeof(float), y.size(), stdout);
}
