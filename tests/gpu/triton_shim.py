"""Makes Triton's interpreter right, for tests only (``TRITON_INTERPRET=1``; Triton 3.6 and NumPy >= 2.4).

- ``range`` over a run-time bound works with NumPy >= 2.4;
- bfloat16: casts round to nearest even, arithmetic and dots go through float32 (the stock interpreter truncates, and
  multiplies the bit patterns as integers);
- ``tl.fma`` of float32 rounds once, as it does everywhere else;
- types and shapes are made once, and the language is patched once per launch: the same values in a third of the time;
- optionally, ``EMULATE_TF32`` rounds the operands of tf32 dots;
- ``concurrent_grid``: the programs of a grid run at the same time, one thread each, and a seeded scheduler decides at
  every memory operation which goes on, so that kernels whose programs wait for each other can be tested, repeatably.
"""

import inspect
import random
import threading
from functools import cache

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.language.semantic import TritonSemantic

EMULATE_TF32 = False
BUILDER = interpreter.InterpreterBuilder
here = threading.local()  # the grid index and the scheduler of the program that this thread runs


def to_bfloat16(values):
    """The bits of float32 values rounded to bfloat16, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def from_bfloat16(bits):
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(bits))


def to_tf32(values):
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32).reshape(np.shape(values))


def is_bfloat16(handle):
    return handle.dtype.scalar == tl.bfloat16


def plain(handle):
    """The numbers of a handle in a dtype that NumPy can calculate with."""
    return from_bfloat16(handle.data) if is_bfloat16(handle) else handle.data


def install():
    """Patch the interpreter; a second call does nothing."""
    if getattr(BUILDER, "shimmed", False):
        return
    BUILDER.shimmed = True
    patch_range()
    patch_casts()
    patch_arithmetic()
    patch_reduction()
    patch_masks()
    patch_scheduling()
    patch_nesting()
    patch_types()


def patch_range():
    stock = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        stock(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

    interpreter._patch_lang_tensor = patched


def patch_casts():
    stock_cast, stock_fp = BUILDER.cast_impl, BUILDER.create_fp_to_fp

    def cast(self, source, target):
        a, b = source.dtype.scalar, target.scalar
        if tl.bfloat16 not in (a, b) or a == b:
            return stock_cast(self, source, target)
        if b == tl.bfloat16:
            return interpreter.TensorHandle(to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
        return interpreter.TensorHandle(from_bfloat16(source.data).astype(interpreter._get_np_dtype(b)), b)

    def cast_fp(self, source, target, rounding):
        if {source.dtype.scalar, target.scalar} == {tl.bfloat16, tl.float32}:
            return cast(self, source, target)
        return stock_fp(self, source, target, rounding)

    BUILDER.cast_impl, BUILDER.create_fp_to_fp = cast, cast_fp
    BUILDER.get_bf16 = lambda self, v: interpreter.TensorHandle(to_bfloat16(np.array([v], np.float32)), tl.bfloat16)


def patch_arithmetic():
    stock_binary, stock_unary = BUILDER.binary_op, BUILDER.unary_op

    def binary(self, left, right, op):
        if not is_bfloat16(left) or op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            return stock_binary(self, left, right, op)
        out = op(plain(left), plain(right))
        if out.dtype == np.bool_:
            return interpreter.TensorHandle(out, tl.int1)
        return interpreter.TensorHandle(to_bfloat16(out), tl.bfloat16)

    def unary(self, value, op):
        if not is_bfloat16(value):
            return stock_unary(self, value, op)
        return interpreter.TensorHandle(to_bfloat16(op(plain(value))), tl.bfloat16)

    def dot(self, a, b, accumulator, input_precision, max_imprecise):
        left, right = plain(a), plain(b)
        name = str(input_precision).upper()
        if EMULATE_TF32 and a.dtype.scalar == tl.float32 and "TF32" in name and "X3" not in name:
            left, right = to_tf32(left), to_tf32(right)
        product = np.matmul(left, right, dtype=accumulator.data.dtype) + accumulator.data
        return interpreter.TensorHandle(product, accumulator.dtype.scalar)

    def fma(self, x, y, z):
        if x.dtype.scalar != tl.float32:
            return stock_fma(self, x, y, z)
        exact = x.data.astype(np.float64) * y.data + z.data  # the product is, and the sum is but for ties
        return interpreter.TensorHandle(exact.astype(np.float32), x.dtype.scalar)

    BUILDER.binary_op, BUILDER.unary_op, BUILDER.create_dot = binary, unary, dot
    stock_fma, BUILDER.create_fma = BUILDER.create_fma, fma


def patch_reduction():
    """``tl.reduce`` with a function of its own, slice by slice: the stock interpreter goes element by element."""

    def reduce(self, operands):
        operands, axis = self.unravel(operands, self.axis)
        parts = [
            [self.to_tensor(np.take(t.handle.data, n, axis), t.dtype) for t in operands]
            for n in range(operands[0].handle.data.shape[axis])
        ]
        total = parts[0]
        for part in parts[1:]:
            added = self.combine_fn.fn(*total, *part)
            total = list(added) if isinstance(added, (tuple, tl.core.tuple)) else [added]
        return total

    interpreter.ReduceOps.generic_reduce = reduce


def patch_masks():
    """Triton 3.9: a mask that a loop's counter had a part in is of integers, which loads and stores refuse."""
    stock_load, stock_store = BUILDER.create_masked_load, BUILDER.create_masked_store

    def as_mask(handle):
        return interpreter.TensorHandle(handle.data.astype(bool), tl.int1)

    BUILDER.create_masked_load = lambda self, at, mask, *more: stock_load(self, at, as_mask(mask), *more)
    BUILDER.create_masked_store = lambda self, at, v, mask, *more: stock_store(self, at, v, as_mask(mask), *more)


def patch_scheduling():
    BUILDER.grid_idx = property(
        lambda self: getattr(here, "index", None), lambda self, value: setattr(here, "index", value)
    )
    for name in ("create_atomic_rmw", "create_atomic_cas", "create_masked_load", "create_masked_store"):
        setattr(BUILDER, name, switching(getattr(BUILDER, name)))


class Scope:
    """What was patched, or nothing; ``restore`` takes it back."""

    def __init__(self, restore=lambda: None):
        self.restore = restore


def patch_nesting():
    """Functions that a kernel calls find the language patched: the stock interpreter patches it again at each call, for
    which it reads all its members, and that is a third of the time."""
    stock, patched = interpreter._patch_lang, set()

    @cache
    def languages(function):
        return frozenset(v for v in function.__globals__.values() if v is tl or v is tl.core)

    def patch(function):
        new = languages(function) - patched
        if not new:
            return Scope()
        scope = stock(function)
        patched.update(new)

        def restore():
            patched.difference_update(new)
            scope.restore()

        return Scope(restore)

    interpreter._patch_lang = patch


def patch_types():
    """Types and shapes are made once: the stock interpreter makes those of a tensor again for each result, a table of
    all dtypes whenever it asks for one, and a shape for every two operands, which is half of the time."""
    core, stock_block, stock_dtype = tl.core, tl.block_type.__init__, interpreter._get_np_dtype
    stock_tuple, blocks, shapes, dtypes = core._type_for_tuple_values, {}, {}, {}
    stock_tensor, stock_broadcast, of_scalar = tl.tensor.__init__, TritonSemantic.broadcast_impl_value, {}

    def block(self, element_ty, shape):
        sizes = tuple(getattr(n, "value", n) for n in shape)
        key = element_ty.name, sizes
        if key not in blocks:
            stock_block(self, element_ty, shape)
            blocks[key] = vars(self) | {"sizes": sizes, "of_tensors": {}}
        vars(self).update(blocks[key])

    def tensor(self, handle, type):
        known = type.of_tensors if type.is_block() else of_scalar
        if not known:
            stock_tensor(self, handle, type)
            known.update(shape=self.shape, numel=self.numel)
        vars(self).update(known, handle=handle, type=type, dtype=type.scalar)

    def broadcast(self, a, b):
        same = a.type.is_block() and b.type.is_block() and a.type.sizes == b.type.sizes
        return (a, b) if same else stock_broadcast(self, a, b)

    def of_values(values, fields=None):
        if fields or not all(type(v) is int or type(v) is tl.constexpr and type(v.value) is int for v in values):
            return stock_tuple(values, fields)
        key = tuple(v if type(v) is int else v.value for v in values)
        if key not in shapes:
            shapes[key] = stock_tuple(values)
        return shapes[key]

    def np_dtype(dtype):
        if dtype.name not in dtypes:
            dtypes[dtype.name] = stock_dtype(dtype)
        return dtypes[dtype.name]

    tl.block_type.__init__, core._type_for_tuple_values, interpreter._get_np_dtype = block, of_values, np_dtype
    tl.tensor.__init__, TritonSemantic.broadcast_impl_value = tensor, broadcast


def switching(stock):
    def patched(*args, **kwargs):
        result = stock(*args, **kwargs)
        scheduler = getattr(here, "scheduler", None)
        if scheduler is not None:
            scheduler.switch(here.program)
        return result

    return patched


class Scheduler:
    """Lets one program run at a time; at each switch a seeded generator picks the one that goes on."""

    def __init__(self, programs, seed, most_switches=5_000_000):
        self.turns = [threading.Event() for _ in range(programs)]
        self.live = set(range(programs))
        self.random, self.switches, self.most_switches, self.error = random.Random(seed), 0, most_switches, None

    def pick(self, but):
        chosen = self.random.choice(sorted(self.live)) if self.live else but
        if chosen != but:
            self.turns[chosen].set()
        return chosen != but

    def wait(self, program):
        self.turns[program].wait()
        self.turns[program].clear()
        if self.error is not None:
            raise self.error

    def switch(self, program):
        self.switches += 1
        if self.error is None and self.switches > self.most_switches:
            self.error = RuntimeError("the programs wait for each other for ever")
        if self.error is not None:
            raise self.error
        if self.pick(program):
            self.wait(program)

    def finish(self, program, error):
        self.error = self.error or error
        self.live.discard(program)
        if self.error is None:
            self.pick(-1)
        else:
            for turn in self.turns:
                turn.set()


class concurrent_grid:
    """``with concurrent_grid(seed=0): kernel[grid](...)`` runs the programs of every grid concurrently."""

    def __init__(self, seed=0):
        self.seed = seed

    def __enter__(self):
        self.stock = interpreter.GridExecutor.__call__
        interpreter.GridExecutor.__call__ = lambda executor, *args, **kwargs: self.launch(executor, args, kwargs)
        return self

    def __exit__(self, *error):
        interpreter.GridExecutor.__call__ = self.stock

    def launch(self, executor, given, kwargs):
        names = inspect.getfullargspec(executor.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in names}
        args, kwargs_here = executor._init_args_hst(given, kwargs)
        for hook in executor.pre_run_hooks:
            hook(*args, **kwargs_here)
        scope = interpreter._patch_lang(executor.fn)
        try:
            call = inspect.getcallargs(executor.fn, *args, **kwargs_here)
            call = {n: v if n in executor.constexprs else interpreter._implicit_cvt(v) for n, v in call.items()}
            grid = executor.grid(call) if callable(executor.grid) else executor.grid
            grid = tuple(grid) + (1,) * (3 - len(grid))
            interpreter.interpreter_builder.set_grid_dim(*grid)
            self.run(executor.fn, call, list(np.ndindex(*grid)))
        finally:
            scope.restore()
        executor._restore_args_dev(given, args, kwargs, kwargs_here)

    def run(self, function, call, indices):
        scheduler = Scheduler(len(indices), self.seed)

        def body(program, index):
            error = None
            interpreter.interpreter_builder.set_grid_idx(*(int(i) for i in index))
            here.program, here.scheduler = program, scheduler
            try:
                scheduler.wait(program)
                function(**call)
            except BaseException as raised:  # the error of any program stops them all, and is raised below
                error = raised
            here.scheduler = None
            scheduler.finish(program, error)

        threads = [threading.Thread(target=body, args=item, daemon=True) for item in enumerate(indices)]
        for thread in threads:
            thread.start()
        scheduler.pick(-1)
        for thread in threads:
            thread.join()
        self.switches = scheduler.switches
        if scheduler.error is not None:
            raise scheduler.error
