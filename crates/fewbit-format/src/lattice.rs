use std::ops::Range;
use std::sync::LazyLock;

use crate::group::pick;
use crate::{Error, Group, Result, ScaleType, Scales};

/// Coordinates of a code: eight consecutive columns of one row.
pub const LATTICE_DIM: usize = 8;

/// What is added to the E8P point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecondStage {
    /// Nothing: 2 bits a weight.
    None,
    /// One of 256 short vectors of E8, by 2.04: 3 bits.
    E8Short,
    /// Another E8P point, by 3.45: 4 bits.
    E8P,
}

impl SecondStage {
    /// Bits that it adds to the 16 of the first.
    pub fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::E8Short => 8,
            Self::E8P => 16,
        }
    }

    /// By what its points are divided (the authors' choice, tuned on normal numbers).
    pub fn divisor(self) -> f32 {
        match self {
            Self::None => 1.0,
            Self::E8Short => 2.04,
            Self::E8P => 3.45,
        }
    }
}

/// What lattice codes look like, without their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatticeGrid {
    /// What is added to the first point.
    pub second: SecondStage,
    /// Which weights share a scale: a multiple of 8 columns, a row, or all.
    pub group: Group,
    /// Type of the stored scales.
    pub scale: ScaleType,
}

impl LatticeGrid {
    /// Checks that groups are whole codes.
    ///
    /// # Errors
    /// One sentence with what would fit.
    pub fn check(self, cols: usize) -> Result<()> {
        self.group.check(cols)?;
        let width = self.group.width(cols);
        if width.is_multiple_of(LATTICE_DIM) {
            return Ok(());
        }
        Err(Error::input(format!("groups of {width} columns are not vectors of {LATTICE_DIM}")))
    }

    /// Bytes of one code.
    pub fn code_bytes(self) -> usize {
        2 + usize::from(self.second.bits()) / 8
    }
}

/// The 256 patterns of magnitudes of E8P (Tseng et al., QuIP#, 2024, section 4 and appendix C): those in `D̂8` of
/// squared length up to 10 in lexicographic order, then 29 of squared length 12.
pub static PATTERNS: LazyLock<[[f32; 8]; 256]> = LazyLock::new(|| {
    const LONG: [[u8; 3]; 29] = [
        *b"123", *b"023", *b"013", *b"012", *b"367", *b"357", *b"347", *b"356", *b"346", *b"345", *b"267", *b"257",
        *b"247", *b"256", *b"246", *b"245", *b"167", *b"157", *b"147", *b"156", *b"146", *b"045", *b"067", *b"057",
        *b"047", *b"056", *b"046", *b"014", *b"237",
    ];
    let short = (0..3usize.pow(8)).map(|n| std::array::from_fn(|i| 0.5 + (n / 3usize.pow(7 - i as u32) % 3) as f32));
    let short = short.filter(|p: &[f32; 8]| p.iter().map(|v| v * v).sum::<f32>() <= 10.0);
    let long = LONG.iter().map(|halves| {
        std::array::from_fn(|i| if halves.iter().any(|at| usize::from(at - b'0') == i) { 0.5 } else { 1.5 })
    });
    let mut all = [[0.0; 8]; 256];
    all.iter_mut().zip(short.chain(long)).for_each(|(to, p)| *to = p);
    all
});

/// The vectors of [`SecondStage::E8Short`]: the 241 points of E8 of squared length up to 2, integers before halves, each
/// in lexicographic order, then `2eᵢ` for all `i` and `−2eᵢ` for all but the last.
pub static SHORT: LazyLock<[[f32; 8]; 256]> = LazyLock::new(|| {
    let is_short = |p: &[f32; 8]| p.iter().sum::<f32>() % 2.0 == 0.0 && p.iter().map(|v| v * v).sum::<f32>() <= 2.0;
    let whole = (0..3usize.pow(8)).map(|n| std::array::from_fn(|i| (n / 3usize.pow(7 - i as u32) % 3) as f32 - 1.0));
    let halves = (0..256usize).map(|n| std::array::from_fn(|i| (n >> (7 - i) & 1) as f32 - 0.5));
    let axes = (0..15).map(|k| {
        std::array::from_fn(|i| {
            if i != k % 8 {
                0.0
            } else if k < 8 {
                2.0
            } else {
                -2.0
            }
        })
    });
    let mut all = [[0.0; 8]; 256];
    let points = whole.filter(is_short).chain(halves.filter(is_short)).chain(axes);
    all.iter_mut().zip(points).for_each(|(to, p)| *to = p);
    all
});

/// Which bit of a code negates which coordinate.
const SIGN_BITS: [u8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The E8P point of a code: the pattern `code >> 8`, signs in its low byte, whose parity moves all by a quarter.
#[inline]
pub fn e8p_point(code: u16) -> [f32; 8] {
    let pattern = &PATTERNS[usize::from(code >> 8)];
    let odd = u16::from((code as u8).count_ones() % 2 == 1);
    let mut signs = (code & 255) ^ odd;
    if pattern.iter().sum::<f32>() % 2.0 == 1.0 {
        signs ^= 1 << SIGN_BITS[7];
    }
    let shift = if odd == 0 { 0.25 } else { -0.25 };
    std::array::from_fn(|i| if signs >> SIGN_BITS[i] & 1 == 1 { -pattern[i] } else { pattern[i] } + shift)
}

/// The code of a pattern with these coordinates negative (bit `i` for coordinate `i`), moved by a quarter down or up:
/// the inverse of [`e8p_point`]. The parity of the signs must be the pattern's.
pub fn e8p_code(pattern: u8, negative: u8, is_down: bool) -> u16 {
    let odd_sum = PATTERNS[usize::from(pattern)].iter().sum::<f32>() % 2.0 == 1.0;
    debug_assert_eq!(negative.count_ones() % 2 == 1, odd_sum, "an even sum of coordinates");
    let mut signs = (0..8).map(|i| u16::from(negative >> i & 1) << SIGN_BITS[i]).sum::<u16>();
    if odd_sum {
        signs ^= 1 << SIGN_BITS[7];
    }
    u16::from(pattern) << 8 | (signs ^ u16::from(is_down))
}

/// Codes into the lattice E8, eight columns each: `W[r, 8j..8j+8] = s · (E8P[c₁] + S[c₂] / divisor)`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatticeCodes {
    rows: usize,
    cols: usize,
    grid: LatticeGrid,
    codes: Vec<u16>,
    /// One byte each, or two.
    second: Vec<u8>,
    scales: Scales,
}

impl LatticeCodes {
    /// Takes the codes of both stages `[rows · cols/8]` (none of the second where it adds nothing; below 256 for
    /// [`SecondStage::E8Short`]) and scales `[rows · groups]` (`[1]` for [`Group::Tensor`]) that the grid's scale type
    /// holds exactly.
    ///
    /// # Errors
    /// If a size is wrong, or the groups are not whole codes.
    pub fn new(
        rows: usize,
        cols: usize,
        grid: LatticeGrid,
        codes: Vec<u16>,
        second: &[u16],
        scales: &[f32],
    ) -> Result<Self> {
        grid.check(cols)?;
        let (count, groups) = (rows * (cols / LATTICE_DIM), grid.group.count(rows, cols));
        let seconds = if grid.second == SecondStage::None { 0 } else { count };
        if codes.len() != count || second.len() != seconds || scales.len() != groups {
            return Err(Error::internal(format!(
                "{} and {} codes and {} scales for [{rows}, {cols}] in {groups} groups",
                codes.len(),
                second.len(),
                scales.len()
            )));
        }
        if grid.second == SecondStage::E8Short && second.iter().any(|c| *c > 255) {
            return Err(Error::input("holds a code beyond 8 bits"));
        }
        let second = match grid.second {
            SecondStage::None => Vec::new(),
            SecondStage::E8Short => second.iter().map(|c| *c as u8).collect(),
            SecondStage::E8P => second.iter().flat_map(|c| c.to_le_bytes()).collect(),
        };
        Ok(Self { rows, cols, grid, codes, second, scales: Scales::new(grid.scale, scales) })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The grid.
    pub fn grid(&self) -> LatticeGrid {
        self.grid
    }

    /// The codes of the first stage, `[rows · cols/8]`.
    pub fn codes(&self) -> &[u16] {
        &self.codes
    }

    /// The codes of the second stage, of one byte or two.
    pub fn second(&self) -> &[u8] {
        &self.second
    }

    /// What code `at` of the second stage adds.
    #[inline]
    fn second_at(&self, at: usize) -> Option<(SecondStage, u16)> {
        let code = match self.grid.second {
            SecondStage::None => return None,
            SecondStage::E8Short => u16::from(self.second[at]),
            SecondStage::E8P => u16::from_le_bytes([self.second[2 * at], self.second[2 * at + 1]]),
        };
        Some((self.grid.second, code))
    }

    /// All scales, `[rows · groups]` or `[1]`.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (per_row, width) = (self.cols / LATTICE_DIM, self.grid.group.width(self.cols));
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            for (j, values) in row.as_chunks_mut::<LATTICE_DIM>().0.iter_mut().enumerate() {
                let at = r * per_row + j;
                let scale = match self.grid.group {
                    Group::Tensor => self.scales.get(0),
                    _ => self.scales.get(r * (self.cols / width) + j * LATTICE_DIM / width),
                };
                *values = lattice_point(self.codes[at], self.second_at(at)).map(|v| scale * v);
            }
        }
    }

    /// The same codes with these rows, in this order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let per_row = self.cols / self.grid.group.width(self.cols);
        let codes = self.cols / LATTICE_DIM;
        Self {
            rows: rows.len(),
            codes: pick(&self.codes, rows, codes, false),
            second: pick(&self.second, rows, codes * usize::from(self.grid.second.bits() / 8), false),
            scales: self.scales.select_rows(rows, per_row, self.grid.group == Group::Tensor),
            ..*self
        }
    }

    /// The rows of several matrices in one; `None` where grids or widths differ, or one scale serves a matrix.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let is_alike = |p: &&Self| p.grid == first.grid && p.cols == first.cols && p.grid.group != Group::Tensor;
        if !rest.iter().all(is_alike) {
            return None;
        }
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            codes: parts.iter().flat_map(|p| p.codes.iter().copied()).collect(),
            second: parts.iter().flat_map(|p| p.second.iter().copied()).collect(),
            scales: Scales::stack(parts.iter().map(|p| &p.scales))?,
            ..**first
        })
    }

    /// Everything stored, in bits: codes and scales.
    pub fn stored_bits(&self) -> u64 {
        8 * (self.codes.len() * self.grid.code_bytes()) as u64 + self.scales.stored_bits()
    }
}

/// The point of a code, in units of the scale, with that of the second stage.
#[inline]
pub fn lattice_point(code: u16, second: Option<(SecondStage, u16)>) -> [f32; 8] {
    let mut point = e8p_point(code);
    let added = match second {
        None | Some((SecondStage::None, _)) => return point,
        Some((SecondStage::E8Short, c)) => SHORT[usize::from(c & 255)],
        Some((SecondStage::E8P, c)) => e8p_point(c),
    };
    let by = second.map_or(1.0, |(stage, _)| stage.divisor());
    point.iter_mut().zip(added).for_each(|(p, a)| *p += a / by);
    point
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_have_the_published_points() {
        assert_eq!(e8p_point(0x0000), [0.75; 8]);
        assert_eq!(e8p_point(0x0001), [0.25; 8]);
        assert_eq!(e8p_point(0x1234), [-0.75, -0.75, 0.25, -0.75, -1.75, 0.25, 0.25, 1.25]);
        assert_eq!(e8p_point(0xe3a5), [-1.25, 0.75, 0.75, -0.25, -1.25, 1.75, 1.75, 1.75]);
        assert_eq!(e8p_point(0xffff), [-1.25, -1.25, -0.25, -0.25, -1.25, -1.25, -1.25, 0.75]);
    }

    #[test]
    fn all_points_are_distinct_points_of_the_moved_lattice_and_are_found_again() {
        let mut seen = HashSet::new();
        for code in 0..=u16::MAX {
            let point = e8p_point(code);
            assert!(seen.insert(point.map(f32::to_bits)));
            let shift = if (code as u8).count_ones().is_multiple_of(2) { 0.25 } else { -0.25 };
            let moved = point.map(|v| v - shift);
            assert!(moved.iter().all(|v| v.abs() % 1.0 == 0.5) && moved.iter().sum::<f32>() % 2.0 == 0.0);
            let pattern = PATTERNS.iter().position(|p| *p == moved.map(f32::abs)).unwrap();
            let negative = (0..8).map(|i| u8::from(moved[i] < 0.0) << i).sum();
            assert_eq!(e8p_code(pattern as u8, negative, shift < 0.0), code);
        }
        let short: HashSet<_> = SHORT.iter().map(|p| p.map(f32::to_bits)).collect();
        assert_eq!(short.len(), 256);
    }

    #[test]
    fn rows_are_picked_put_together_and_counted() {
        for second in [SecondStage::None, SecondStage::E8Short, SecondStage::E8P] {
            let grid = LatticeGrid { second, group: Group::Columns(16), scale: ScaleType::F16 };
            let codes = (0..12).map(|i| i * 5003).collect();
            let seconds: Vec<u16> =
                if second == SecondStage::None { vec![] } else { (0..12).map(|i| i * 21).collect() };
            let all = LatticeCodes::new(3, 32, grid, codes, &seconds, &[0.5, 1.0, 2.0, 4.0, 8.0, 16.0]).unwrap();
            let mut values = vec![0.0; 96];
            all.decode_rows(0..3, &mut values);
            let at = |r: usize, j: usize| {
                let at = 4 * r + j;
                lattice_point(all.codes[at], (second != SecondStage::None).then_some((second, 21 * at as u16)))
            };
            assert_eq!(values[48..56], at(1, 2).map(|v| 4.0 * v));
            let [a, b] = [vec![0], vec![1, 2]].map(|rows| all.select_rows(&rows));
            assert_eq!(LatticeCodes::stack(&[&a, &b]).unwrap(), all);
            assert_eq!(all.stored_bits(), 12 * (16 + u64::from(second.bits())) + 6 * 16);
        }
    }
}
