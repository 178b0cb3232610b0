//! Numbers where they are stored, or in memory of their own.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use memmap2::MmapMut;

use super::packed::Cell;
use crate::huge_pages;

/// Types of which any bytes are a value.
///
/// # Safety
/// Such types, without padding.
pub(super) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: numbers of a machine type.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: 64 bytes.
unsafe impl Plain for Cell {}

/// A slice that shares the bytes of a file, or owns its own.
pub(super) struct Held<T> {
    /// Aligned for `T`, and whole values.
    bytes: Bytes,
    values: PhantomData<T>,
}

/// Numbers in memory of our own: a vector, or huge pages.
pub(super) enum Own<T> {
    Vector(Vec<T>),
    /// Memory for so many numbers, or more.
    Pages(MmapMut, usize),
}

impl<T: Plain> Own<T> {
    /// Zeros to be filled in, in huge pages where they fill some and the machine reads weights faster from them.
    pub(super) fn zeros(len: usize) -> Self {
        if let Some(map) = huge_pages::map(len * size_of::<T>()) {
            return Self::Pages(map, len);
        }
        let mut values = Vec::<T>::with_capacity(len);
        // SAFETY: there is room for so many values, and zeros are one of them.
        unsafe {
            values.as_mut_ptr().write_bytes(0, len);
            values.set_len(len);
        }
        Self::Vector(values)
    }
}

impl<T: Plain> Deref for Own<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Self::Vector(values) => values,
            // SAFETY: a page is aligned for every type, there is memory for so many, and any bytes are values.
            Self::Pages(map, len) => unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), *len) },
        }
    }
}

impl<T: Plain> DerefMut for Own<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Vector(values) => values,
            // SAFETY: as above.
            Self::Pages(map, len) => unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), *len) },
        }
    }
}

impl<T: Plain> fmt::Debug for Own<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", size_of_val(&self[..]))
    }
}

impl<T: Plain> AsRef<[u8]> for Own<T> {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: plain values are bytes without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(&self[..])) }
    }
}

impl<T: Plain> Held<T> {
    /// Shares values in the byte order of this machine; copies them where they are not aligned.
    ///
    /// # Panics
    /// If the bytes end within a value.
    pub(super) fn new(bytes: Bytes) -> Self {
        assert!(bytes.len().is_multiple_of(size_of::<T>()), "whole values");
        if bytes.as_ptr().cast::<T>().is_aligned() {
            return Self { bytes, values: PhantomData };
        }
        let mut values = Vec::<T>::with_capacity(bytes.len() / size_of::<T>());
        // SAFETY: there is room for so many bytes, and all bytes are values.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast(), bytes.len());
            values.set_len(bytes.len() / size_of::<T>());
        }
        values.into()
    }
}

impl<T: Plain> From<Own<T>> for Held<T> {
    fn from(values: Own<T>) -> Self {
        Self { bytes: Bytes::from_owner(values), values: PhantomData }
    }
}

impl<T: Plain> From<Vec<T>> for Held<T> {
    fn from(values: Vec<T>) -> Self {
        Own::Vector(values).into()
    }
}

impl<T: Plain> Deref for Held<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the bytes are aligned and whole values, which any bytes are.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() / size_of::<T>()) }
    }
}

impl<T: Plain> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_aligned_is_shared_and_the_rest_is_copied() {
        let held = Held::from((0..100u16).collect::<Vec<_>>());
        assert_eq!(held[..3], [0, 1, 2]);
        let bytes = held.bytes.clone();
        let (shared, copied) = (Held::<u16>::new(bytes.slice(2..)), Held::<u16>::new(bytes.slice(1..101)));
        assert_eq!(shared.as_ptr(), &raw const held[1]);
        assert_eq!((shared.len(), shared[98]), (99, 99));
        assert!(copied.as_ptr().is_aligned());
        assert_eq!((copied.len(), copied[0]), (50, 256));
        assert!(Held::<Cell>::new(Bytes::new()).is_empty());
    }

    #[test]
    fn zeros_of_any_length() {
        for len in [0, 1, 1 << 15, (5 << 20) + 3] {
            let mut zeros = Own::<u16>::zeros(len);
            assert!(zeros.len() == len && zeros.iter().all(|v| *v == 0), "{len}");
            zeros.fill(7);
            let held = Held::from(zeros);
            assert!(held.len() == len && held.iter().all(|v| *v == 7), "{len}");
        }
    }
}
