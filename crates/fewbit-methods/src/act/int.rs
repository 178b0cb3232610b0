use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Activation, Edges, Entry, Needs, parse};
use fewbit_format::{ActivationFormat, ActivationGrid, Error, Number, Result, ScaleType, Sharing};
use serde::Deserialize;

use super::extremes;

pub(crate) const ENTRY: Entry<dyn Activation> = Entry {
    name: "int",
    cite: "Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, 2022 (arXiv:2211.10438)",
    settings: &[
        ("bits = 8", "bits of a code, 2 to 8"),
        ("symmetric = true", "zero is the middle of the codes"),
        (
            "static = false",
            "one scale for all tokens, from the extremes over the calibration text; else each token has its own",
        ),
        ("group = 0", "columns of a token that share a scale; 0: all of them"),
        ("clip = 1.0", "share of a token's greatest magnitude that is kept, 0 to 1"),
        super::SEARCH,
    ],
    build: |table| {
        let int: Int = parse("act.int", table)?;
        if !(2..=8).contains(&int.bits) {
            return Err(Error::input(format!("`act.bits` is {}, where 2 to 8 are possible", int.bits)));
        }
        if !(int.clip > 0.0 && int.clip <= 1.0) {
            return Err(Error::input(format!("`act.clip` is {}, where a share from 0 to 1 is needed", int.clip)));
        }
        if int.is_static && (int.group > 0 || int.search) {
            return Err(Error::input("`act.static` is one scale for all columns")
                .hint("leave `act.group` and `act.search` out"));
        }
        Ok(Box::new(int))
    },
};

/// Integers: `x̂ = s (clamp(round(x / s) + z) − z)`, a scale per token, per group of its columns, or one from calibration.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Int {
    bits: u8,
    symmetric: bool,
    #[serde(rename = "static")]
    is_static: bool,
    group: usize,
    clip: f32,
    search: bool,
}

impl Default for Int {
    fn default() -> Self {
        Self { bits: 8, symmetric: true, is_static: false, group: 0, clip: 1.0, search: false }
    }
}

impl Activation for Int {
    fn needs(&self) -> Needs {
        Needs { range: self.is_static, ..Needs::default() }
    }

    fn edges(&self) -> Edges {
        Edges::Inputs
    }

    fn grid(&self) -> ActivationGrid {
        let sharing = match (self.is_static, self.group) {
            (true, _) => Sharing::Tensor,
            (false, 0) => Sharing::Token,
            (false, g) => Sharing::Columns(g),
        };
        ActivationGrid {
            number: Number::Int { bits: self.bits, symmetric: self.symmetric },
            sharing,
            scale: ScaleType::F32,
            is_searched: self.search,
        }
    }

    fn clip(&self) -> f32 {
        if self.is_static { 1.0 } else { self.clip }
    }

    fn format(&self, stats: &InputStats) -> Result<ActivationFormat> {
        let format = ActivationFormat { clip: self.clip, ..self.grid().dynamic() };
        if !self.is_static {
            return Ok(format);
        }
        let [least, most] = extremes(stats)?;
        // The scale of one token with all that was seen.
        let one = ActivationFormat { grid: ActivationGrid { sharing: Sharing::Token, ..format.grid }, ..format };
        let (scale, zero) = one.part(least, most);
        Ok(ActivationFormat { scale, zero, clip: 1.0, ..format })
    }
}
