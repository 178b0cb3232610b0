//! Transforms of a part: chosen by the recipe, folded by the graph.

use std::collections::BTreeSet;
use std::time::Instant;

use fewbit_format::{Error, Result};
use fewbit_graph::{Edge, Producer, Site, WeightId};

use super::Work;
use crate::fold::{BlockTensors, fold, spread};
use crate::kinds::{Element, SiteJob};
use crate::stats::InputStats;

impl Work<'_, '_> {
    /// Chooses the transforms and folds them into the part's tensors; statistics become those of the new inputs.
    pub(super) fn transform(&mut self, stats: &mut [(Edge, InputStats)]) -> Result<()> {
        let (run, graph) = (self.run, &*self.graph);
        let clock = Instant::now();
        let mut tensors = BlockTensors::of(&self.source);
        for (t, site) in run.bound.sites(graph) {
            run.check_stop()?;
            let transform = &run.bound.transforms[t];
            // A gate is never rounded: it only undoes the element.
            let rounded: Vec<WeightId> =
                site.consumers.iter().copied().filter(|w| !graph.weights[*w].is_gate).collect();
            let grids: Option<Vec<_>> = rounded.iter().map(|w| run.bound.grids[self.i][*w].as_deref()).collect();
            let (Some(grids), Some(known)) = (grids, stats.iter().position(|(edge, _)| *edge == site.edge())) else {
                continue;
            };
            let Some(((_, tied), to)) = site.folds.iter().find(|((y, _), _)| *y == transform.symmetry()) else {
                continue;
            };
            let job = SiteJob {
                name: graph.values[site.value].name,
                weights: rounded.iter().map(|w| &tensors.weights[*w]).collect(),
                grids,
                stats: &stats[known].1,
                tied: *tied,
                team: run.team,
            };
            let Some(mut element) = transform.choose(&job)? else { continue };
            if let Element::Diagonal(factors) = &mut element {
                self.snap(&tensors, &site, &to.producers, factors)?;
            }
            if let Element::Diagonal(factors) = spread(&element, *tied, site.dim)? {
                for (edge, ws) in graph.linears_by_input() {
                    // What experts read of the value is scaled with it.
                    if let Some((_, s)) = stats.iter_mut().find(|(e, _)| *e == edge)
                        && ws.iter().any(|w| site.consumers.contains(w))
                    {
                        s.scale(&factors);
                    }
                }
            }
            fold(graph, &mut tensors, &site, *tied, to, &element)?;
        }
        self.tensors = Some(tensors);
        self.report.transform_seconds += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Moves factors to where the gain that takes them can be stored exactly, so that the saved model is the one that was rounded.
    fn snap(
        &self,
        tensors: &BlockTensors,
        site: &Site,
        producers: &BTreeSet<Producer>,
        factors: &mut [f32],
    ) -> Result<()> {
        let mut gains = producers.iter().filter_map(|p| if let Producer::Gain(v) = p { Some(*v) } else { None });
        let Some(v) = gains.next() else { return Ok(()) };
        let (file, part, name) = (&self.run.file, self.part, self.graph.vectors[v].name);
        let dtype = file.vector_dtype(part, name)?;
        let offset = file.exported(part, name)?.stored.offset();
        let wanted: Vec<f32> = tensors.vectors[v].iter().zip(factors.iter()).map(|(g, f)| g * f - offset).collect();
        let mut stored = vec![0.0; site.dim];
        let bytes = dtype.narrow(&wanted).ok_or_else(|| Error::internal("a gain that is no float"))?;
        dtype.widen(&bytes, &mut stored);
        for ((f, s), g) in factors.iter_mut().zip(&stored).zip(&tensors.vectors[v]) {
            let exact = (s + offset) / g;
            if exact.is_finite() && exact > 0.0 {
                *f = exact;
            }
        }
        Ok(())
    }
}
