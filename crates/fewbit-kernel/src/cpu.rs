//! Which instruction set the kernels use.

use std::sync::atomic::{AtomicUsize, Ordering};

/// An instruction set that kernels are written for; of one architecture, a greater one includes the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust: the reference that every other level is tested against.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with the dot products of bytes of AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// NEON with dotprod.
    Neon,
    /// NEON with dotprod and the matrix products of bytes of i8mm.
    NeonI8mm,
}

impl Level {
    /// All levels of this architecture, the least first.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: &[Self] = &[Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512];
    /// All levels of this architecture, the least first.
    #[cfg(target_arch = "aarch64")]
    pub const ALL: &[Self] = &[Self::Scalar, Self::Neon, Self::NeonI8mm];
    /// All levels of this architecture, the least first.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub const ALL: &[Self] = &[Self::Scalar];

    /// The name that stands in manifests and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// The level of that name, if this architecture has it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|l| l.name() == name)
    }

    /// The levels of this machine, the least first.
    pub fn of_machine() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|l| *l <= machine())
    }
}

/// As many of [`Level::ALL`] count.
static CAP: AtomicUsize = AtomicUsize::new(Level::ALL.len());

/// What this machine has, capped by [`limit`].
pub fn detect() -> Level {
    machine().min(Level::ALL[CAP.load(Ordering::Relaxed) - 1])
}

/// Caps what [`detect`] returns from now on, for the whole process.
///
/// Kernels that were chosen before keep their level.
pub fn limit(level: Level) {
    CAP.store(Level::ALL.iter().filter(|l| **l <= level).count(), Ordering::Relaxed);
}

/// What this machine has.
#[cfg(target_arch = "x86_64")]
pub fn machine() -> Level {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    let avx512 =
        avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") && has!("avx512vnni");
    match (avx512, avx2 && has!("avxvnni"), avx2) {
        (true, ..) => Level::Avx512,
        (_, true, _) => Level::AvxVnni,
        (_, _, true) => Level::Avx2,
        _ => Level::Scalar,
    }
}

/// What this machine has.
#[cfg(target_arch = "aarch64")]
pub fn machine() -> Level {
    use std::arch::is_aarch64_feature_detected as has;
    match (has!("dotprod"), has!("i8mm")) {
        (true, true) => Level::NeonI8mm,
        (true, false) => Level::Neon,
        _ => Level::Scalar,
    }
}

/// What this machine has.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn machine() -> Level {
    Level::Scalar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered_and_named() {
        assert!(Level::ALL.is_sorted() && Level::ALL[0] == Level::Scalar);
        for level in Level::ALL {
            assert_eq!(Level::named(level.name()), Some(*level));
        }
        assert!(detect() <= machine());
    }
}
