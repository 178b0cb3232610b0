//! Memory that begins on a cache line: a vector load that crosses lines costs two.

use std::marker::PhantomData;

use crate::lanes::Number;

pub(crate) const LINE_BYTES: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Numbers that begin on a cache line, as many as fill whole lines.
#[derive(Clone, Default)]
pub(crate) struct Aligned<T>(Vec<Line>, PhantomData<T>);

impl<T: Number> Aligned<T> {
    /// At least `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line([0; LINE_BYTES]); (len * size_of::<T>()).div_ceil(LINE_BYTES)], PhantomData)
    }

    /// `len` values, of any content.
    pub(crate) fn take(&mut self, len: usize) -> &mut [T] {
        if self.as_slice().len() < len {
            // A fresh vector rather than a longer one: what is in it need not be copied.
            *self = Self::zeros(len);
        }
        &mut self.as_mut_slice()[..len]
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: as many bytes lie there, aligned, and any bits are a number.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * (LINE_BYTES / size_of::<T>())) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        let len = self.as_slice().len();
        // SAFETY: as many bytes lie there, aligned, and any bits are a number.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}
