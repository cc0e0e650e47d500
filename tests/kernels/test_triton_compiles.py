"""Without a GPU the kernels still compile for one: the interpreter knows nothing of layouts and types.

Triton's interpreter, once chosen, stays for the process, so this file runs itself in another one.
"""

import os
import subprocess
import sys

import pytest
import torch

CUDA = torch.cuda.is_available()


@pytest.mark.skipif(CUDA, reason="there is a CUDA device, where the kernels themselves are tested")
def test_every_kernel_compiles_for_sm_90(tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = {"_analysis", "_synthesis", "_first", "_product", "_normal"}
    assert {line.split()[0] for line in done.stdout.splitlines()} == kernels


def compile_for_sm_90(kernel, programs, *arguments, **constants):
    """In place of a launch: the same specialisation, compiled to machine code and left alone."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
    warps = constants.pop("num_warps")
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **constants}
    signature, constexprs = {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constexprs[i,] = "constexpr", value
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else types[value.dtype]
    source = ASTSource(kernel, signature, constexprs)
    options = {"num_warps": warps, "num_stages": 2}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024
    print(kernel.__name__, compiled.metadata.shared)


def main():
    from monarch_sciml.kernels.triton import launch, monarch_multiply, sense_normal, spectral_convolution

    launch.check = lambda *_: None  # lets tensors in that are on no GPU
    launch.run = compile_for_sm_90
    for dtype, precision in ((torch.float32, "tf32x3"), (torch.bfloat16, "ieee")):
        x = torch.empty(4, 64, 64, 64, dtype=dtype, requires_grad=True)
        analysis, synthesis = torch.empty(2, 2, 24, 64, dtype=dtype), torch.empty(2, 2, 64, 24, dtype=dtype)
        weight = torch.empty(24, 24, 64, 64, 2, dtype=dtype)
        how = {"bias": weight[0, 0, 0, :, 0], "skip": x.detach(), "gelu": True, "precision": precision}
        spectral_convolution(x, analysis.unbind(), weight, synthesis.unbind(), **how).sum().backward()
        L, R = torch.empty(16, 96, 16, dtype=dtype), torch.empty(16, 16, 20, dtype=dtype)
        y = torch.empty(300, 320, dtype=dtype, requires_grad=True)
        monarch_multiply(y, L, R, precision=precision).sum().backward()
    for slices in (1, 32):
        x, gram = (
            torch.empty(slices, 64, 96, dtype=torch.complex64),
            torch.empty(96, 96, dtype=torch.complex64),
        )
        sense_normal(x, x[:, None].expand(-1, 4, -1, -1), gram, precision="tf32x3")


if __name__ == "__main__":
    main()
