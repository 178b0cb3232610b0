//! The inner loops of one instruction set.

use crate::Level;

/// How a stored element is widened to f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    Bf16,
    F16,
}

impl Stored {
    pub(crate) fn size_bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// Values of [`Stored`] as constants of generic kernels.
pub(crate) const F32: u8 = Stored::F32 as u8;
pub(crate) const BF16: u8 = Stored::Bf16 as u8;
pub(crate) const F16: u8 = Stored::F16 as u8;

/// `c[m, nr] (+)= Σ_k a[k, 0..m]ᵀ · b[k, 0..nr]`; `a` has `mr` values per k, `b` `nr`; rows of `c` are `ldc` apart.
///
/// Arguments: `kc, a, b, c, ldc, add`.
pub(crate) type Tile = unsafe fn(usize, *const f32, *const f32, *mut f32, usize, bool);

/// `out[k · stride + r] = src[r, k]` for `k < kc` and `r < lanes`; rows from `rows` on are zeros.
///
/// Arguments: `rows, lanes, kc, src, row_bytes, out, stride`.
pub(crate) type Interleave = unsafe fn(usize, usize, usize, *const u8, usize, *mut f32, usize);

/// `c[i, r] (+)= Σ_k x[i, k] · w[r, k]` for `r < rows ≤ dot_rows`, straight from the stored rows.
///
/// Arguments: `rows, kc, x, ldx, w, row_bytes, c, ldc, add`.
pub(crate) type Dot = unsafe fn(usize, usize, *const f32, usize, *const u8, usize, *mut f32, usize, bool);

/// The kernels of a level and their sizes.
pub(crate) struct Kernels {
    /// Rows of a tile.
    pub(crate) mr: usize,
    /// Columns of a tile, a multiple of `lanes`.
    pub(crate) nr: usize,
    /// Rows that `interleave` takes at once.
    pub(crate) lanes: usize,
    /// `tile[m − 1]` for `m` rows.
    pub(crate) tile: &'static [Tile],
    /// By [`Stored`].
    pub(crate) interleave: [Interleave; 3],
    /// Rows of weights that `dot` takes at once.
    pub(crate) dot_rows: usize,
    /// By [`Stored`]; `dot[s][m − 1]` for `m` rows of x.
    pub(crate) dot: [&'static [Dot]; 3],
}

/// The kernels of `level`, which the machine must have.
pub(crate) fn of(level: Level) -> &'static Kernels {
    match level.min(crate::cpu::machine()) {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &super::avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => &super::avx2::KERNELS,
        _ => &super::scalar::KERNELS,
    }
}
