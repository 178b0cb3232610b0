//! What is measured on the whole model before any block is compressed: the squares of gradients.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use fewbit_format::{Error, Mat, Result};
use fewbit_grad::loss::cross_entropy;
use fewbit_grad::model::{ModelFunction, Visit};
use fewbit_grad::{Gradients, Parameters};
use fewbit_graph::{Graph, Part, WeightId};
use fewbit_kernel::Team;
use fewbit_runtime::Batch;

use crate::bound::{Bound, compressible};
use crate::origin::Origin;
use crate::outputs::rename;
use crate::quantize::Run;
use crate::report::Progress;
use crate::stop::crash_point;
use crate::stream::Stream;

/// Sequences between two moments at which a run that is killed goes on.
const COMMITTED: usize = 8;

/// How many sequences are in the sums, in the working folder.
const COUNT: &str = "fisher.count";

/// `F = Σ_i (∂L_i/∂W)²` over sequences `i`, of every weight that is rounded: the diagonal of the empirical Fisher
/// information. A file for each part in the working folder.
pub(crate) struct Fisher {
    folder: PathBuf,
    /// By part: floats of its sums, and the file, which has them twice: one half is whole while the other is written.
    parts: Vec<(usize, Option<Stream>)>,
    /// Sequences that are in the sums.
    count: usize,
}

impl Fisher {
    /// Numbers of the rounded weights of part `i`.
    fn len(bound: &Bound, i: usize, graph: &Graph) -> usize {
        let rounded = graph.weights.iter().zip(&bound.grids[i]).filter(|(_, g)| g.is_some());
        rounded.map(|(w, _)| w.shape[0] * w.shape[1]).sum()
    }

    /// Bytes of the files.
    pub(crate) fn bytes<'a>(bound: &Bound, parts: impl Iterator<Item = (Part, &'a Graph)>) -> u64 {
        parts.enumerate().map(|(i, (_, graph))| 8 * Self::len(bound, i, graph) as u64).sum()
    }

    /// The half that has the sums after `groups` groups of sequences.
    fn half(groups: usize, len: usize) -> usize {
        if groups.is_multiple_of(2) { 0 } else { len }
    }

    /// The sums of weight `w` of part `i`.
    pub(crate) fn of(&self, bound: &Bound, i: usize, graph: &Graph, w: WeightId) -> Mat {
        let before = graph.weights.iter().zip(&bound.grids[i]).take(w).filter(|(_, g)| g.is_some());
        let before: usize = before.map(|(w, _)| w.shape[0] * w.shape[1]).sum();
        let [rows, cols] = graph.weights[w].shape;
        let mut sums = Mat::zeros(rows, cols);
        let (len, stream) = &self.parts[i];
        if let Some(stream) = stream {
            stream.read(Self::half(self.count.div_ceil(COMMITTED), *len) + before, sums.data_mut());
        }
        sums
    }

    /// Writes down that the sums of so many sequences are whole.
    fn commit(&mut self, count: usize) -> Result<()> {
        self.parts.iter().filter_map(|(_, s)| s.as_ref()).try_for_each(Stream::flush)?;
        let (path, aside) = (self.folder.join(COUNT), self.folder.join("fisher.count.new"));
        std::fs::write(&aside, count.to_string()).map_err(|e| Error::io("writing", &aside, &e))?;
        rename(&aside, &path)?;
        crash_point();
        self.count = count;
        Ok(())
    }
}

impl Run<'_> {
    /// The squares of gradients, where a pass asks for them: measured, or found as an earlier run left them.
    pub(crate) fn measure_fisher(&self, progress: &mut dyn Progress) -> Result<Option<Fisher>> {
        let (true, Some(calibration)) = (self.bound.needs.fisher, &self.calibration) else { return Ok(None) };
        let origin = Origin::new(&self.file, &self.bound, self.team, self.request.seed)?;
        let folder = self.places.partial.clone();
        let found = std::fs::read_to_string(folder.join(COUNT)).ok().filter(|_| self.request.resume);
        let count = found.and_then(|text| text.parse().ok()).unwrap_or(0);
        let file = |(i, (_, graph)): (usize, (Part, &Graph))| {
            let len = Fisher::len(&self.bound, i, graph);
            let path = folder.join(format!("fisher-{i}.f32"));
            let open = if count > 0 { Stream::open } else { Stream::create };
            Ok((len, (len > 0).then(|| open(&path, 2 * len)).transpose()?))
        };
        let parts = compressible(&self.file).enumerate().map(file).collect::<Result<_>>()?;
        let mut fisher = Fisher { folder, parts, count };
        let function = ModelFunction::new(self.file.model().clone())?;
        let batch = Batch::one(0, calibration.length);
        let mut boundaries = vec![0.0; function.boundaries(calibration.length)];
        progress.begin("gradients", calibration.samples as u64);
        for (s, ids) in calibration.ids.chunks_exact(calibration.length).enumerate().skip(count) {
            self.check_stop()?;
            progress.at(s as u64);
            let mut loss =
                |team: &Team, rows: Range<usize>, logits: &mut [f32]| next_token_loss(team, rows, logits, ids);
            let mut sweep = Sweep { run: self, origin: &origin, fisher: &mut fisher, sequence: s };
            function.gradients(self.team, &batch, ids, &mut sweep, &mut loss, &mut boundaries)?;
            if (s + 1).is_multiple_of(COMMITTED) || s + 1 == calibration.samples {
                fisher.commit(s + 1)?;
            }
        }
        progress.at(calibration.samples as u64);
        Ok(Some(fisher))
    }
}

/// One sequence on its way through the model.
struct Sweep<'a> {
    run: &'a Run<'a>,
    origin: &'a Origin<'a>,
    fisher: &'a mut Fisher,
    sequence: usize,
}

impl Sweep<'_> {
    /// The number of a part among those that may be compressed.
    fn index(&self, part: Part) -> Option<usize> {
        compressible(&self.run.file).position(|(p, _)| p == part)
    }

    fn rounded(&self, part: Part) -> Vec<WeightId> {
        let grids = self.index(part).map_or(&[][..], |i| &self.run.bound.grids[i]);
        grids.iter().enumerate().filter(|(_, g)| g.is_some()).map(|(w, _)| w).collect()
    }
}

impl Visit for Sweep<'_> {
    fn parameters(&mut self, part: Part) -> Result<Arc<Parameters>> {
        self.run.check_stop()?;
        let weights = self.origin.part(part)?;
        Parameters::of(self.run.file.model().part(part), &weights).map(Arc::new)
    }

    fn asked(&mut self, part: Part, graph: &Graph) -> Gradients {
        let mut asked = Gradients::of_weights(graph, self.rounded(part));
        asked.wants_input = !matches!(part, Part::Embed | Part::Block(0));
        asked
    }

    fn done(&mut self, part: Part, gradients: Gradients) -> Result<()> {
        let Some(i) = self.index(part) else { return Ok(()) };
        let (len, stream) = &mut self.fisher.parts[i];
        let Some(stream) = stream else { return Ok(()) };
        // A group of sequences goes from one half to the other.
        let group = self.sequence / COMMITTED;
        let (begun, next) = (Fisher::half(group, *len), Fisher::half(group + 1, *len));
        let from = if self.sequence.is_multiple_of(COMMITTED) { begun } else { next };
        let (mut at, mut sums) = (0, Vec::new());
        for gradient in gradients.weights.iter().flatten() {
            for part in gradient.data().chunks(1 << 20) {
                sums.resize(part.len(), 0.0);
                if self.sequence > 0 {
                    stream.read(from + at, &mut sums);
                } else {
                    sums.fill(0.0);
                }
                sums.iter_mut().zip(part).for_each(|(sum, g)| *sum += g * g);
                stream.write(next + at, &sums);
                at += part.len();
            }
        }
        self.run.file.drop_pages(part);
        Ok(())
    }
}

/// The sum over tokens of the next one's negative log-likelihood, and its gradient in the place of the logits.
fn next_token_loss(team: &Team, rows: Range<usize>, logits: &mut [f32], ids: &[u32]) -> f64 {
    let vocabulary = logits.len() / rows.len();
    let targets: Vec<u32> = rows.clone().map(|r| ids.get(r + 1).copied().unwrap_or(0)).collect();
    let weights: Vec<f32> = rows.map(|r| if r + 1 < ids.len() { 1.0 } else { 0.0 }).collect();
    cross_entropy(team, logits, vocabulary, &targets, &weights)
}
