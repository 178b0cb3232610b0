//! f32 on integer weights, unpacked tile by tile from the interleaved codes into the panels of the products.
//!
//! The same bits as [`super::dense`] gives, which decodes row by row, at a tenth of the time.

use std::ops::Range;
use std::sync::Arc;

use fewbit_format::QuantizedLinear;

use super::packed::Packed;
use super::panels::{self, Linear, Tiles};
use super::{Arithmetic, Kernel};
use crate::{Level, Team};

/// Takes linears whose bands are all integers in groups of a multiple of 16 columns (or of a row) that lie in order.
pub(super) fn candidate(linears: &[Arc<QuantizedLinear>], _: Arithmetic, level: Level) -> Option<Box<dyn Kernel>> {
    let pack = |linear: &Arc<QuantizedLinear>| {
        let bands = linear.bands.iter().map(|b| Packed::new(&b.storage).filter(|p| p.order.is_none()));
        Some(Linear { rows: linear.shape[0], bands: bands.collect::<Option<_>>()?, bias: linear.bias.clone() })
    };
    let linears_packed = linears.iter().map(pack).collect::<Option<_>>()?;
    Some(Box::new(Unpacked { cols: linears[0].shape[1], linears: linears_packed, level }))
}

struct Unpacked {
    cols: usize,
    linears: Vec<Linear<Packed>>,
    level: Level,
}

impl Kernel for Unpacked {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        assert_eq!(outs.len(), self.linears.len(), "one output for each linear");
        panels::multiply(team, self.level, tokens, self.cols, &self.linears, x, outs);
    }

    fn bytes(&self) -> usize {
        self.linears.iter().flat_map(|l| &l.bands).map(Packed::bytes).sum()
    }

    fn name(&self) -> &'static str {
        "unpacked"
    }
}

impl Tiles for Packed {
    type Room = ();

    fn room() {}

    fn rows(&self) -> usize {
        self.rows
    }

    fn decode(&self, level: Level, tile: usize, ks: Range<usize>, stride: usize, (): &mut (), out: &mut [f32]) {
        decode(level, self, tile, ks, stride, out);
    }
}

fn decode(level: Level, band: &Packed, tile: usize, ks: Range<usize>, width: usize, out: &mut [f32]) {
    match level {
        // SAFETY: `choose` gives a level that the machine has.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { decode_avx512(band, tile, ks, width, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => unsafe { decode_avx2(band, tile, ks, width, out) },
        _ => band.decode(tile, ks, width, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
fn decode_avx512(band: &Packed, tile: usize, ks: Range<usize>, width: usize, out: &mut [f32]) {
    band.decode(tile, ks, width, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2(band: &Packed, tile: usize, ks: Range<usize>, width: usize, out: &mut [f32]) {
    band.decode(tile, ks, width, out);
}

#[cfg(test)]
mod tests {
    use fewbit_format::{Group, IntCodes, IntGrid, ScaleType, Storage, Zeros};
    use proptest::prelude::*;

    use super::super::dense;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// The format's own decoder, row by row, gives the same bits.
        #[test]
        fn the_same_bits_as_decoded_rows(
            bits in 1u8..=8, zeros in 0u8..3, kind in 0usize..5, count in 1usize..12, rows in 1usize..70,
            tokens in 1usize..20, bias: bool, seed: u32,
        ) {
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(1664525).wrapping_add(1013904223); state >> 16 };
            let group = [Group::Columns(16), Group::Columns(32), Group::Columns(48), Group::Columns(64), Group::Row][kind];
            let cols = if group == Group::Row { 1 + next() as usize % 600 } else { group.width(0) * count };
            let grid = IntGrid { bits, group, symmetric: zeros == 0, scale: ScaleType::F16 };
            let groups = rows * (cols / group.width(cols));
            let mut code = || (next() & ((1 << bits) - 1)) as u8;
            let codes: Vec<u8> = (0..rows * cols).map(|_| code()).collect();
            let zero_codes = (0..groups).map(|_| code()).collect();
            let mut number = || ScaleType::F16.round(next() as f32 / 30000.0 - 1.0);
            let scales: Vec<f32> = (0..groups).map(|_| number()).collect();
            let zeros = match zeros {
                0 => Zeros::Middle,
                1 => Zeros::Codes(zero_codes),
                _ => Zeros::Offsets((0..groups).map(|_| number()).collect::<Vec<f32>>().into()),
            };
            let storage = Storage::Int(IntCodes::new(rows, cols, grid, &codes, scales, zeros).unwrap());
            let bias = bias.then(|| (0..rows).map(|_| number()).collect());
            let linears = [Arc::new(QuantizedLinear::uniform(storage, bias))];
            let x: Vec<f32> = (0..tokens * cols).map(|_| number()).collect();
            for level in Level::of_machine() {
                let run = |kernel: Box<dyn Kernel>| {
                    let mut y = vec![f32::NAN; tokens * rows];
                    kernel.run(&Team::new(2), tokens, &x, &mut [&mut y]);
                    y
                };
                let [a, b] = [candidate, dense::candidate].map(|c| run(c(&linears, Arithmetic::Exact, level).unwrap()));
                prop_assert!(a == b, "{level:?}");
            }
        }
    }
}
