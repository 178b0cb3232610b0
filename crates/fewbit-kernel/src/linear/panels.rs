//! f32 products of linears whose storages are decoded tile by tile into the panels of the products.

use std::ops::Range;

use smallvec::SmallVec;

use super::MANY;
use super::packed::TILE;
use crate::product::{self, Job, K_BLOCK, Left, Right};
use crate::{Level, Team};

/// Rows of one storage, which are decoded sixteen at a time.
pub(super) trait Tiles: Sync {
    /// What is spread out on the way, made once for several tiles.
    type Room;

    fn room() -> Self::Room;

    fn rows(&self) -> usize;

    /// Writes the rows of a tile in columns `ks`, at most [`K_BLOCK`] from a multiple of it on, to `out[ks][stride]`.
    fn decode(
        &self,
        level: Level,
        tile: usize,
        ks: Range<usize>,
        stride: usize,
        room: &mut Self::Room,
        out: &mut [f32],
    );

    fn tiles(&self) -> usize {
        self.rows().div_ceil(TILE)
    }
}

/// One linear, of bands of rows.
pub(super) struct Linear<B> {
    pub(super) rows: usize,
    pub(super) bands: Vec<B>,
    pub(super) bias: Option<Vec<f32>>,
}

/// As [`super::Kernel::run`].
pub(super) fn multiply<B: Tiles>(
    team: &Team,
    level: Level,
    tokens: usize,
    cols: usize,
    linears: &[Linear<B>],
    x: &[f32],
    outs: &mut [&mut [f32]],
) {
    let panel_of = |band| move |rows, ks, width, out: &mut [f32]| panel(level, band, rows, ks, width, out);
    let panels: SmallVec<[_; MANY]> = linears.iter().flat_map(|l| &l.bands).map(panel_of).collect();
    let mut panel = panels.iter();
    let mut jobs: SmallVec<[Job<'_>; MANY]> = SmallVec::new();
    for (linear, y) in linears.iter().zip(outs) {
        let parts = linear.bands.iter().map(|band| {
            let panel = panel.next().expect("one for each band");
            (band.rows(), Right::Panels(panel))
        });
        let mut first = 0;
        for (job, band) in Job::side_by_side(y, linear.rows, parts).zip(&linear.bands) {
            let bias = linear.bias.as_ref().map(|b| &b[first..first + band.rows()]);
            first += band.rows();
            jobs.push(job.with_bias(bias));
        }
    }
    product::multiply(team, level, tokens, cols, Left::rows(x, cols), &jobs);
}

/// As [`product::Panel`].
fn panel<B: Tiles>(level: Level, band: &B, rows: Range<usize>, ks: Range<usize>, width: usize, out: &mut [f32]) {
    if ks.is_empty() {
        return;
    }
    let mut room = B::room();
    if width < TILE {
        // A panel narrower than a tile (the scalar level): by way of the whole tile.
        let mut whole = [0.0; K_BLOCK * TILE];
        band.decode(level, rows.start / TILE, ks, TILE, &mut room, &mut whole);
        let lane = rows.start % TILE;
        for (out, whole) in out.chunks_exact_mut(width).zip(whole.as_chunks::<TILE>().0) {
            out.copy_from_slice(&whole[lane..lane + width]);
        }
        return;
    }
    for lane in (0..width).step_by(TILE) {
        let tile = (rows.start + lane) / TILE;
        if tile < band.tiles() {
            band.decode(level, tile, ks.clone(), width, &mut room, &mut out[lane..]);
        } else {
            out.chunks_exact_mut(width).take(ks.len()).for_each(|o| o[lane..].fill(0.0));
        }
    }
}
