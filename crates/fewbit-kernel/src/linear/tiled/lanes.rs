//! Sixteen lanes, one for each row of a tile: a decoder is written once and compiled for each instruction set.
//!
//! As [`crate::lanes`], whose vectors are as wide as the instruction set's, with the integer operations that codes need.

use half::f16;

use super::super::packed::TILE;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;

/// The number of each lane.
pub(super) static LANES: [u32; TILE] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Operations on sixteen f32 or u32; all of them give the same bits on every instruction set, but for [`fma`](Self::fma).
pub(super) trait Sixteen: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen u32.
    type I: Copy;
    /// Sums of sixteen lanes that registers have room for, and that hide the time of an addition.
    const CHAINS: usize;

    /// # Safety
    /// Sixteen values can be read at `at`.
    unsafe fn load(self, at: *const f32) -> Self::F;
    /// # Safety
    /// Sixteen values can be written at `at`.
    unsafe fn store(self, at: *mut f32, v: Self::F);
    /// Sixteen u32, wherever they begin.
    ///
    /// # Safety
    /// 64 bytes can be read at `at`.
    unsafe fn words(self, at: *const u8) -> Self::I;
    /// Sixteen u16.
    ///
    /// # Safety
    /// 32 bytes can be read at `at`.
    unsafe fn shorts(self, at: *const u8) -> Self::I;
    /// Sixteen u8.
    ///
    /// # Safety
    /// 16 bytes can be read at `at`.
    unsafe fn bytes(self, at: *const u8) -> Self::I;
    /// Sixteen f16.
    ///
    /// # Safety
    /// 32 bytes can be read at `at`.
    unsafe fn halves(self, at: *const u8) -> Self::F;
    /// Sixteen i8, moved to the left and masked, as f16: small floats of 8 bits.
    ///
    /// # Safety
    /// 16 bytes can be read at `at`.
    unsafe fn bytes_as_halves(self, at: *const u8, left: u32, mask: u16) -> Self::F;
    /// Entry `index` of a table, by lane.
    ///
    /// # Safety
    /// All of them can be read.
    unsafe fn gather(self, table: *const u32, index: Self::I) -> Self::I;
    /// What lies there will be read soon; it need not exist.
    fn fetch(self, at: *const u8);

    fn splat(self, x: f32) -> Self::F;
    fn splat_u32(self, x: u32) -> Self::I;
    fn shl(self, a: Self::I, by: u32) -> Self::I;
    fn shr(self, a: Self::I, by: u32) -> Self::I;
    /// The sign bit in all bits.
    fn spread_sign(self, a: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// `b` where `mask` has ones, else `a`, bit by bit.
    fn select(self, mask: Self::I, a: Self::I, b: Self::I) -> Self::I;
    fn add_u32(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_u32(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_u32(self, a: Self::I, b: Self::I) -> Self::I;
    /// The sum of the four bytes of a lane and `with`, an i32.
    fn sum_bytes(self, a: Self::I, with: i32) -> Self::I;
    /// Lane `r` takes what lane `r − 1` has, the first what the last has.
    fn rotate(self, a: Self::I) -> Self::I;
    /// Lanes as i32, exact below 2²⁴.
    fn number(self, a: Self::I) -> Self::F;
    fn bits(self, a: Self::F) -> Self::I;
    fn as_number(self, a: Self::I) -> Self::F;
    /// Entry `index mod 16`, by lane.
    fn lookup(self, index: Self::I, table: Self::F) -> Self::F;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a / by`, as the division rounds it, where `inverse` is `1 / by` and the quotient a normal number or zero.
    #[inline(always)]
    fn quotient(self, a: Self::F, by: f32, inverse: f32) -> Self::F {
        let _ = inverse;
        self.div(a, self.splat(by))
    }
}

/// Bit `i` of a lane's lowest byte at bit `8i`, bit `4 + i` at bit `8i + 4`, where `i` is below 4: shifts by seven put each in
/// its place, the last apart so that no sum carries.
#[inline(always)]
pub(super) fn spread_byte<S: Sixteen>(s: S, lanes: S::I) -> S::I {
    let copies = s.mul_u32(s.and(lanes, s.splat_u32(127)), s.splat_u32(1 | 1 << 7 | 1 << 14 | 1 << 21));
    let last = s.shl(s.and(lanes, s.splat_u32(128)), 21);
    s.or(s.and(copies, s.splat_u32(0x0111_1111)), last)
}

/// Plain Rust: the scalar twin.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Writes lane-wise methods of [`Portable`].
macro_rules! lanewise {
    ($($name:ident($a:ident $(, $b:ident)*) -> $out:ty = $e:expr, of $in:ty;)*) => {$(
        #[inline(always)]
        fn $name(self, $a: [$in; TILE] $(, $b: [$in; TILE])*) -> [$out; TILE] {
            std::array::from_fn(#[inline(always)] |i| {
                let ($a, $($b),*) = ($a[i], $($b[i]),*);
                $e
            })
        }
    )*};
}

impl Sixteen for Portable {
    type F = [f32; TILE];
    type I = [u32; TILE];
    const CHAINS: usize = 2;

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> [f32; TILE] {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f32; TILE]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: [f32; TILE]) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f32; TILE]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn words(self, at: *const u8) -> [u32; TILE] {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[[u8; 4]; TILE]>().read() }.map(u32::from_le_bytes)
    }

    #[inline(always)]
    unsafe fn shorts(self, at: *const u8) -> [u32; TILE] {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[[u8; 2]; TILE]>().read() }.map(|b| u32::from(u16::from_le_bytes(b)))
    }

    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> [u32; TILE] {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[u8; TILE]>().read() }.map(u32::from)
    }

    #[inline(always)]
    unsafe fn halves(self, at: *const u8) -> [f32; TILE] {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[[u8; 2]; TILE]>().read() }.map(|b| f16::from_le_bytes(b).to_f32())
    }

    #[inline(always)]
    unsafe fn bytes_as_halves(self, at: *const u8, left: u32, mask: u16) -> [f32; TILE] {
        // SAFETY: the caller's promise.
        let bytes = unsafe { at.cast::<[i8; TILE]>().read() };
        bytes.map(|b| f16::from_bits((i32::from(b) << left) as u16 & mask).to_f32())
    }

    #[inline(always)]
    unsafe fn gather(self, table: *const u32, index: [u32; TILE]) -> [u32; TILE] {
        // SAFETY: the caller's promise.
        index.map(|i| unsafe { table.add(i as usize).read() })
    }

    #[inline(always)]
    fn fetch(self, _: *const u8) {}

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; TILE] {
        [x; TILE]
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> [u32; TILE] {
        [x; TILE]
    }

    #[inline(always)]
    fn shl(self, a: [u32; TILE], by: u32) -> [u32; TILE] {
        a.map(|a| a << by)
    }

    #[inline(always)]
    fn shr(self, a: [u32; TILE], by: u32) -> [u32; TILE] {
        a.map(|a| a >> by)
    }

    #[inline(always)]
    fn sum_bytes(self, a: [u32; TILE], with: i32) -> [u32; TILE] {
        a.map(|a| (a.to_le_bytes().into_iter().map(i32::from).sum::<i32>() + with) as u32)
    }

    #[inline(always)]
    fn rotate(self, a: [u32; TILE]) -> [u32; TILE] {
        std::array::from_fn(|r| a[(r + TILE - 1) % TILE])
    }

    #[inline(always)]
    fn number(self, a: [u32; TILE]) -> [f32; TILE] {
        a.map(|a| a as i32 as f32)
    }

    #[inline(always)]
    fn bits(self, a: [f32; TILE]) -> [u32; TILE] {
        a.map(f32::to_bits)
    }

    #[inline(always)]
    fn as_number(self, a: [u32; TILE]) -> [f32; TILE] {
        a.map(f32::from_bits)
    }

    #[inline(always)]
    fn lookup(self, index: [u32; TILE], table: [f32; TILE]) -> [f32; TILE] {
        index.map(|i| table[i as usize % TILE])
    }

    #[inline(always)]
    fn select(self, mask: [u32; TILE], a: [u32; TILE], b: [u32; TILE]) -> [u32; TILE] {
        std::array::from_fn(|i| a[i] & !mask[i] | b[i] & mask[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; TILE], b: [f32; TILE], c: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    lanewise! {
        spread_sign(a) -> u32 = (a as i32 >> 31) as u32, of u32;
        and(a, b) -> u32 = a & b, of u32;
        or(a, b) -> u32 = a | b, of u32;
        xor(a, b) -> u32 = a ^ b, of u32;
        add_u32(a, b) -> u32 = a.wrapping_add(b), of u32;
        max_u32(a, b) -> u32 = a.max(b), of u32;
        mul_u32(a, b) -> u32 = a.wrapping_mul(b), of u32;
        add(a, b) -> f32 = a + b, of f32;
        sub(a, b) -> f32 = a - b, of f32;
        mul(a, b) -> f32 = a * b, of f32;
        div(a, b) -> f32 = a / b, of f32;
    }
}

/// Writes a function that runs a generic body at a level, which the machine must have.
macro_rules! at_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$(const $c:ident: $ct:ty),+])? ($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[inline]
        $vis fn $name $(<$(const $c: $ct),+>)? (level: $crate::Level, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::linear::tiled::lanes::{Avx2, Avx512};

                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
                fn avx512 $(<$(const $c: $ct),+>)? ($($arg: $type),*) {
                    // SAFETY: this function runs only where the machine has the level.
                    $body::<Avx512 $($(, $c)+)?>(unsafe { Avx512::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2 $(<$(const $c: $ct),+>)? ($($arg: $type),*) {
                    // SAFETY: this function runs only where the machine has the level.
                    $body::<Avx2 $($(, $c)+)?>(unsafe { Avx2::new() }, $($arg),*)
                }
                match level {
                    // SAFETY: the caller's promise.
                    $crate::Level::Avx512 => return unsafe { avx512 $(::<$($c),+>)? ($($arg),*) },
                    // SAFETY: the caller's promise.
                    $crate::Level::Avx2 | $crate::Level::AvxVnni => return unsafe { avx2 $(::<$($c),+>)? ($($arg),*) },
                    _ => {}
                }
            }
            let _ = level;
            $body::<$crate::linear::tiled::lanes::Portable $($(, $c)+)?>($crate::linear::tiled::lanes::Portable, $($arg),*)
        }
    };
}
pub(super) use at_level;

#[cfg(test)]
pub(super) mod tests {
    use crate::Level;

    /// Calls `f` with each level of this machine.
    pub(in super::super) fn at_every_level(f: impl Fn(Level)) {
        Level::of_machine().for_each(f);
    }
}
