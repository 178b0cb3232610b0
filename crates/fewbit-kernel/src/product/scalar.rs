//! The scalar twins: what the vector kernels must compute, save that here a product is rounded before it is added.

use half::{bf16, f16};

use super::kernels::{BF16, Dot, F16, F32, Kernels, Tile};

const MR: usize = 4;
const NR: usize = 8;

pub(crate) static KERNELS: Kernels = Kernels {
    mr: MR,
    nr: NR,
    lanes: NR,
    tile: &{
        let tiles: [Tile; MR] = [tile::<1>, tile::<2>, tile::<3>, tile::<4>];
        tiles
    },
    interleave: [interleave::<F32>, interleave::<BF16>, interleave::<F16>],
    dot_rows: NR,
    dot: [&DOT_F32, &DOT_BF16, &DOT_F16],
};
static DOT_F32: [Dot; 2] = [dot::<F32, 1>, dot::<F32, 2>];
static DOT_BF16: [Dot; 2] = [dot::<BF16, 1>, dot::<BF16, 2>];
static DOT_F16: [Dot; 2] = [dot::<F16, 1>, dot::<F16, 2>];

/// Element `i` of a stored row.
///
/// # Safety
/// The element can be read.
#[inline]
#[expect(clippy::cast_ptr_alignment, reason = "read unaligned")]
unsafe fn element<const S: u8>(row: *const u8, i: usize) -> f32 {
    // SAFETY: promised by the caller; mapped bytes may be unaligned.
    unsafe {
        match S {
            F32 => row.cast::<f32>().add(i).read_unaligned(),
            BF16 => bf16::from_bits(row.cast::<u16>().add(i).read_unaligned()).to_f32(),
            _ => f16::from_bits(row.cast::<u16>().add(i).read_unaligned()).to_f32(),
        }
    }
}

unsafe fn tile<const M: usize>(kc: usize, a: *const f32, b: *const f32, c: *mut f32, ldc: usize, add: bool) {
    // SAFETY: the caller gives `kc` steps of both operands and `M` rows of `c`.
    unsafe {
        let mut sums = [[0.0f32; NR]; M];
        for k in 0..kc {
            let (a, b) = (a.add(k * MR), b.add(k * NR));
            for (i, row) in sums.iter_mut().enumerate() {
                for (r, sum) in row.iter_mut().enumerate() {
                    *sum += *a.add(i) * *b.add(r);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (r, sum) in row.iter().enumerate() {
                let at = c.add(i * ldc + r);
                *at = if add { *at + sum } else { *sum };
            }
        }
    }
}

unsafe fn interleave<const S: u8>(
    rows: usize,
    lanes: usize,
    kc: usize,
    src: *const u8,
    row_bytes: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller gives `rows` rows of `kc` elements and `kc` steps of `lanes` places.
    unsafe {
        for k in 0..kc {
            for r in 0..lanes {
                let value = if r < rows { element::<S>(src.add(r * row_bytes), k) } else { 0.0 };
                *out.add(k * stride + r) = value;
            }
        }
    }
}

unsafe fn dot<const S: u8, const M: usize>(
    rows: usize,
    kc: usize,
    x: *const f32,
    ldx: usize,
    w: *const u8,
    row_bytes: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    // SAFETY: the caller gives `M` rows of x, `rows` rows of w and their places in c.
    unsafe {
        for r in 0..rows {
            let mut sums = [0.0f32; M];
            for k in 0..kc {
                let value = element::<S>(w.add(r * row_bytes), k);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += *x.add(i * ldx + k) * value;
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                let at = c.add(i * ldc + r);
                *at = if add { *at + sum } else { *sum };
            }
        }
    }
}
