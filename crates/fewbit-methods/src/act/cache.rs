use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Activation, Edges, Entry, Needs, parse};
use fewbit_format::{ActivationFormat, ActivationGrid, Minifloat, Number, Result, ScaleType, Sharing};
use serde::Deserialize;

use super::reach;

pub(crate) const ENTRY: Entry<dyn Activation> = Entry {
    name: "cache",
    cite: "Micikevicius et al., FP8 Formats for Deep Learning, 2022 (arXiv:2209.05433)",
    settings: &[("element = \"e4m3\"", "bits of exponent and mantissa: `e4m3` or `e5m2`")],
    build: |table| {
        let cache: Cache = parse("act.cache", table)?;
        Minifloat::parse(&cache.element).map_err(|e| e.place("`act.element`"))?;
        Ok(Box::new(cache))
    },
};

/// Keys and values as small floats, each of the two with one scale per block from calibration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cache {
    element: String,
}

impl Default for Cache {
    fn default() -> Self {
        Self { element: "e4m3".to_owned() }
    }
}

impl Activation for Cache {
    fn needs(&self) -> Needs {
        Needs { range: true, ..Needs::default() }
    }

    fn edges(&self) -> Edges {
        Edges::Cache
    }

    fn grid(&self) -> ActivationGrid {
        // The builder has refused names that are none.
        let element = Minifloat::parse(&self.element).unwrap_or(Minifloat::E4M3);
        ActivationGrid {
            number: Number::Float(element),
            sharing: Sharing::Tensor,
            scale: ScaleType::F32,
            is_searched: false,
        }
    }

    fn format(&self, stats: &InputStats) -> Result<ActivationFormat> {
        let format = self.grid().dynamic();
        let Number::Float(element) = format.grid.number else { return Ok(format) };
        Ok(ActivationFormat { scale: reach(stats)? / element.max(), ..format })
    }
}
