//! The grids of the IQ types: which groups of four or eight magnitudes a code may stand for.
//!
//! They are data of the format, found by its author's search, and no rule makes them. `grids.bin` holds one 16-bit
//! little-endian number for each point: value `i` of eight is the level at bits `2i..2i + 2`, of four at bits
//! `3i..3i + 3`.

/// All grids, one after the other.
static BYTES: &[u8; 2 * (256 + 512 + 1024 + 256 + 512 + 2048)] = include_bytes!("grids.bin");

/// The points of one grid, each of `N` levels.
pub(super) struct Grid<const N: usize> {
    first: usize,
    /// What the levels stand for.
    levels: [i8; 8],
}

pub(super) static IQ2_XXS: Grid<8> = Grid { first: 0, levels: [8, 25, 43, 0, 0, 0, 0, 0] };
pub(super) static IQ2_XS: Grid<8> = Grid { first: 256, ..IQ2_XXS };
pub(super) static IQ2_S: Grid<8> = Grid { first: 768, ..IQ2_XXS };
pub(super) static IQ3_XXS: Grid<4> = Grid { first: 1792, levels: [4, 12, 20, 28, 36, 44, 52, 62] };
pub(super) static IQ3_S: Grid<4> = Grid { first: 2048, levels: [1, 3, 5, 7, 9, 11, 13, 15] };
pub(super) static IQ1: Grid<8> = Grid { first: 2560, levels: [-1, 0, 1, 0, 0, 0, 0, 0] };

impl<const N: usize> Grid<N> {
    const BITS: usize = if N == 8 { 2 } else { 3 };

    /// The levels of point `i`, packed.
    #[inline]
    pub(super) fn packed(&self, i: usize) -> u16 {
        let at = 2 * (self.first + i);
        u16::from_le_bytes([BYTES[at], BYTES[at + 1]])
    }

    /// What a level stands for.
    #[inline]
    pub(super) fn number(&self, level: u8) -> f32 {
        f32::from(self.levels[usize::from(level)])
    }

    /// The levels of point `i`.
    #[inline]
    pub(super) fn levels(&self, i: usize) -> [u8; N] {
        let packed = self.packed(i);
        std::array::from_fn(|j| (packed >> (Self::BITS * j)) as u8 & ((1 << Self::BITS) - 1))
    }

    /// The numbers of point `i`.
    #[inline]
    pub(super) fn point(&self, i: usize) -> [f32; N] {
        self.levels(i).map(|level| self.number(level))
    }
}

/// Eight signs of which seven are stored: an even number of them is negative.
#[inline]
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn check<const N: usize>(grid: &Grid<N>, points: usize, levels: u16) {
        let packed: Vec<u16> = (0..points).map(|i| grid.packed(i)).collect();
        assert_eq!(packed.iter().collect::<BTreeSet<_>>().len(), points, "a point occurs twice");
        let mask = (1 << Grid::<N>::BITS) - 1;
        let beyond = |p: &u16| (0..N).any(|j| p >> (Grid::<N>::BITS * j) & mask >= levels);
        assert_eq!(packed.iter().position(beyond), None);
    }

    #[test]
    fn points_are_different_and_have_levels() {
        check(&IQ2_XXS, 256, 3);
        check(&IQ2_XS, 512, 3);
        check(&IQ2_S, 1024, 3);
        check(&IQ3_XXS, 256, 8);
        check(&IQ3_S, 512, 8);
        check(&IQ1, 2048, 3);
        assert_eq!(IQ2_XXS.point(1), [43.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0]);
    }

    #[test]
    fn eight_signs_are_even() {
        assert_eq!([0, 1, 3, 127].map(even_signs), [0, 0b1000_0001, 3, 255]);
    }
}
