//! What attention remembers of a sequence, in pages of 64 positions.

use half::f16;

use crate::Team;
use crate::aligned::Aligned;
use crate::lanes::{Number, Simd, vectorised};

/// Positions of a page: the keys whose scores are computed before the running maximum moves. Part of the arithmetic: it
/// fixes every sum's order.
pub const PAGE: usize = 64;

/// How remembered numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheType {
    /// As they are.
    F32,
    /// Rounded to nearest; beyond 65504 they become infinite ([`round_to_f16`](crate::elementwise::round_to_f16) does not).
    F16,
}

impl CacheType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 => size_of::<f16>(),
        }
    }
}

/// Whether keys or values are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Keys,
    Values,
}

/// Keys or values of one sequence in one block of a model.
///
/// A page holds 64 positions: head after head, keys transposed (`[head_dim, 64]`, so that the scores of neighbouring
/// positions are one vector), values row by row (`[64, head_dim]`, rows padded to whole vectors). Pages are made as
/// positions come and never move; those of positions that were forgotten are used again.
#[derive(Clone, Debug)]
pub struct Pages {
    kind: Kind,
    heads: usize,
    head_dim: usize,
    len: usize,
    numbers: Numbers,
}

#[derive(Clone)]
enum Numbers {
    F32(Vec<Aligned<f32>>),
    F16(Vec<Aligned<f16>>),
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32(pages) => write!(f, "{} pages of f32", pages.len()),
            Self::F16(pages) => write!(f, "{} pages of f16", pages.len()),
        }
    }
}

impl Pages {
    /// Keys of `heads` heads, with a list for as many pages as `positions` need.
    pub fn keys(cache_type: CacheType, heads: usize, head_dim: usize, positions: usize) -> Self {
        Self::new(Kind::Keys, cache_type, heads, head_dim, positions)
    }

    /// Values of `heads` heads, with a list for as many pages as `positions` need.
    pub fn values(cache_type: CacheType, heads: usize, head_dim: usize, positions: usize) -> Self {
        Self::new(Kind::Values, cache_type, heads, head_dim, positions)
    }

    fn new(kind: Kind, cache_type: CacheType, heads: usize, head_dim: usize, positions: usize) -> Self {
        let pages = positions.div_ceil(PAGE);
        let numbers = match cache_type {
            CacheType::F32 => Numbers::F32(Vec::with_capacity(pages)),
            CacheType::F16 => Numbers::F16(Vec::with_capacity(pages)),
        };
        Self { kind, heads, head_dim, len: 0, numbers }
    }

    /// Positions remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts rows of `heads · head_dim` at the positions from `start` on, and forgets what stood there and behind.
    ///
    /// # Panics
    /// If positions before `start` are not remembered, or a row is not whole.
    pub fn write(&mut self, team: &Team, start: usize, rows: &[f32]) {
        let width = self.heads * self.head_dim;
        assert!(start <= self.len && rows.len().is_multiple_of(width), "whole rows behind those remembered");
        self.len = start + rows.len() / width;
        let place = Place { kind: self.kind, heads: self.heads, head_dim: self.head_dim, start, len: self.len };
        match &mut self.numbers {
            Numbers::F32(pages) => place.write_pages(team, pages, rows, write_f32),
            Numbers::F16(pages) => place.write_pages(team, pages, rows, write_f16),
        }
    }

    /// Numbers of a head in a page.
    fn head_len(kind: Kind, head_dim: usize) -> usize {
        PAGE * if kind == Kind::Keys { head_dim } else { padded(head_dim) }
    }
}

/// Width of a row of values: whole vectors of any instruction set.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// The pages that attention reads keys and values of one type from.
#[derive(Clone, Copy)]
pub(super) struct Read<'a, T> {
    keys: &'a [Aligned<T>],
    values: &'a [Aligned<T>],
    head_dim: usize,
}

impl<'a, T: Number> Read<'a, T> {
    /// Keys of one head in one page, `[head_dim, PAGE]`.
    pub(super) fn keys(&self, page: usize, head: usize) -> &'a [T] {
        Self::part(&self.keys[page], head, Pages::head_len(Kind::Keys, self.head_dim))
    }

    /// Values of one head in one page, `[PAGE, padded(head_dim)]`.
    pub(super) fn values(&self, page: usize, head: usize) -> &'a [T] {
        Self::part(&self.values[page], head, Pages::head_len(Kind::Values, self.head_dim))
    }

    /// Pages in all.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    fn part(page: &'a Aligned<T>, head: usize, len: usize) -> &'a [T] {
        &page.as_slice()[head * len..][..len]
    }
}

/// Keys and values by the type of their numbers.
pub(super) enum Typed<'a> {
    F32(Read<'a, f32>),
    F16(Read<'a, f16>),
}

impl<'a> Typed<'a> {
    /// # Panics
    /// If these are not keys and values of one type and shape, of at least `positions`.
    pub(super) fn of(keys: &'a Pages, values: &'a Pages, [heads, head_dim, positions]: [usize; 3]) -> Self {
        assert!(keys.kind == Kind::Keys && values.kind == Kind::Values, "keys, then values");
        for pages in [keys, values] {
            assert!([pages.heads, pages.head_dim] == [heads, head_dim], "pages of these heads");
            assert!(pages.len >= positions, "all positions are remembered");
        }
        match (&keys.numbers, &values.numbers) {
            (Numbers::F32(keys), Numbers::F32(values)) => Self::F32(Read { keys, values, head_dim }),
            (Numbers::F16(keys), Numbers::F16(values)) => Self::F16(Read { keys, values, head_dim }),
            _ => panic!("keys and values of one type"),
        }
    }
}

/// Positions `start..len` of heads, which are written.
#[derive(Clone, Copy)]
struct Place {
    kind: Kind,
    heads: usize,
    head_dim: usize,
    start: usize,
    len: usize,
}

impl Place {
    fn write_pages<T: Number>(
        self,
        team: &Team,
        pages: &mut Vec<Aligned<T>>,
        rows: &[f32],
        write: impl Fn(Self, &mut [T], usize, &[f32]) + Sync,
    ) {
        let (width, first) = (self.heads * self.head_dim, self.start / PAGE);
        let page_len = self.heads * Pages::head_len(self.kind, self.head_dim);
        let count = self.len.div_ceil(PAGE);
        while pages.len() < count {
            pages.push(Aligned::zeros(page_len));
        }
        team.for_pieces(&mut pages[first..count], 1, &|i, page| {
            let begin = (first + i) * PAGE;
            let (from, to) = (begin.max(self.start), (begin + PAGE).min(self.len));
            let rows = &rows[(from - self.start) * width..(to - self.start) * width];
            write(self, page[0].as_mut_slice(), from - begin, rows);
        });
    }
}

vectorised! {
    fn write_f32(place: Place, page: &mut [f32], first: usize, rows: &[f32]) = write_lanes
}

vectorised! {
    fn write_f16(place: Place, page: &mut [f16], first: usize, rows: &[f32]) = write_lanes
}

/// Puts rows at the positions of one page from `first` on.
#[inline(always)]
fn write_lanes<S: Simd, T: Number>(s: S, place: Place, page: &mut [T], first: usize, rows: &[f32]) {
    let Place { kind, heads, head_dim, .. } = place;
    // Where the number `d` of a position lies within its head.
    let (of_position, of_number) = if kind == Kind::Keys { (1, PAGE) } else { (padded(head_dim), 1) };
    for (i, row) in rows.chunks_exact(heads * head_dim).enumerate() {
        for (head, part) in row.chunks_exact(head_dim).enumerate() {
            let to = &mut page[head * Pages::head_len(kind, head_dim) + (first + i) * of_position..];
            for (d, part) in part.chunks(S::LANES).enumerate().map(|(c, part)| (c * S::LANES, part)) {
                let lanes = T::lanes(s, s.load_partial(part));
                for (l, number) in lanes.iter().take(part.len()).enumerate() {
                    to[(d + l) * of_number] = *number;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    /// Whatever is written last at a position lies at its place, in any pieces.
    #[test]
    fn numbers_lie_where_they_belong() {
        at_every_level(|level| {
            for (heads, head_dim) in [(1, 1), (3, 8), (2, 20), (2, 64)] {
                let width = heads * head_dim;
                // Eleven bits, which f16 holds.
                let rows: Vec<f32> = (0..200 * width).map(|i| (i * 37 % 2047) as f32 - 1023.0).collect();
                for team in [Team::new(1), Team::new(2)] {
                    for cache_type in [CacheType::F32, CacheType::F16] {
                        let mut keys = Pages::keys(cache_type, heads, head_dim, 0);
                        let mut values = Pages::values(cache_type, heads, head_dim, 200);
                        for (start, end, sign) in
                            [(0, 70, -1.0), (60, 61, 1.0), (61, 200, -1.0), (1, 64, 1.0), (64, 200, 1.0)]
                        {
                            let rows: Vec<f32> = rows[start * width..end * width].iter().map(|x| x * sign).collect();
                            for pages in [&mut keys, &mut values] {
                                pages.write(&team, start, &rows);
                                assert_eq!(pages.len(), end);
                            }
                        }
                        let typed = Typed::of(&keys, &values, [heads, head_dim, 200]);
                        for (at, want) in rows.iter().enumerate() {
                            let (position, head, d) = (at / width, at % width / head_dim, at % head_dim);
                            let [page, j] = [position / PAGE, position % PAGE];
                            let [k, v] = [d * PAGE + j, j * padded(head_dim) + d];
                            let found = match &typed {
                                Typed::F32(read) => [read.keys(page, head)[k], read.values(page, head)[v]],
                                Typed::F16(read) => {
                                    [read.keys(page, head)[k], read.values(page, head)[v]].map(f16::to_f32)
                                }
                            };
                            let want = if position == 0 { -want } else { *want };
                            assert_eq!(found, [want; 2], "{level:?} {cache_type:?} {heads} × {head_dim}, {at}");
                        }
                    }
                }
            }
        });
    }
}
