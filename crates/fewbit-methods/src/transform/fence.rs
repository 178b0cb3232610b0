use fewbit_engine::kinds::{Element, Entry, Needs, SiteJob, Transform, parse};
use fewbit_format::{Error, Result};
use fewbit_graph::Symmetry;
use serde::Deserialize;

use super::smooth::shared;
use crate::fence::fence;

pub(crate) const ENTRY: Entry<dyn Transform> = Entry {
    name: "fence",
    cite: "Ding et al., CBQ: Cross-Block Quantization for Large Language Models, 2023 (arXiv:2312.07950)",
    settings: &[],
    build: |table| Ok(Box::new(parse::<Fence>("transform.fence", table)?)),
};

/// A factor for each input channel whose range stands out: `s_j = √(max|x_j| / T)`, `T` the greatest range that does not.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Fence {}

impl Transform for Fence {
    fn needs(&self) -> Needs {
        Needs { range: true, ..Needs::default() }
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry::Diagonal
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        (rows * cols) as f64
    }

    fn choose(&self, job: &SiteJob<'_>) -> Result<Option<Element>> {
        let reach = job.stats.reach().ok_or_else(|| Error::internal("a fence without statistics"))?;
        let reach = shared(&reach, job.tied);
        let limit = fence(reach.iter().copied());
        let factor = |x: &f32| if *x > limit && limit > 0.0 { (limit / x).sqrt() } else { 1.0 };
        Ok(Some(Element::Diagonal(reach.iter().map(factor).collect())))
    }
}

#[cfg(test)]
mod tests {
    use fewbit_engine::InputStats;
    use fewbit_graph::Tied;
    use fewbit_kernel::Team;

    use super::*;

    #[test]
    fn channels_that_stand_out_share_their_range_with_the_weights() {
        let mut range: Vec<[f32; 2]> = (0..100).map(|i| [-(i as f32) / 100.0, 0.0]).collect();
        range.extend([[-1.0, 2.0], [-200.0, 3.0]]);
        let stats = InputStats { range: Some(range), ..InputStats::default() };
        let team = Team::new(1);
        let (weights, grids) = (Vec::new(), Vec::new());
        let job = SiteJob { name: "x", weights, grids, stats: &stats, tied: Tied::No, team: &team };
        let Some(Element::Diagonal(factors)) = Fence {}.choose(&job).unwrap() else { unreachable!() };
        assert_eq!(factors[101], 0.1, "√(2 / 200)");
        assert!(factors[..101].iter().all(|f| *f == 1.0));
    }
}
