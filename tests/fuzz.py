"""Calls every operation of the CPU extension with random sizes, strides and threads, and with arguments that misfit.

tests/sanitize.py runs this where a sanitizer reports what goes wrong in memory; by itself it finds results that are not
finite and arguments that should have been refused. A case is repeated by its seed and number. It runs in a thread of
its own: the kernels keep memory per thread from call to call, and what an earlier case left would hide an overrun.
"""

import argparse
import ctypes
import importlib.util
import itertools
import math
import mmap
import random
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch

SETTINGS = {"simd_level", "set_simd", "Kind"}  # of the extension: no operations
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
_LIBC = ctypes.CDLL(None)
_POISON = getattr(_LIBC, "__asan_poison_memory_region", lambda address, size: None)
# Ways to spoil a tensor. What is shorter gets memory of its own: a view of the rest would be read unnoticed.
_MISFITS = (
    lambda t: t[:-1].clone(), lambda t: t[..., :-1].clone(), lambda t: t[:0].clone(), lambda t: t[..., :0].clone(),
    lambda t: t.double(), lambda t: t.half(), lambda t: t.to(torch.int16), lambda t: t.bool(), lambda t: t[None],
    lambda t: t[..., None], lambda t: t.flatten().clone(), lambda t: t[0].clone(), lambda t: t.repeat_interleave(2, -1),
    lambda t: t.mT, lambda t: t.flip(0), lambda t: t[:1].expand(t.shape), lambda t: t[..., :1].expand(t.shape),
    lambda t: t.new_empty(*t.shape, 0),
)  # fmt: skip


def guarded(count, dtype):
    """Memory that ends where a page without access begins: masked loads escape the sanitizer, but not this."""
    size = count * dtype.itemsize
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + room
    assert _LIBC.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=room - size)


def floating(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def flat(results):
    """The tensors in nested tuples and lists."""
    if results is None or isinstance(results, torch.Tensor):
        return [] if results is None else [results]
    return [t for r in results for t in flat(r)]


class Case(random.Random):
    """The draws of one case: sizes, and tensors whose last byte is the last of their memory."""

    def __init__(self, seed, number):
        super().__init__(f"{seed}/{number}")
        torch.manual_seed(self.getrandbits(60))
        self.threads, self.refusals, self.note = self.choice((1, 1, 2, 3)), 0, ""

    def size(self, most, least=1):
        """Often small, or just beside what fills a vector or a block."""
        edge = self.choice((4, 8, 16, 32, 48, 60, 64, 128, 256)) + self.choice((-1, 0, 1))
        return min(most, max(least, self.choice((edge, self.randint(least, most), self.randint(least, 9)))))

    def dtype(self):
        return self.choice((torch.float32, torch.bfloat16))

    def memory(self, count, dtype):
        return guarded(count, dtype) if count and self.random() < 0.25 else torch.empty(count, dtype=dtype)

    def same(self, t):
        return self.memory(t.numel(), t.dtype).copy_(t.flatten()).view(t.shape)

    def floats(self, *shape, dtype=torch.float32):
        return self.memory(math.prod(shape), dtype).uniform_(-2, 2).view(shape)

    def maybe(self, *shape, dtype=torch.float32):
        return self.floats(*shape, dtype=dtype) if self.random() < 0.5 else None

    def ints(self, values, dtype=torch.int64):
        return self.same(torch.tensor(list(values), dtype=dtype))

    def rows(self, n, *shape, dtype=torch.float32):
        """(n, *shape) whose rows may lie apart; what lies between them is poisoned."""
        width, gap = math.prod(shape), self.choice((0, 0, 1, 5, 64))
        size, picture = n and n * (width + gap) - gap, dtype == torch.uint8  # whose last row's end alone matters
        x = self.memory(size, dtype).random_(256) if picture else torch.empty(size, dtype=dtype).uniform_(-2, 2)
        x = x.as_strided((n, *shape), [width + gap, *(math.prod(shape[i + 1 :]) for i in range(len(shape)))])
        for i in range(0 if picture else n - 1):
            end = x.data_ptr() + (i * (width + gap) + width) * x.itemsize
            _POISON(ctypes.c_void_p(end), ctypes.c_size_t(gap * x.itemsize))
        return x

    def segments(self, sequences, most):
        """Offsets of packed sequences, few or none of their rows many."""
        return [0, *itertools.accumulate(self.choice((0, 1, 2, 4, 5, self.size(most))) for _ in range(sequences))]

    def sound(self, *results):
        """Under the sanitizer fresh memory is full of NaN, so an element left out shows."""
        for t in flat(results):
            assert t.isfinite().all(), f"{tuple(t.shape)} is not finite"

    def learn(self, function, *arguments):
        """Outputs without gradients, then with them, and the gradients."""
        with torch.no_grad():
            self.sound(function(*arguments))
        self.sound(self.backward(function, arguments))

    def backward(self, function, arguments):
        leaves = [a.detach().requires_grad_() if floating(a) else a for a in arguments]
        outputs = [y for y in flat(function(*leaves)) if y.requires_grad]
        grads = [self.floats(*y.shape, dtype=y.dtype) for y in outputs]
        inputs = [a for a in leaves if floating(a)]
        return outputs + flat(torch.autograd.grad(outputs, inputs, grads, allow_unused=True))

    def spoil(self, function, *arguments, learns=False):
        """With a tensor that misfits: an error, or a result where the sizes happen to fit, but nothing worse."""
        at = self.choice([i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)])
        how = self.randrange(len(_MISFITS))
        self.note = f" with argument {at} spoilt by misfit {how}"
        try:
            wrong = [*arguments[:at], _MISFITS[how](arguments[at]), *arguments[at + 1 :]]
            results = self.backward(function, wrong) if learns else function(*wrong)
        except Exception:
            self.refusals += 1
        else:
            if arguments[at].dtype != torch.int8:  # a cache's, whose bytes elsewhere make scales that are not finite
                self.sound(results)
        self.note = ""

    def refused(self, function, arguments, limits):
        """With an index out of range: limits are the first number above it, by the argument's position."""
        at = self.choice([i for i in limits if len(arguments[i])] or [None])
        if at is None:
            return
        wrong, bound = arguments[at].clone(), torch.iinfo(arguments[at].dtype)
        wrong[self.randrange(len(wrong))] = number = self.choice((-1, limits[at], bound.min, bound.max))
        self.note = f" with {number} in argument {at}"
        try:
            function(*arguments[:at], self.same(wrong), *arguments[at + 1 :])
        except (ValueError, IndexError):
            self.refusals += 1
        else:
            raise AssertionError("accepted what is out of range")
        self.note = ""


def load(path):
    """minilava._C, from this file in place of the installed one."""
    import minilava

    if path:
        spec = importlib.util.spec_from_file_location("minilava._C", path)
        minilava._C = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(minilava._C)
    from minilava import _C

    return _C


def operations(extension):
    """(owner, name, the name that FUZZERS uses) of all native functions and methods."""
    for name, thing in vars(extension).items():
        if name in SETTINGS or name[0] == "_":
            continue
        if isinstance(thing, type):
            yield from ((thing, method, f"{name}.{method}") for method in vars(thing) if method[0] != "_")
        else:
            yield extension, name, name


def watch(extension, tell):
    """Has every operation say its name and its sizes before it runs."""
    for owner, name, label in list(operations(extension)):
        real = getattr(owner, name)

        def told(*arguments, real=real, label=label):
            tell(label, [a for a in arguments if isinstance(a, int | float) and abs(a) < 1 << 32])
            return real(*arguments)

        setattr(owner, name, told)


def control(extension, which):
    """Something wrong on purpose, which the sanitizer must report."""
    x, y = torch.zeros(7), torch.zeros(8)
    if which == "overread":  # one element of x, whose memory malloc rounds up to whole cache lines
        extension.swiglu(x.data_ptr(), y.data_ptr(), y.data_ptr(), 1, 8, 8, 8, 8, False)
    else:
        extension.swiglu(y.data_ptr() + 1, x.data_ptr(), x.data_ptr(), 1, 7, 7, 7, 7, False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default=str(random.randrange(10**6)))
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--extension", metavar="FILE", help="the extension to use")
    parser.add_argument("--control", choices=("overread", "misaligned"), help="do this wrong on purpose")
    args = parser.parse_args()
    torch.set_num_threads(1)
    extension = load(args.extension)
    if args.control:
        return control(extension, args.control)
    levels = []
    for level in LEVELS:
        try:
            extension.set_simd(level)
            levels.append(level)
        except ValueError:
            print(f"fuzz: this CPU has no {level}")
    from tests.kernels.fuzzers import FUZZERS  # not before the extension, which the kernels import

    found, covered = {label for *_, label in operations(extension)}, {n for _, names in FUZZERS for n in names}
    if found != covered:
        sys.exit(f"fuzz: no fuzzer, or no operation: {sorted(found ^ covered)}")
    counts, refusals, header = Counter(), 0, ""

    def tell(label, sizes):
        counts[label, extension.simd_level()] += 1
        print(f"{header}{case.note}: {label}({', '.join(map(str, sizes))})", flush=True)

    def run(function):
        torch.set_num_threads(case.threads)
        function(case)

    watch(extension, tell)
    end, least = time.monotonic() + args.seconds, 2 * len(FUZZERS) * len(levels)
    for number in itertools.count() if args.case is None else [args.case]:
        if args.case is None and number >= least and time.monotonic() > end:
            break
        (function, _), level = FUZZERS[number % len(FUZZERS)], levels[number // len(FUZZERS) % len(levels)]
        extension.set_simd(level)
        case = Case(args.seed, number)
        header = f"seed {args.seed}, case {number}, {level}, {case.threads} threads, {function.__name__}"
        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(run, function).result()
        except Exception:
            traceback.print_exc()
            return 1
        refusals += case.refusals
    never = [f"{n} on {level}" for n in sorted(found) for level in levels if not counts[n, level]]
    if never and args.case is None:
        sys.exit(f"fuzz: never called: {', '.join(never)}")
    print(f"seed {args.seed}: {number} cases, {counts.total()} calls, {refusals} refusals on {', '.join(levels)}")


if __name__ == "__main__":
    sys.exit(main())
