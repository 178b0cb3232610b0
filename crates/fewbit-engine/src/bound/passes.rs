//! The passes of a recipe, by what they are, and what cannot stand beside what.

use fewbit_format::{Error, Result};
use fewbit_graph::Residual;
use fewbit_store::ModelFile;

use crate::kinds::{Activation, Edges, End, MapJob, Needs, OnlineTransform, Rotation, Space, Transform};
use crate::program::Program;
use crate::recipe::{CalibrationSettings, GridSettings, Pass, StreamOf};
use crate::tune::{Learn, Scope};

/// The passes of a recipe, by what they are.
#[derive(Debug)]
pub(super) struct Passes {
    pub(super) rotations: Vec<Box<dyn Rotation>>,
    pub(super) transforms: Vec<Box<dyn Transform>>,
    pub(super) online: Option<Box<dyn OnlineTransform>>,
    pub(super) grid: Option<GridSettings>,
    pub(super) program: Program,
    pub(super) learns: Vec<Learn>,
    pub(super) input: Option<Box<dyn Activation>>,
    pub(super) cache: Option<Box<dyn Activation>>,
}

impl Passes {
    /// Takes the passes in order.
    ///
    /// # Errors
    /// If there are two of what can only be once, or the order makes no sense.
    pub(super) fn sort(file: &ModelFile, passes: Vec<Pass>) -> Result<Self> {
        let (mut rotations, mut transforms, mut online, mut grid) = (Vec::new(), Vec::new(), None, None);
        let (mut steps, mut learns) = (Vec::new(), Vec::new());
        let (mut input, mut cache) = (None::<Box<dyn Activation>>, None);
        for pass in passes {
            match pass {
                Pass::Rotate(r) => {
                    check_rotation(file, &*r, &rotations, !transforms.is_empty())?;
                    rotations.push(r);
                }
                Pass::Transform(t) => transforms.push(t),
                Pass::Online(_) if online.is_some() => {
                    return Err(Error::input("the recipe maps inputs and outputs twice").hint("once is possible"));
                }
                Pass::Online(t) => online = Some(t),
                Pass::Activation(a) => {
                    let place = if a.edges() == Edges::Inputs { &mut input } else { &mut cache };
                    if place.replace(a).is_some() {
                        return Err(Error::input("the recipe rounds the same values twice while the model runs")
                            .hint("one `act` pass for inputs and one for the cache are possible"));
                    }
                }
                Pass::Grid(g) => grid = Some(g),
                Pass::Step(s) => steps.push(s),
                Pass::Learn(l) => learns.push(l),
            }
        }
        let program = Program::new(steps)?;
        Ok(Self { rotations, transforms, online, grid, program, learns, input, cache })
    }

    /// Whether the passes go together; `is_by_row`: rows of one matrix may have grids of their own.
    ///
    /// # Errors
    /// If they do not.
    pub(super) fn check(&self, calibration: &CalibrationSettings, is_by_row: bool) -> Result<()> {
        let (rounds, has_sides, learns) = (self.program.rounds(), self.program.has_sides(), !self.learns.is_empty());
        let learns_blocks = self.learns.iter().any(|l| l.settings.scope == Scope::Block);
        let is_static = self.input.as_ref().is_some_and(|a| a.needs().any());
        let refusals = [
            (learns && !rounds, "the recipe learns, and rounds nothing", "put a `solve` pass before `learn`"),
            (
                rounds && self.grid.is_none(),
                "the recipe rounds, but says not to which numbers",
                "put a `grid` pass before `solve`",
            ),
            (
                self.input.is_some() && !rounds,
                "the recipe rounds inputs of linears that it does not compress",
                "put a `grid` and a `solve` pass into it",
            ),
            (
                is_by_row && (has_sides || learns),
                "rows of one matrix have no place for what stands beside codes or is learned",
                "leave out `residual` and `learn` passes, or choose another `allocate.granularity`",
            ),
            (
                calibration.stream == StreamOf::Original && learns_blocks,
                "the recipe learns on what compressed blocks make, and its stream is the original",
                "set `calibration.stream=compressed`",
            ),
            (
                self.online.is_some() && is_static,
                "the recipe maps inputs while the model runs, and what they then range over is unknown",
                "round inputs by their own range, not by a stored one",
            ),
            (
                self.online.is_some() && self.program.needs().mean_abs,
                "the recipe maps inputs while the model runs, and how large each then is is unknown",
                "weigh errors by the outputs (`residual.weighting=activations`), or by nothing",
            ),
            (
                self.maps_outputs() && learns,
                "the recipe learns through maps after products, which it cannot",
                "leave out the `learn` passes, or set `transform.sides=input`",
            ),
            (
                self.input.is_some() && has_sides && learns,
                "the recipe learns what rounded inputs meet, and what stands beside the codes meets exact ones",
                "leave out the `learn` passes, the `residual` passes, or `act`",
            ),
        ];
        let refused = refusals.iter().find(|(is_so, ..)| *is_so);
        refused.map_or(Ok(()), |(_, what, hint)| Err(Error::input(*what).hint(*hint)))
    }

    /// Whether what linears make is mapped, each its own.
    pub(super) fn maps_outputs(&self) -> bool {
        let job = MapJob { name: "", end: End::Output, dim: 64, is_rotated: false, seed: 0 };
        self.online.as_ref().is_some_and(|online| online.choose(&job).is_some())
    }

    /// What has to be known about inputs and weights, but for what grids need.
    pub(super) fn needs(&self) -> Needs {
        let needs = self.transforms.iter().fold(self.program.needs(), |n, t| n.and(t.needs()));
        self.input.iter().chain(&self.cache).fold(needs, |n, a| n.and(a.needs()))
    }
}

/// What the algebra, or the order of the passes, forbids.
fn check_rotation(
    file: &ModelFile,
    rotation: &dyn Rotation,
    before: &[Box<dyn Rotation>],
    has_transforms: bool,
) -> Result<()> {
    if before.iter().any(|r| r.space() == rotation.space()) {
        return Err(
            Error::input(format!("the recipe rotates `{}` twice", rotation.space().name())).hint("once is enough")
        );
    }
    if has_transforms {
        let e = Error::input("a rotation after another transform would undo it");
        return Err(e.hint("put `transform.rotate` first"));
    }
    if rotation.space() == Space::Residual {
        for (part, graph) in file.model().parts() {
            let hint = "leave out the rotation of the residual stream: `heads` can still be rotated";
            Residual::of(graph, part).map_err(|e| e.hint(hint).file(file.checkpoint().path()))?;
        }
    }
    Ok(())
}
