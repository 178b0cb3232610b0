//! What is rounded while the model runs.

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Activation, Entry};
use fewbit_format::{Error, Result};

mod cache;
mod float;
mod int;

/// The setting that members share.
const SEARCH: (&str, &str) = (
    "search = false",
    "try a few scales for each token or group while the model runs, and take the one that rounds best",
);

/// `act.*`
pub(crate) const ACTIVATIONS: &[Entry<dyn Activation>] = &[int::ENTRY, float::ENTRY, cache::ENTRY];

/// The least and the greatest of all values.
fn extremes(stats: &InputStats) -> Result<[f32; 2]> {
    let range = stats.range.as_ref().ok_or_else(|| Error::internal("a static scale without statistics"))?;
    Ok(range.iter().fold([0.0, 0.0], |[a, b], [least, most]| [f32::min(a, *least), f32::max(b, *most)]))
}

/// The greatest magnitude of all values; 1 where nothing was seen.
fn reach(stats: &InputStats) -> Result<f32> {
    let [least, most] = extremes(stats)?;
    let reach = most.max(-least);
    Ok(if reach > 0.0 { reach } else { 1.0 })
}
