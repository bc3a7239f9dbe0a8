"""What is read out of a cubin, of a kernel whose instructions are known."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cfmvit.bench import sass

try:
    PTXAS = sass.tool("ptxas")
    sass.tool("cuobjdump")
except FileNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)

# Adds 4 n numbers by a thread; where n is zero it leaves at once.
PTX = """
.version 7.8
.target sm_90
.address_size 64
.visible .entry add_up(.param .u64 x, .param .u64 out, .param .u32 n) {
    .reg .pred %p; .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 %f<8>;
    .shared .align 4 .b8 room[512];
    ld.param.u64 %rd0, [x]; ld.param.u64 %rd1, [out]; ld.param.u32 %r0, [n];
    setp.eq.u32 %p, %r0, 0;
    @%p bra OUT;
    mov.u32 %r1, 0; mov.f32 %f4, 0f00000000;
LOOP:
    .pragma "nounroll";
    ld.volatile.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0];
    fma.rn.f32 %f4, %f0, %f1, %f4; fma.rn.f32 %f4, %f2, %f3, %f4;
    add.u64 %rd0, %rd0, 16; add.u32 %r1, %r1, 1;
    setp.lt.u32 %p, %r1, %r0;
    @%p bra LOOP;
    mov.u32 %r2, %tid.x; shl.b32 %r2, %r2, 2; mov.u32 %r3, room; add.u32 %r3, %r3, %r2;
    st.shared.f32 [%r3], %f4;
    bar.sync 0;
    ld.shared.f32 %f5, [room];
    ex2.approx.ftz.f32 %f5, %f5;
    st.global.f32 [%rd1], %f5;
OUT:
    ret;
}
"""
# Adds n times; every third time, or more often, it leaves most of the loop out.
SKIPPING = """
.version 7.8
.target sm_90
.address_size 64
.visible .entry skip(.param .u64 x, .param .u32 n) {
    .reg .pred %p, %q; .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 %f<4>;
    ld.param.u64 %rd0, [x]; ld.param.u32 %r0, [n];
    mov.u32 %r1, 0;
LOOP:
    .pragma "nounroll";
    ld.volatile.global.u32 %r2, [%rd0];
    setp.eq.u32 %q, %r2, 0;
    @%q bra NEXT;
    ADDED
NEXT:
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p, %r1, %r0;
    @%p bra LOOP;
    ret;
}
""".replace("ADDED", "ld.volatile.global.f32 %f0, [%rd0]; st.volatile.global.f32 [%rd0+4], %f0;\n" * 20)


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("sass") / "add_up.ptx"
    source.write_text(PTX)
    subprocess.run([PTXAS, "-arch=sm_90", source, "-o", source.with_suffix(".cubin")], check=True)
    return source.with_suffix(".cubin")


def test_loops_count_as_often_as_they_go_round(cubin: Path) -> None:
    kernel = sass.kernels(cubin)["add_up"]
    (loop,) = kernel.loops
    once, thrice = (kernel.usual((trips,)) for trips in (1, 3))
    assert {kind: thrice[kind] - once[kind] for kind in once} == {
        kind: 2 * kernel.counts(range(*loop))[kind] for kind in once
    }
    assert sum(kernel.usual().values()) == len(kernel.shortest())  # never entered: it leaves at once
    with pytest.raises(ValueError, match="1 loops"):
        kernel.usual((1, 1))


def test_what_a_loop_skips_counts_in_part(tmp_path: Path) -> None:
    source, to = tmp_path / "skip.ptx", tmp_path / "skip.cubin"
    source.write_text(SKIPPING)
    subprocess.run([PTXAS, "-arch=sm_90", source, "-o", to], check=True)
    kernel = sass.kernels(to)["skip"]
    none, half, all_ = (sum(kernel.usual(((6, part),)).values()) for part in (0, 0.5, 1))
    assert all_ == sum(kernel.usual((6,)).values())
    assert all_ - none >= 6 * 40
    assert half == pytest.approx((none + all_) / 2)


def test_a_kernel_is_read(cubin: Path) -> None:
    kernel = sass.kernels(cubin)["add_up"]
    assert sass.kernels(cubin.read_bytes()).keys() == {"add_up"}
    assert sass.kernels(cubin, only="other") == {}
    assert kernel.usage.stack == kernel.usage.local == 0
    assert kernel.usage.shared >= 512
    counts = kernel.counts()
    for kind, n in {
        "special": 1,
        "shared store": 1,
        "shared load": 1,
        "barrier": 1,
        "global store": 1,
        "tensor": 0,
    }.items():
        assert counts[kind] == n, kind
    assert sum(kernel.opcodes("LDG").values()) == 1
    assert ".128" in next(iter(kernel.opcodes("LDG")))

    (loop,) = kernel.loops
    assert loop == kernel.loop_with("global load")
    assert kernel.opcodes("FFMA", range(*loop)) == {"FFMA": 2}
    with pytest.raises(ValueError, match="add_up has no loop with instructions of the class tensor"):
        kernel.loop_with("tensor")

    early, through = kernel.shortest(), kernel.shortest(through=loop.first)
    assert kernel.counts(early)["special"] == 0
    assert kernel.counts(through)["special"] == kernel.counts(through)["global load"] == 1
    assert len(early) < len(through) < len(kernel.instructions)
    assert kernel.instructions[through[-1]].opcode.startswith("EXIT")


def test_what_is_no_cubin_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernel.cubin").write_text("none")
    with pytest.raises(ValueError, match=r"kernel\.cubin: "):
        sass.kernels(tmp_path / "kernel.cubin")


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "capability", "blocks"),
    [(128, 256, 98_328, 90, 2), (129, 256, 98_328, 90, 1), (255, 128, 98_328, 90, 2), (32, 1024, 0, 80, 2), (32, 1024, 0, 120, 1), (40, 32, 0, 90, 32), (40, 128, 100_000, 120, 1)],
    ids=str,
)  # fmt: skip
def test_blocks_at_once(registers: int, threads: int, shared: int, capability: int, blocks: int) -> None:
    usage = sass.Usage(registers, stack=0, shared=1024, local=0)
    assert sass.blocks_at_once(usage, threads, shared - 1024, capability) == blocks


def test_the_command(
    cubin: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["sass", str(cubin)])
    assert sass.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("add_up  registers ")
    assert [line.split(":")[0].strip().split(" at ")[0] for line in printed[1:]] == [
        "whole",
        "shortest way",
        "loop",
    ]
