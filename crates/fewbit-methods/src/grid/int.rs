use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, Weighting, parse};
use fewbit_format::{Error, Group, IntCodes, IntGrid, Result, Storage, Zeros};
use fewbit_kernel::strip::{Affine, round_affine};
use serde::Deserialize;

use super::second::{self, Second};
use super::{GroupSetting, ScaleSetting, errors, flat_codes, flat_params, group_label};
use crate::fence::fence;

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "int",
    cite: "Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018",
    settings: &[
        ("bits = 4", "bits of a code, 1 to 8"),
        ("group = 128", "columns that share a scale; `\"row\"` or `\"tensor\"`"),
        ("symmetric = false", "the zero point is the middle of the codes, and is not stored"),
        (
            "scale = \"source\"",
            "type of the stored scales: `f16`, `bf16`, `f32`, `e8m0` (powers of two: block floating point); `source` is bf16 for a bf16 checkpoint, else f16",
        ),
        (
            "zero = \"code\"",
            "asymmetric zero points: `code` (an integer), or in the scale's type `offset` (a number) or `point` (a real zero point)",
        ),
        (
            "clip = \"minmax\"",
            "how a group's range is chosen: `minmax`, `mse` (least `Σ|w − ŵ|^2.4`), `output` (least error of the group's output; `minmax` while scales are searched), `proximal` (HQQ's offsets; with `zero = \"offset\"`), `fence` (the extremes without the matrix's far tail: CBQ)",
        ),
        (
            "second = 0",
            "bits of scales, and of offsets or real zero points, as codes of a second level over 16 rows; 0: they are stored themselves",
        ),
        ("steps = 0", "shrunken ranges that a search tries; 0 is the method's own number (mse 100, output 20)"),
    ],
    build: |table| {
        let grid: IntSettings = parse("grid.int", table)?;
        grid.check()?;
        Ok(Box::new(grid))
    },
};

/// Integer grid: `ŵ = s (q − z)`, `q ∈ 0..2^bits`, one scale and zero point per group.
///
/// The weight is rounded against the scale as it will be stored.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct IntSettings {
    bits: u8,
    pub(super) group: GroupSetting,
    symmetric: bool,
    scale: ScaleSetting,
    zero: ZeroSetting,
    clip: Clip,
    second: u8,
    steps: u32,
}

impl Default for IntSettings {
    fn default() -> Self {
        Self {
            bits: 4,
            group: GroupSetting::Columns(128),
            symmetric: false,
            scale: ScaleSetting::F16,
            zero: ZeroSetting::Code,
            clip: Clip::Minmax,
            second: 0,
            steps: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum ZeroSetting {
    Code,
    Offset,
    Point,
}

/// How the range of a group is chosen.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Clip {
    /// The extremes.
    Minmax,
    /// The shrunken range with the least `Σ |w − ŵ|^2.4` (GPTQ's reference code).
    Mse,
    /// The shrunken range with the least squared error of the group's output, `δᵀ G δ` (AWQ's clip search).
    Output,
    /// The whole range, its offset moved by half-quadratic steps (HQQ).
    Proximal,
    /// The extremes, the matrix's tail cut off where it begins (CBQ).
    Fence,
}

impl IntSettings {
    fn grid(&self) -> IntGrid {
        let (group, scale) = (self.group.into(), self.scale.into());
        IntGrid { bits: self.bits, group, symmetric: self.symmetric, scale }
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(1..=8).contains(&self.bits) {
            return Err(Error::input(format!("`grid.bits` is {}, where 1 to 8 are possible", self.bits)));
        }
        if self.symmetric && self.zero != ZeroSetting::Code {
            return Err(Error::input("`grid.zero` contradicts `grid.symmetric = true`"));
        }
        if self.second > 8 {
            return Err(Error::input(format!("`grid.second` is {}, where 0 to 8 are possible", self.second)));
        }
        if self.second > 0 && matches!(self.group.into(), Group::Tensor) {
            return Err(Error::input("`grid.second` needs scales of rows or groups, and there is one for the matrix"));
        }
        if self.clip == Clip::Proximal && self.zero != ZeroSetting::Offset {
            return Err(Error::input("`grid.clip = \"proximal\"` moves offsets, and the zero points are codes")
                .hint("set `grid.zero=offset` and an asymmetric grid"));
        }
        Ok(())
    }

    fn second(&self) -> Option<Second> {
        (self.second > 0).then(|| Second { bits: self.second, scale: self.scale.into() })
    }

    /// Shrink factors of the range, the whole range first.
    fn shrinks(&self) -> Vec<f32> {
        let (steps, share) = match self.clip {
            Clip::Minmax | Clip::Proximal | Clip::Fence => return vec![1.0],
            Clip::Mse => (if self.steps == 0 { 100 } else { self.steps }, 0.8),
            Clip::Output => (if self.steps == 0 { 20 } else { self.steps }, 0.5),
        };
        (0..(steps as f32 * share) as u32).map(|i| 1.0 - i as f32 / steps as f32).collect()
    }
}

impl Grid for IntSettings {
    fn check(&self, _: usize, cols: usize) -> Result<()> {
        Group::from(self.group).check(cols)
    }

    fn needs(&self) -> Needs {
        Needs { gram: self.clip == Clip::Output, ..Needs::default() }
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let grid = self.grid();
        let groups = grid.group.count(rows, cols) as u64;
        let per_row = cols / grid.group.width(cols);
        let numbers = self.second().map_or(groups * grid.scale.bits(), |s| s.stored_bits(rows, per_row));
        let zeros = match (self.symmetric, self.zero) {
            (true, _) => 0,
            (_, ZeroSetting::Code) => groups * u64::from(self.bits),
            (_, ZeroSetting::Offset | ZeroSetting::Point) => numbers,
        };
        8 * (rows * fewbit_format::packed_len(cols, self.bits)) as u64 + numbers + zeros
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let w = job.weight;
        let grid = self.grid();
        grid.group.check(w.cols())?;
        let mut bound = Bound {
            grid,
            zero: self.zero,
            second: self.second(),
            clip: self.clip,
            shrinks: self.shrinks(),
            rows: w.rows(),
            cols: w.cols(),
            limit: if self.clip == Clip::Fence { fence(w.data().iter().copied()) } else { f32::INFINITY },
            shared: None,
        };
        if grid.group == Group::Tensor {
            let (mut lo, mut hi) = (0f32, 0f32);
            for v in w.data() {
                (lo, hi) = (lo.min(*v), hi.max(*v));
            }
            bound.shared = Some(bound.params(lo.max(-bound.limit), hi.min(bound.limit)));
        }
        Ok(Box::new(bound))
    }

    fn label(&self) -> String {
        let symmetric = if self.symmetric { " sym" } else { "" };
        let second = if self.second > 0 { format!(" s{}", self.second) } else { String::new() };
        format!("w{} {}{symmetric}{second}", self.bits, group_label(self.group.into()))
    }
}

struct Bound {
    grid: IntGrid,
    zero: ZeroSetting,
    second: Option<Second>,
    clip: Clip,
    shrinks: Vec<f32>,
    rows: usize,
    cols: usize,
    /// The greatest magnitude that a range includes.
    limit: f32,
    /// Scale and zero of the whole matrix, for [`Group::Tensor`].
    shared: Option<(f32, f32)>,
}

impl Bound {
    fn most(&self) -> f32 {
        ((1u32 << self.grid.bits) - 1) as f32
    }

    /// Stored scale, and zero point (a code, or an offset) of the range `[lo, hi]`, `lo ≤ 0 ≤ hi`.
    fn params(&self, lo: f32, hi: f32) -> (f32, f32) {
        let most = self.most();
        if self.grid.symmetric {
            // The code of zero is the middle one, so that half a step is lost on the positive side.
            let reach = lo.abs().max(hi);
            let scale = if self.grid.bits == 1 { reach } else { 2.0 * reach / most };
            return (self.stored_scale(scale), ((1u32 << (self.grid.bits - 1)) as f32).min(most));
        }
        let scale = self.stored_scale((hi - lo) / most);
        match self.zero {
            ZeroSetting::Offset => (scale, self.grid.scale.round(lo)),
            ZeroSetting::Code => (scale, (-lo / scale).round_ties_even().clamp(0.0, most)),
            // What stands for zero is kept as the offset that it makes.
            ZeroSetting::Point => (scale, -(scale * self.grid.scale.round(-lo / scale))),
        }
    }

    /// The parameters of a group as codes of a second level: zero points are found anew under the scales that will be
    /// read, in the middle of the range that each row had.
    fn nested(&self, second: Second, strip: usize, found: &Params) -> Params {
        let rows = self.rows - strip * LANES;
        let is_there = std::array::from_fn(|l| l < rows);
        let (old, zero) = (&found.0[0], &found.0[1]);
        let middle = self.most() / 2.0;
        let (mut scale, block) = second.round(old, is_there);
        scale.iter_mut().for_each(|s| *s = if *s > 0.0 { *s } else { f32::MIN_POSITIVE });
        let centre: [f32; LANES] = std::array::from_fn(|l| match self.zero {
            ZeroSetting::Code => old[l] * (middle - zero[l]),
            ZeroSetting::Offset | ZeroSetting::Point => old[l] * middle + zero[l],
        });
        let mut params = vec![scale, [0.0; LANES]];
        block.write(&mut params);
        match self.zero {
            _ if self.grid.symmetric => params[1] = *zero,
            ZeroSetting::Code => {
                params[1] =
                    std::array::from_fn(|l| (middle - centre[l] / scale[l]).round_ties_even().clamp(0.0, self.most()));
            }
            ZeroSetting::Offset => {
                let offsets = std::array::from_fn(|l| centre[l] - scale[l] * middle);
                let (offsets, block) = second.round(&offsets, is_there);
                params[1] = offsets;
                block.write(&mut params);
            }
            ZeroSetting::Point => {
                let points = std::array::from_fn(|l| middle - centre[l] / scale[l]);
                let (points, block) = second.round(&points, is_there);
                params[1] = std::array::from_fn(|l| -(scale[l] * points[l]));
                block.write(&mut params);
            }
        }
        Params(params)
    }

    /// [`params`](Self::params) of each lane.
    fn all_params(&self, lo: &[f32; LANES], hi: &[f32; LANES]) -> Params {
        let mut all = Params(vec![[1.0; LANES], [0.0; LANES]]);
        for lane in 0..LANES {
            (all.0[0][lane], all.0[1][lane]) = self.params(lo[lane], hi[lane]);
        }
        all
    }

    /// A group of zeros gets the scale 1.
    fn stored_scale(&self, s: f32) -> f32 {
        let stored = self.grid.scale.round(s);
        if stored > 0.0 { stored } else { 1.0 }
    }

    /// The meaning of codes; [`fewbit_format::Zero::value`] says the same, and a test holds the two together.
    fn affine<'a>(&self, scale: &'a [f32; LANES], zero: &'a [f32; LANES]) -> Affine<'a> {
        Affine { scale, zero, most: self.most(), has_offsets: self.zero != ZeroSetting::Code }
    }

    /// Moves offsets so that `Σ |w − ŵ|^0.7` falls, by half-quadratic steps: `e = shrink(w − ŵ)`, then
    /// `z = mean(w − e − s q)`, each step stricter than the one before (HQQ, the project's page; its `p`, `β`, `κ`).
    ///
    /// A row stops where `Σ |w − ŵ|` no longer falls, with the best offset that it had.
    fn proximal(&self, values: &[[f32; LANES]], start: Params) -> Params {
        const STEPS: usize = 20;
        const POWER: f32 = 0.7;
        const STRICTER: f32 = 1.01;
        let (mut best, mut least, mut beta) = (start.clone(), [f64::INFINITY; LANES], 10.0);
        let mut tried = start;
        let (mut codes, mut decoded) = (vec![[0; LANES]; values.len()], vec![[0.0; LANES]; values.len()]);
        for _ in 0..=STEPS {
            round_affine(self.affine(&tried.0[0], &tried.0[1]), values, &mut codes, &mut decoded);
            let mut moves = [false; LANES];
            for lane in 0..LANES {
                let error: f64 = values.iter().zip(&decoded).map(|(w, d)| f64::from((w[lane] - d[lane]).abs())).sum();
                if error < least[lane] {
                    (least[lane], best.0[1][lane], moves[lane]) = (error, tried.0[1][lane], true);
                }
            }
            if !moves.contains(&true) {
                break;
            }
            for lane in (0..LANES).filter(|l| moves[*l]) {
                let scale = tried.0[0][lane];
                let target = |(w, (d, q)): (&[f32; LANES], (&[f32; LANES], &[u16; LANES]))| {
                    let off = w[lane] - d[lane];
                    let kept = (off.abs() - off.abs().powf(POWER - 1.0) / beta).max(0.0).copysign(off);
                    f64::from(w[lane] - kept - scale * f32::from(q[lane]))
                };
                let sum: f64 = values.iter().zip(decoded.iter().zip(&codes)).map(target).sum();
                tried.0[1][lane] = self.grid.scale.round((sum / values.len() as f64) as f32);
            }
            beta *= STRICTER;
        }
        best
    }

    /// The range of a group, shrunken by `p`.
    fn shrunken(&self, lo: f32, hi: f32, p: f32) -> (f32, f32) {
        if self.clip == Clip::Output {
            let reach = p * hi.max(-lo);
            (lo.max(-reach), hi.min(reach))
        } else {
            (p * lo, p * hi)
        }
    }

    /// Scale and zero point of each row's group, as they are stored where there is no second level.
    fn first_level(&self, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        let (mut lo, mut hi) = ([0f32; LANES], [0f32; LANES]);
        for (c, column) in values.iter().enumerate() {
            for lane in (0..LANES).filter(|lane| !by.hides(c, *lane)) {
                lo[lane] = lo[lane].min(column[lane]);
                hi[lane] = hi[lane].max(column[lane]);
            }
        }
        lo.iter_mut().for_each(|v| *v = v.max(-self.limit));
        hi.iter_mut().for_each(|v| *v = v.min(self.limit));
        let mut best = self.all_params(&lo, &hi);
        let by = match (self.clip, by) {
            // The error of an output needs to know the inputs.
            (Clip::Minmax | Clip::Fence, _) | (Clip::Output, Weighting::None) => return best,
            (Clip::Proximal, _) => return self.proximal(values, best),
            (Clip::Mse, Weighting::Gram(_)) => Weighting::None,
            (_, by) => by,
        };
        let mut least = [f64::INFINITY; LANES];
        let (mut codes, mut delta) = (vec![[0; LANES]; values.len()], vec![[0.0; LANES]; values.len()]);
        for p in &self.shrinks {
            let (mut from, mut to) = (lo, hi);
            for lane in 0..LANES {
                (from[lane], to[lane]) = self.shrunken(lo[lane], hi[lane], *p);
            }
            let tried = self.all_params(&from, &to);
            round_affine(self.affine(&tried.0[0], &tried.0[1]), values, &mut codes, &mut delta);
            for (d, w) in delta.iter_mut().zip(values) {
                d.iter_mut().zip(w).for_each(|(d, w)| *d = w - *d);
            }
            for (lane, error) in errors(&delta, by, |d| d.abs().powf(POWER)).into_iter().enumerate() {
                if error < least[lane] {
                    least[lane] = error;
                    (best.0[0][lane], best.0[1][lane]) = (tried.0[0][lane], tried.0[1][lane]);
                }
            }
        }
        best
    }
}

/// Of the errors that `mse` adds up (GPTQ's reference code).
const POWER: f32 = 2.4;

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        1
    }

    fn group(&self) -> usize {
        self.grid.group.width(self.cols)
    }

    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        if let Some((s, z)) = self.shared {
            return Params(vec![[s; LANES], [z; LANES]]);
        }
        let found = self.first_level(values, by);
        self.second.map_or_else(|| found.clone(), |second| self.nested(second, at.strip, &found))
    }

    fn round(
        &self,
        _: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        round_affine(self.affine(&params.0[0], &params.0[1]), tile, codes, decoded);
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let (rows, cols) = (self.rows, self.cols);
        let flat = flat_codes(rows, cols, &codes);
        let plain = |i| flat_params(self.grid.group, rows, cols, &params, i);
        // Blocks of a second level follow scale and zero, three numbers each.
        let numbers = |i: usize| match self.second {
            Some(second) => second::numbers(second, rows, &params, 2 + 3 * i),
            None => Ok(plain(i).into()),
        };
        let scales = numbers(0)?;
        let zeros = match self.zero {
            _ if self.grid.symmetric => Zeros::Middle,
            ZeroSetting::Code => Zeros::Codes(plain(1).iter().map(|z| *z as u8).collect()),
            ZeroSetting::Offset => Zeros::Offsets(numbers(1)?),
            ZeroSetting::Point if self.second.is_some() => Zeros::Points(numbers(1)?),
            // The offset is −(s z), and z a number that the scale's type holds: so near that the quotient leads back.
            ZeroSetting::Point => {
                let (scales, offsets) = (plain(0), plain(1));
                Zeros::Points(scales.iter().zip(offsets).map(|(s, m)| self.grid.scale.round(-m / s)).collect())
            }
        };
        IntCodes::new(rows, cols, self.grid, &flat, scales, zeros).map(Storage::Int)
    }
}

/// What a bound grid decodes to must be what the storage decodes to.
#[cfg(test)]
mod tests {
    use fewbit_engine::InputStats;
    use fewbit_engine::kinds::Strip;
    use fewbit_format::{Mat, Zero};
    use fewbit_kernel::Team;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn random(rows: usize, cols: usize, seed: u64) -> Mat {
        let mut r = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(rows, cols, |_, _| r.random::<f32>() * 2.0 - 1.0)
    }

    fn build(text: &str) -> Box<dyn Grid> {
        (ENTRY.build)(text.parse().unwrap()).unwrap()
    }

    fn nearest(grid: &dyn Grid, w: &Mat) -> (Storage, Mat) {
        let bound =
            grid.begin(&GridJob { weight: w, stats: &InputStats::default(), seed: 0, team: &Team::new(1) }).unwrap();
        let (mut all_codes, mut all_params, mut seen) = (Vec::new(), Vec::new(), Mat::zeros(w.rows(), w.cols()));
        for i in 0..Strip::count(w.rows()) {
            let strip = Strip::of(w, i);
            let mut codes = vec![[0; LANES]; w.cols()];
            let mut decoded = vec![[0.0; LANES]; w.cols()];
            let g = bound.group();
            let params: Vec<Params> = (0..w.cols() / g)
                .map(|k| {
                    let at = k * g..(k + 1) * g;
                    let place = Place { strip: i, column: k * g };
                    let p = bound.fit(place, &strip.data[at.clone()], Weighting::None);
                    bound.round(place, &p, &strip.data[at.clone()], &mut codes[at.clone()], &mut decoded[at]);
                    p
                })
                .collect();
            for (lane, r) in strip.rows.clone().enumerate() {
                for (c, d) in decoded.iter().enumerate() {
                    seen[(r, c)] = d[lane];
                }
            }
            all_codes.push(codes);
            all_params.push(params);
        }
        (bound.store(all_codes, all_params).unwrap(), seen)
    }

    #[test]
    fn what_the_solver_sees_is_what_is_stored() {
        let w = random(21, 32, 1);
        for bits in 1..=8 {
            for extra in [
                "",
                "symmetric = true",
                "zero = \"offset\"",
                "zero = \"point\"",
                "scale = \"bf16\"",
                "clip = \"mse\"",
                "clip = \"fence\"",
                "scale = \"f32\"",
                "second = 3",
                "second = 4\nsymmetric = true",
                "second = 3\nzero = \"offset\"",
                "second = 6\nzero = \"offset\"\nclip = \"proximal\"",
                "second = 3\nzero = \"point\"\nclip = \"mse\"",
            ] {
                for group in ["8", "32", "\"row\"", "\"tensor\""] {
                    if group == "\"tensor\"" && extra.contains("second") {
                        continue;
                    }
                    let grid = build(&format!("bits = {bits}\ngroup = {group}\n{extra}"));
                    let (storage, seen) = nearest(&*grid, &w);
                    let mut decoded = Mat::zeros(21, 32);
                    storage.decode_rows(0..21, decoded.data_mut());
                    assert_eq!(decoded, seen, "{bits} bits, group {group}, {extra}");
                    assert_eq!(storage.stored_bits(), grid.stored_bits(21, 32), "{bits} bits, group {group}, {extra}");
                }
            }
        }
    }

    #[test]
    fn the_error_is_at_most_half_a_step_and_rounding_is_idempotent() {
        let w = random(5, 64, 2);
        let grid = build("bits = 5\ngroup = 16\nscale = \"f32\"");
        let (storage, once) = nearest(&*grid, &w);
        let Storage::Int(codes) = &storage else { unreachable!() };
        for r in 0..5 {
            for c in 0..64 {
                let (s, _) = codes.group_params(r, c / 16);
                assert!((w[(r, c)] - once[(r, c)]).abs() <= s * 0.501);
            }
        }
        // The range of what was rounded is that of the codes, up to the last bit of the scale.
        let twice = nearest(&*grid, &once).1;
        assert!(once.data().iter().zip(twice.data()).all(|(a, b)| (a - b).abs() <= 1e-6));
    }

    #[test]
    fn mse_clipping_lowers_the_error_of_a_heavy_tail() {
        let mut w = random(4, 64, 3);
        for r in 0..4 {
            w[(r, 7)] = 2.5;
        }
        let error = |text: &str| -> f64 {
            let (_, seen) = nearest(&*build(text), &w);
            w.data().iter().zip(seen.data()).map(|(a, b)| f64::from((a - b).abs().powf(2.4))).sum()
        };
        assert!(error("bits = 3\ngroup = \"row\"\nclip = \"mse\"") < error("bits = 3\ngroup = \"row\""));
    }

    #[test]
    fn proximal_offsets_lower_the_absolute_error() {
        let mut w = random(20, 128, 4);
        (0..20).for_each(|r| w[(r, 5)] = 3.0 + r as f32 / 10.0);
        let error = |text: &str| -> Vec<f64> {
            let (_, seen) = nearest(&*build(text), &w);
            let row = |r: usize| w.row(r).iter().zip(seen.row(r)).map(|(a, b)| f64::from((a - b).abs())).sum();
            (0..20).map(row).collect()
        };
        let plain = "bits = 3\ngroup = 64\nzero = \"offset\"\nscale = \"f32\"";
        let (before, after) = (error(plain), error(&format!("{plain}\nclip = \"proximal\"")));
        assert!(before.iter().zip(&after).all(|(b, a)| a <= b), "{before:?} {after:?}");
        assert!(after.iter().sum::<f64>() < 0.99 * before.iter().sum::<f64>(), "{before:?} {after:?}");
    }

    /// HQQ: where nothing stands out, offsets move by less than half a step.
    #[test]
    fn proximal_offsets_stay_where_nothing_stands_out() {
        let w = random(20, 128, 6);
        let plain = "bits = 4\ngroup = 64\nzero = \"offset\"\nscale = \"f32\"";
        let [before, after] = [plain.to_owned(), format!("{plain}\nclip = \"proximal\"")].map(|text| {
            let (storage, _) = nearest(&*build(&text), &w);
            let Storage::Int(codes) = storage else { unreachable!() };
            (0..40).map(|i| codes.group_params(i / 2, i % 2)).collect::<Vec<_>>()
        });
        for ((s, zero), (t, moved)) in before.into_iter().zip(after) {
            let [zero, moved] = [zero, moved].map(|z| if let Zero::Offset(m) = z { m } else { unreachable!() });
            assert!(s == t && (zero - moved).abs() < 0.5 * s, "{zero} became {moved} with steps of {s}");
        }
    }

    #[test]
    fn unknown_and_contradicting_settings_are_refused() {
        let refuse = |text: &str| (ENTRY.build)(text.parse().unwrap()).unwrap_err().to_string();
        assert!(refuse("bit = 3").contains("did you mean `bits`?"), "{}", refuse("bit = 3"));
        assert!(refuse("bits = 9").contains("1 to 8"));
        assert!(refuse("symmetric = true\nzero = \"offset\"").contains("contradicts"));
        assert!(refuse("clip = \"proximal\"").contains("grid.zero=offset"));
    }
}
