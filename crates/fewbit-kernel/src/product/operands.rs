//! The operands of a product.

use std::marker::PhantomData;
use std::ops::Range;

use super::Weights;
use super::kernels::Stored;

/// The left operand, times `scale`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) ld: usize,
    /// `x` is `[k, m]` instead of `[m, k]`.
    pub(crate) transposed: bool,
    pub(crate) scale: f32,
}

impl<'a> Left<'a> {
    pub(crate) fn rows(x: &'a [f32], ld: usize) -> Self {
        Self { x, ld, transposed: false, scale: 1.0 }
    }

    pub(crate) fn columns(x: &'a [f32], ld: usize) -> Self {
        Self { transposed: true, ..Self::rows(x, ld) }
    }
}

/// Writes rows `range` of a matrix `[n, k]` as f32.
pub(crate) type Decode<'a> = &'a (dyn Fn(Range<usize>, &mut [f32]) + Sync);

/// Writes rows `range` of a matrix `[n, k]` in columns `ks` as a panel `out[ks][width]`; missing rows are zeros.
///
/// Arguments: `range, ks, width, out`. Ranges begin at a multiple of `width` and of [`super::K_BLOCK`].
pub(crate) type Panel<'a> = &'a (dyn Fn(Range<usize>, Range<usize>, usize, &mut [f32]) + Sync);

/// The right operand of a job.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// `[n, k]` as stored.
    Rows { bytes: &'a [u8], stored: Stored },
    /// `[n, k]`, decoded a few rows at a time.
    Decoded(Decode<'a>),
    /// `[n, k]`, written as panels.
    Panels(Panel<'a>),
    /// `[k, n]` with rows `ld` apart.
    Columns { b: &'a [f32], ld: usize },
}

impl<'a> Right<'a> {
    pub(crate) fn stored(weights: Weights<'a>) -> Self {
        match weights {
            Weights::F32(w) => {
                // SAFETY: any f32 is four bytes; the slice is the same memory.
                let bytes = unsafe { std::slice::from_raw_parts(w.as_ptr().cast(), size_of_val(w)) };
                Self::Rows { bytes, stored: Stored::F32 }
            }
            Weights::F32Bytes(bytes) => Self::Rows { bytes, stored: Stored::F32 },
            Weights::Bf16(bytes) => Self::Rows { bytes, stored: Stored::Bf16 },
            Weights::F16(bytes) => Self::Rows { bytes, stored: Stored::F16 },
        }
    }
}

/// One product of a call: `n` columns of a result.
pub(crate) struct Job<'a> {
    pub(super) n: usize,
    pub(super) right: Right<'a>,
    pub(super) y: *mut f32,
    pub(super) y_len: usize,
    pub(super) ldy: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
    pub(super) upper: bool,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a job stands for a `&mut` of its columns of `y`; tasks write disjoint elements of them.
unsafe impl Sync for Job<'_> {}

impl<'a> Job<'a> {
    pub(crate) fn new(n: usize, right: Right<'a>, y: &'a mut [f32], ldy: usize) -> Self {
        let (y, y_len) = (y.as_mut_ptr(), y.len());
        Self { n, right, y, y_len, ldy, bias: None, accumulate: false, upper: false, of: PhantomData }
    }

    /// Jobs for consecutive columns of one result.
    pub(crate) fn side_by_side(
        y: &'a mut [f32],
        ldy: usize,
        parts: impl Iterator<Item = (usize, Right<'a>)>,
    ) -> impl Iterator<Item = Self> {
        let (at, len) = (y.as_mut_ptr(), y.len());
        let mut from = 0;
        parts.map(move |(n, right)| {
            assert!(from + n <= ldy && from <= len, "columns {from}..{} of rows of {ldy}", from + n);
            // SAFETY: inside the slice.
            let (y, y_len) = (unsafe { at.add(from) }, len - from);
            from += n;
            Self { n, right, y, y_len, ldy, bias: None, accumulate: false, upper: false, of: PhantomData }
        })
    }

    pub(crate) fn accumulating(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// Adds `bias[n]` to every row, last.
    pub(crate) fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        Self { bias, ..self }
    }

    /// Leaves out the tiles that lie wholly below the diagonal.
    pub(crate) fn upper(self) -> Self {
        Self { upper: true, ..self }
    }

    pub(super) fn check(&self, m: usize, k: usize) {
        let (n, ldy) = (self.n, self.ldy);
        assert!(m <= 1 || ldy >= n, "rows of {n} do not fit {ldy} apart");
        assert!(reach(m, ldy, n) <= self.y_len, "a result [{m}, {n}] in {} elements", self.y_len);
        assert!(self.bias.is_none_or(|b| b.len() == n), "a bias of another length than {n}");
        match self.right {
            Right::Rows { bytes, stored } => {
                assert!(n * k * stored.size_bytes() <= bytes.len(), "weights [{n}, {k}] in {} bytes", bytes.len());
            }
            Right::Columns { b, ld } => {
                assert!((k <= 1 || ld >= n) && reach(k, ld, n) <= b.len(), "[{k}, {n}] in {} elements", b.len());
            }
            Right::Decoded(_) | Right::Panels(_) => {}
        }
    }
}

/// Elements from the first to the last of `rows` rows that are `ld` apart.
pub(super) fn reach(rows: usize, ld: usize, cols: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * ld + cols }
}
