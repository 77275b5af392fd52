"""Plants faults in a copy of the tree, one at a time, and says which of them the short suite finds.

    python tests/planted_faults.py [--only WORD] [--folder DIR]

A fault is a text of the sources and what stands there instead, wherever in the tree the text is. All those of the C++
sources are in one build: there PLANTED is true once the environment variable of this name has the fault's. Tests run
until the first that fails. A tool for whoever changes the tests, not one of them; about ten minutes on two cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEADER = """#pragma once
#include <cstdlib>
#include <string>
inline bool planted(const char* name) {
  static const std::string opened = [] { const char* v = std::getenv("PLANTED"); return std::string(v ? v : ""); }();
  return opened == name;
}
"""


class Fault(NamedTuple):
    kind: str
    old: str  # a text that is in one file of these only
    new: str
    tests: str  # files, and -k where few of their tests have to do with it; or checks of cpp_worker.py


TRITON = "test_triton_interpreted.py"
FAULTS = {
    # Triton: cells, schedules, masks, gradients
    "triton: the slope of the gates at the wrong value": Fault(
        "triton", '"gate_back": "{0} * slope({1}, GATE)"', '"gate_back": "{0} * slope({0}, GATE)"',
        f"{TRITON} -k reference",
    ),
    "triton: a barrier opens a step early": Fault(
        "triton",
        "wait(counters, ARRIVALS * (T - 1 - i) * tl.num_programs(1))",
        "wait(counters, ARRIVALS * (T - 2 - i) * tl.num_programs(1))",
        f"{TRITON} -k 'reference or stages'",
    ),
    "triton: a reset past the length": Fault(
        "triton", "at_once = again & (i < n)", "at_once = again", f"{TRITON} -k stages"
    ),
    "triton: slope of hard_sigmoid at its corner": Fault(
        "triton", "tl.where((a > 0) & (a < 1), 1.0, 0.0)", "tl.where((a >= 0) & (a < 1), 1.0, 0.0)",
        f"{TRITON} -k activations",
    ),
    "triton: the last product of a sequence is not masked": Fault(
        "triton", "stop = tl.where(i + LAG < T, K, 0)", "stop = K", f"{TRITON} -k 'reference or norm'"
    ),
    # C++: cells, schedules, masks, remainders
    "fast rows: those that have ended": Fault(
        "cpp", "if (t >= length(d, b + k)) return false;", "if (t >= length(d, b + k) && !PLANTED) return false;",
        "test_cpp_programs.py -k every_option",
    ),
    "fast rows: units past the last one are written": Fault(
        "cpp", "if (H % W == 0) return store_rows(run, to, row, far);",
        "if (H % W == 0 || PLANTED) return store_rows(run, to, row, far);", "test_cpp_programs.py -k every_shape",
    ),
    "fast rows: one row of dy for all steps": Fault(
        "cpp", "dy_stride_T = one ? 0 : B * D * P, dy_stride_B = one ? 0 : D * P;",
        "dy_stride_T = one || PLANTED ? 0 : B * D * P, dy_stride_B = one ? 0 : D * P;",
        "test_cpp_programs.py -k every_shape",
    ),
    "cpp: gradient of the forget gate": Fault(
        "cpp", "const V v7 = f.gate_back(v6, kept[1]);", "const V v7 = f.gate_back(v6, kept[PLANTED ? 0 : 1]);",
        "sizes-float32",
    ),
    "cpp: rows live a step too long, backward": Fault(
        "cpp", "bool alive(int64_t t, int64_t b) const { return t < call.length(d, b); }",
        "bool alive(int64_t t, int64_t b) const { return t < call.length(d, b) + PLANTED; }", "stages-float32",
    ),
    "cpp: zoneout of c takes another direction's": Fault(
        "cpp", "dc_old = coefficients<A>(call.zone[1], t, d, b, j, n) * dc_new, dc_new = dc_new - dc_old;",
        "dc_old = coefficients<A>(call.zone[1], t, PLANTED ? 0 : d, b, j, n) * dc_new, dc_new = dc_new - dc_old;",
        "masks-float32",
    ),
    "cpp: sums of the first step are not cleared": Fault(
        "cpp", "for (int64_t m = 0; slot < 0 && m < n; ++m)",
        "for (int64_t m = 0; slot < 0 && !PLANTED && m < n; ++m)",
        "sizes-float32 stages-float32",
    ),
    "cpp: a read past the end of a row": Fault(
        "cpp", "const int n = int(std::min<int64_t>(W, loop.H - j));\n  A* const to = loop.dz_of",
        "const int n = PLANTED ? W : int(std::min<int64_t>(W, loop.H - j));\n  A* const to = loop.dz_of",
        "cpp_guard.inputs",
    ),
    "cpp: two parts of a float instead of three": Fault(
        "cpp", "s.parts = parts;",
        "s.parts = PLANTED ? std::min(parts, 2) : parts;",
        "test_cpp_accuracy.py -k amx",  # with -O1 sigmoid is a little less right on AVX2
    ),
    "cpp: a mask of the reset is not that of the row": Fault(
        "cpp", "return call.reset && next >= 0 && next < T && call.resets(d, next, b);",
        "return call.reset && next >= 0 && next < T && call.resets(d, next, PLANTED ? 0 : b);", "masks-float32",
    ),
    "cpp: kept weights of every layer are those of the first": Fault(
        "cpp", "return {call.kept_place,", "return {PLANTED ? 0 : call.kept_place,", "test_freeze.py",
    ),
    "cpp: threads round and flush as they did before": Fault(
        "cpp",
        "explicit Scope(const FloatMode& mode) { _mm_setcsr(mode.here_); }",
        "explicit Scope(const FloatMode& mode) { if (!PLANTED) _mm_setcsr(mode.here_); }",
        "test_cpp_threads.py -k same_bits",
    ),
    "cpp: backwards, rows begin at T instead of at their length": Fault(
        "cpp", "return back ? t == call.length(d, b) - 1 : t == 0;",
        "return back ? t == (PLANTED ? T : call.length(d, b)) - 1 : t == 0;", "stages-float32",
    ),
    "cpp: layer norm's gradient divides by the units of one gate": Fault(
        "cpp", "b(total(products) / n);", "b(total(products) / (PLANTED ? A(H) : n));", "norms-float32",
    ),
    "cpp: gains of layer norms are those of the first direction, backward": Fault(
        "cpp", "norms.of(d, input ? 0 : 1, g0)", "norms.of(PLANTED ? 0 : d, input ? 0 : 1, g0)", "norms-float32",
    ),
    "cpp: gradients of a narrow step input are of its last units": Fault(
        "cpp", "if (narrow) sum = sum + v;", "if (narrow) sum = PLANTED ? v : sum + v;",
        "test_cpp_programs.py -k 'shape or option'",
    ),
    "cpp: gradients of a sequence input are of its last direction": Fault(
        "cpp", "if (end) to.put(adds ?", "if (end) to.put(adds && !PLANTED ?",
        "test_cpp_programs.py -k 'threads and no_inputs'",
    ),
    "cpp: gradients of every step reach the first of the states": Fault(
        "cpp", "loop.dcells + history * call.D", "loop.dcells + (PLANTED ? 0 : history) * call.D",
        "test_cpp_programs.py -k 'shape or option'",
    ),
    # Python: transforms, masks, options, derivatives
    "vmap: the weights of the samples in another order": Fault(
        "python", "weights = [w[i] for i in range(N) for w in per_sample]",
        "weights = [w[i] for i in reversed(range(N)) for w in per_sample]", "test_op_transforms.py",
    ),
    "vmap: masks of the samples are not folded into rows": Fault(
        "python", "size = D // N if into_d else x_XTBI.size(-2) // N", "size = 1",
        "test_op_transforms.py test_op_stages.py",
    ),
    "recompute: steps that are in no sequence have its state": Fault(
        "python", "return torch.where(steps + 1 < ends[:, None], old, first)", "return old",
        "test_options.py test_recompute.py",
    ),
    "options: heads take their rows gate by gate in another order": Fault(
        "python", "w.unflatten(0, (w.size(0) // H, N, -1))[:, n].flatten(0, 1)",
        "w.unflatten(0, (N, w.size(0) // H, -1))[n].flatten(0, 1)",
        "test_options.py",
    ),
    "options: the mask of recurrent dropout is not scaled by 1 / (1 - p)": Fault(
        "python", "torch.ones(D, x.size(1), P, dtype=x.dtype, device=x.device), options.recurrent_dropout, True",
        "0.6 * torch.ones(D, x.size(1), P, dtype=x.dtype, device=x.device), options.recurrent_dropout, True",
        "test_options.py",
    ),
    "autograd: states to restart from need no gradient": Fault(
        "python", "need_states = any(need[1:states]) or any(need[weights:reset])", "need_states = any(need[1:states])",
        "test_op_autograd.py test_op_stages.py test_options.py",
    ),
    "reference: padding begins a step late": Fault(
        "python", "[:, None] < lengths[..., None, :])[..., None], v, 0.0)",
        "[:, None] <= lengths[..., None, :])[..., None], v, 0.0)", "test_options.py test_lengths.py",
    ),
    "autograd: what was written into y is what backward reads": Fault(
        "python", "return torch._lazy_clone(y)", "return y", "test_inplace.py"
    ),
    "autograd: cell states that were written into are what backward reads": Fault(
        "python", "own[len(own) - len(shown) :] = map(kept, shown)", "own[len(own) - len(shown) :] = shown",
        "test_inplace.py",
    ),
    "autograd: a state that gets other memory is what backward reads": Fault(
        "python", "[t if t is None or t.requires_grad else t.detach() for t in tensors]", "list(tensors)",
        "test_inplace.py",
    ),
    "modules: a weight that is put into _flat_weights does not count": Fault(
        "python", "self.module._flat_weights = self", "pass", "test_derived_classes.py",
    ),
    "modules: weights of _flat_weights count although named ones are others": Fault(
        "python", "if all(now is None or now is then for now, then in zip(named, before, strict=True)):", "if True:",
        "test_derived_classes.py",
    ),
    "freeze: weights stay packed when others are loaded": Fault(
        "python", "module._rk_packed.forget()", "pass", "test_freeze.py",
    ),
    "tangent: recurrent dropout does not multiply the operand's": Fault(
        "python", "d_operand if d_operand is None else self.masked(d_operand)", "d_operand", "test_forward_mode.py",
    ),
    "tangent: padding reaches the values of a step": Fault(
        "python", "return t if t is None else reference.zero_past(t.to(acc), ends)",
        "return t if t is None else t.to(acc)", "test_forward_mode.py",
    ),
    "tangent: the part of one step is forgotten": Fault(
        "python", "found += [once[to] for to in derived.added]",
        "found += [torch.zeros_like(once[to]) for to in derived.added]", "test_forward_mode.py",
    ),
    # Python: cells as functions, and what is derived from them
    "cells: what an inner product multiplies is of h without its mask": Fault(
        "python", 'at[n] = graph.load("m", state)', "at[n] = n", "test_library.py"
    ),
    "cells: the gradient of a minimum goes to the larger value": Fault(
        "python", 'if op == "min":\n            less, more', 'if op == "max":\n            less, more',
        "test_derivation.py test_torch_functions.py",
    ),
    "cells: crossing values of a gate do not wait for the inner product's gradient": Fault(
        "python", "if n not in waiting and touched & gates_of(graph, n)]", "if False]", "test_derivation.py"
    ),
    "cells: constants are kept": Fault(
        "python", "free = _free(graph, again)\n    own =", "free = _free(graph, again) - {graph.const(0.5)}\n    own =",
        "test_derivation.py",
    ),
    "cells: the derivative at the bound of clamp": Fault(
        "python", 'min, trace.op("lt", x, min)', 'min, trace.op("le", x, min)', "test_torch_functions.py"
    ),
    "cells: planes are one value late after a derivative of the user's own": Fault(
        "python", "self.at[m] = len(self.lines)", "self.at[m] = len(self.at)", "test_derivation.py test_library.py"
    ),
    "cells: an unused gate is accepted": Fault(
        "python", "if (op, name) not in used:", "if False:", "test_definition_refusals.py"
    ),
    "cells: a text may put a gate's gradient twice": Fault(
        "python", "if len(set(sides)) < len(sides):", "if False:", "test_program_text.py"
    ),
}  # fmt: skip
SOURCES = {"python": ("rnnkernels", "*.py"), "triton": ("rnnkernels", "*.py"), "cpp": ("csrc", "*")}


def place(folder, fault):
    """The file of the tree that has the text."""
    where, pattern = SOURCES[fault.kind]
    found = [p for p in sorted((folder / where).rglob(pattern)) if p.is_file() and fault.old in p.read_text()]
    if len(found) != 1 or found[0].read_text().count(fault.old) != 1:
        raise SystemExit(f"Not once in the sources, but in {[str(p) for p in found]}: {fault.old}")
    return found[0]


def build(folder):
    """The copy's extension with every C++ fault in it, none of them open."""
    (folder / "planted.h").write_text(HEADER)
    for name, fault in FAULTS.items():
        if fault.kind == "cpp":
            path = place(folder, fault)
            path.write_text(path.read_text().replace(fault.old, fault.new.replace("PLANTED", f'planted("{name}")')))
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    flags = f"-O1 -w -include {folder / 'planted.h'}"
    subprocess.run(command, cwd=folder, env=os.environ | {"RNNKERNELS_CXX_FLAGS": flags}, check=True)


NONE_RAN = 5  # pytest's status
ELSEWHERE = "its tests want another processor"


def finds(folder, name, fault):
    """Whether the tests of a fault fail with it, None if there are none on this processor; and what they said last."""
    variables = {"PLANTED": name, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}"}
    variables |= {"TRITON_INTERPRET": "1"} if fault.kind == "triton" else {}
    variables |= {"GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0"}  # as in test_cpp.py
    if ".py" in fault.tests:
        files, _, words = fault.tests.partition(" -k ")
        files = [str(path) for file in files.split() for path in sorted((folder / "tests").rglob(file))]
        command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        command += ["-k", words.strip("'")] if words else []
    else:
        (worker,) = (folder / "tests").rglob("cpp_worker.py")
        command = [str(worker), *fault.tests.split()]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )
    said = (done.stdout + done.stderr).splitlines()
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # of cpp_worker.py
    last = next((line for line in reversed(said) if line.strip()), "")
    if ".py" in fault.tests and done.returncode == NONE_RAN:
        return None, ELSEWHERE
    return done.returncode != 0, next((failure for check in checks for failure in check["failed"]), last)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word of the names of the faults to plant")
    parser.add_argument("--folder", help="a copy whose C++ faults are built already, or where to make one")
    arguments = parser.parse_args()
    chosen = {name: fault for name, fault in FAULTS.items() if arguments.only in name}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary) / "tree"
        if not folder.exists():
            ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "results")
            shutil.copytree(ROOT, folder, ignore=ignored)
            if any(fault.kind == "cpp" for fault in chosen.values()):
                build(folder)
        for fault in chosen.values():  # with all of them closed nothing may be found
            if fault.kind == "cpp" and (said := finds(folder, "", fault))[0]:
                raise SystemExit(f"{fault.tests} fails without a fault: {said[1]}")
        missed = 0
        for name, fault in chosen.items():
            begin, before = time.time(), None
            if fault.kind != "cpp":
                path = place(folder, fault)
                before = path.read_text()
                path.write_text(before.replace(fault.old, fault.new))
            try:
                found, last = finds(folder, name, fault)
            finally:
                if before is not None:
                    path.write_text(before)
            missed += found is False
            verdict = {True: "found", False: "NOT FOUND", None: "left out"}[found]
            print(f"{verdict:9}  {name:62}  {time.time() - begin:4.0f} s  {fault.tests}  {last[:90]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
