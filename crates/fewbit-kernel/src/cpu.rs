//! Which instruction set the kernels use.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are written for; a greater one includes the lesser.
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
}

impl Level {
    /// All levels, the least first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512];

    /// The name that stands in manifests and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
        }
    }

    /// The level of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.name() == name)
    }
}

static CAP: AtomicU8 = AtomicU8::new(Level::Avx512 as u8);

/// What this machine has, capped by [`limit`].
pub fn detect() -> Level {
    let cap = CAP.load(Ordering::Relaxed);
    machine().min(Level::ALL[usize::from(cap)])
}

/// Caps what [`detect`] returns from now on, for the whole process.
///
/// Kernels that were chosen before keep their level.
pub fn limit(level: Level) {
    CAP.store(level as u8, Ordering::Relaxed);
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
#[cfg(not(target_arch = "x86_64"))]
pub fn machine() -> Level {
    Level::Scalar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered_and_named() {
        assert!(Level::Scalar < Level::Avx2 && Level::Avx2 < Level::AvxVnni && Level::AvxVnni < Level::Avx512);
        for level in Level::ALL {
            assert_eq!(Level::named(level.name()), Some(level));
        }
        assert!(detect() <= machine());
    }
}
