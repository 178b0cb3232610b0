use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Activation, Edges, Entry, Needs, parse};
use fewbit_format::{ActivationFormat, ActivationGrid, Error, Minifloat, Number, Result, ScaleType, Sharing};
use serde::Deserialize;

use super::reach;

pub(crate) const ENTRY: Entry<dyn Activation> = Entry {
    name: "float",
    cite: "Micikevicius et al., FP8 Formats for Deep Learning, 2022 (arXiv:2209.05433); Rouhani et al., Microscaling Data Formats for Deep Learning, 2023 (arXiv:2310.10537)",
    settings: &[
        ("element = \"e4m3\"", "bits of exponent and mantissa: `e4m3`, `e5m2`, `e2m1` …"),
        ("static = false", "one scale for all tokens, from the greatest magnitude over the calibration text"),
        ("group = 0", "columns of a token that share a scale; 0: all of them"),
        super::SEARCH,
        (
            "scale = \"f32\"",
            "kind of the scales: `f32`; `e8m0` (powers of two: the MX formats); `e4m3` (under one number from calibration: NVFP4)",
        ),
    ],
    build: |table| {
        let float: Float = parse("act.float", table)?;
        Minifloat::parse(&float.element).map_err(|e| e.place("`act.element`"))?;
        if float.is_static && (float.group > 0 || float.scale != Scale::F32 || float.search) {
            return Err(Error::input("`act.static` is one scale for all columns")
                .hint("leave `act.group`, `act.scale` and `act.search` out"));
        }
        Ok(Box::new(float))
    },
};

/// Small floats: `x̂ = s T(x / s)`, a scale per token, per group of its columns, or one from calibration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Float {
    element: String,
    #[serde(rename = "static")]
    is_static: bool,
    group: usize,
    scale: Scale,
    search: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Scale {
    F32,
    E8m0,
    E4m3,
}

impl Default for Float {
    fn default() -> Self {
        Self { element: "e4m3".to_owned(), is_static: false, group: 0, scale: Scale::F32, search: false }
    }
}

impl Float {
    /// The builder has refused names that are none.
    fn element(&self) -> Minifloat {
        Minifloat::parse(&self.element).unwrap_or(Minifloat::E4M3)
    }
}

impl Activation for Float {
    fn needs(&self) -> Needs {
        Needs { range: self.is_static || self.scale == Scale::E4m3, ..Needs::default() }
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
        let scale = match self.scale {
            Scale::F32 => ScaleType::F32,
            Scale::E8m0 => ScaleType::E8M0,
            Scale::E4m3 => ScaleType::E4M3,
        };
        ActivationGrid { number: Number::Float(self.element()), sharing, scale, is_searched: self.search }
    }

    fn format(&self, stats: &InputStats) -> Result<ActivationFormat> {
        let format = self.grid().dynamic();
        let top = self.element().max();
        let scale = match (self.is_static, self.scale) {
            (true, _) => reach(stats)? / top,
            // The scale of the block with the greatest value is the greatest of its type.
            (false, Scale::E4m3) => Minifloat::E4M3.max() * top / reach(stats)?,
            _ => 1.0,
        };
        Ok(ActivationFormat { scale, ..format })
    }
}
