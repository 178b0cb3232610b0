//! The nearest vectors of a codebook.

use crate::lanes::{Simd, vectorised};

/// A codebook laid out for searches.
#[derive(Clone, Debug)]
pub struct Codebook {
    count: usize,
    /// `[len][count]`, filled up to whole registers.
    columns: Vec<Vec<f32>>,
    /// Half the squared length of each vector; the fill is never nearest.
    halves: Vec<f32>,
}

/// Vectors are filled up to a multiple of the widest register.
const FILL: usize = 16;

impl Codebook {
    /// The codebook of `vectors [count, len]`.
    ///
    /// # Panics
    /// If `vectors` has another size, or more vectors than f32 can count.
    pub fn new(vectors: &[f32], len: usize) -> Self {
        let count = vectors.len() / len;
        assert!(vectors.len() == count * len && count <= 1 << 24, "{} numbers for vectors of {len}", vectors.len());
        let filled = count.next_multiple_of(FILL);
        let column = |i: usize| {
            let mut column: Vec<f32> = vectors.iter().skip(i).step_by(len).copied().collect();
            column.resize(filled, 0.0);
            column
        };
        let mut halves: Vec<f32> =
            vectors.chunks_exact(len).map(|v| 0.5 * v.iter().map(|x| x * x).sum::<f32>()).collect();
        halves.resize(filled, f32::INFINITY);
        Self { count, columns: (0..len).map(column).collect(), halves }
    }

    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first of the nearest vectors to `x [len]`.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn nearest(&self, x: &[f32]) -> usize {
        assert_eq!(x.len(), self.columns.len(), "the length of vectors");
        search(&self.columns, &self.halves, x)
    }
}

vectorised! {
    fn search(columns: &[Vec<f32>], halves: &[f32], x: &[f32]) -> usize = search_all
}

#[inline(always)]
fn search_all<S: Simd>(s: S, columns: &[Vec<f32>], halves: &[f32], x: &[f32]) -> usize {
    let (mut best, mut which) = (s.splat(f32::INFINITY), s.splat(0.0));
    for at in (0..halves.len()).step_by(S::LANES) {
        // |x − c|² = |x|² + 2 (|c|²/2 − ⟨x, c⟩).
        let mut score = s.load(&halves[at..]);
        for (column, x) in columns.iter().zip(x) {
            score = s.mul_add(s.load(&column[at..]), s.splat(-x), score);
        }
        let is_less = s.less(score, best);
        best = s.select(is_less, score, best);
        which = s.select(is_less, s.splat(at as f32), which);
    }
    let (mut scores, mut places) = ([0.0; FILL], [0.0; FILL]);
    s.store(&mut scores, best);
    s.store(&mut places, which);
    let mut found = (f32::INFINITY, 0);
    for lane in 0..S::LANES {
        let place = places[lane] as usize + lane;
        if scores[lane] < found.0 || scores[lane] == found.0 && place < found.1 {
            found = (scores[lane], place);
        }
    }
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    #[test]
    fn no_vector_is_nearer() {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
        for (count, len) in [(1, 2), (7, 4), (16, 8), (100, 2), (300, 16)] {
            let vectors: Vec<f32> = (0..count * len).map(number).collect();
            let book = Codebook::new(&vectors, len);
            assert_eq!(book.count(), count);
            let distance =
                |x: &[f32], k: usize| -> f32 { vectors[k * len..].iter().zip(x).map(|(v, x)| (v - x).powi(2)).sum() };
            for trial in 0..50 {
                let x: Vec<f32> = (0..len).map(|i| number(40_000 + trial * 31 + i * 17)).collect();
                let least = (0..count).map(|k| distance(&x, k)).fold(f32::MAX, f32::min);
                at_every_level(|level| {
                    let own = distance(&x, book.nearest(&x));
                    assert!(own <= least + 1e-5, "{level:?}, {count} of {len}: {own} {least}");
                });
            }
        }
    }
}
