//! What is done to one linear after its transforms: residuals and solvers in the recipe's order.

use fewbit_format::{Error, LowRank, Mat, QuantizedLinear, Result, Sides, Sparse, Storage};

use crate::kinds::{
    Beside, BoundGrid, Grid, InputJob, InputSolver, Keep, LinearJob, Needs, Residual, ResidualJob, Side, Solved, Solver,
};

/// One step.
#[derive(Debug)]
pub enum Step {
    /// Puts something beside the codes.
    Residual(Box<dyn Residual>),
    /// Rounds what the sides leave.
    Solve(Box<dyn Solver>),
    /// The steps again and again, as long as the error falls; the best is kept.
    Alternate(usize, Vec<Step>),
}

/// The steps of a recipe.
#[derive(Debug, Default)]
pub(crate) struct Program {
    steps: Vec<Step>,
}

impl Program {
    /// Takes the steps in order.
    ///
    /// # Errors
    /// If the order makes no sense.
    pub(crate) fn new(steps: Vec<Step>) -> Result<Self> {
        let program = Self { steps };
        let (mut solvers, mut residuals) = (0, 0);
        visit(&program.steps, &mut |s| match s {
            Step::Solve(_) => solvers += 1,
            Step::Residual(_) => residuals += 1,
            Step::Alternate(..) => {}
        });
        if solvers > 1 {
            return Err(Error::input("the recipe rounds twice").hint("one `solve` pass per recipe is possible"));
        }
        if residuals > 0 && solvers == 0 {
            return Err(Error::input("the recipe keeps something beside codes, and makes no codes")
                .hint("put a `solve` pass into it"));
        }
        program.check_order()?;
        Ok(program)
    }

    /// What solvers leave out has to be known before them, and only some find it out themselves.
    fn check_order(&self) -> Result<()> {
        let (mut is_late, mut solves, mut chooses, mut asked) = (false, false, None, None);
        visit(&self.steps, &mut |s| match s {
            Step::Solve(s) => (solves, chooses) = (true, s.chooses_kept()),
            Step::Residual(r) => {
                is_late |= solves && r.beside() != Beside::Correction;
                if matches!(r.beside(), Beside::ChosenWhileRounding | Beside::ChosenInTurns) {
                    asked = Some(r.beside());
                }
            }
            Step::Alternate(..) => {}
        });
        if is_late {
            return Err(Error::input("the recipe keeps weights beside codes that are there already")
                .hint("put that `residual` pass before `solve`"));
        }
        if let Some(asked) = asked.filter(|_| asked != chooses) {
            let solver = if asked == Beside::ChosenInTurns { "quantease" } else { "gptq" };
            return Err(Error::input("the recipe's solver does not choose which weights stay beside the codes")
                .hint(format!("take `solve.{solver}`, or keep weights by `residual.sparse`")));
        }
        Ok(())
    }

    /// Whether the solver can round to a grid.
    pub(crate) fn check(&self, grid: &dyn BoundGrid) -> Result<()> {
        let (mut beside, mut solver) = (None, None);
        visit(&self.steps, &mut |s| match s {
            Step::Solve(s) => solver = Some(s),
            Step::Residual(r) if r.beside() != Beside::Correction => beside = Some(r.beside()),
            _ => {}
        });
        solver.map_or(Ok(()), |s| s.check(grid, beside))
    }

    /// Whether linears are rounded.
    pub(crate) fn rounds(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Whether something may stand beside the codes.
    pub(crate) fn has_sides(&self) -> bool {
        let mut found = false;
        visit(&self.steps, &mut |s| found |= matches!(s, Step::Residual(_)));
        found
    }

    pub(crate) fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        visit(&self.steps, &mut |s| match s {
            Step::Residual(r) => needs = needs.and(r.needs()),
            Step::Solve(s) => needs = needs.and(s.needs()),
            Step::Alternate(..) => {}
        });
        needs
    }

    /// Bits that stand beside the codes of a matrix `[rows, cols]`.
    pub(crate) fn side_bits(&self, rows: usize, cols: usize) -> u64 {
        let mut bits = 0;
        visit(&self.steps, &mut |s| {
            if let Step::Residual(r) = s {
                bits += r.stored_bits(rows, cols);
            }
        });
        bits
    }

    /// Bytes that the work on one matrix allocates, beside the matrix and its statistics.
    pub(crate) fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        let mut most = 0;
        visit(&self.steps, &mut |s| match s {
            Step::Solve(s) => most = most.max(s.scratch_bytes(rows, cols)),
            Step::Residual(r) => most = most.max(r.scratch_bytes(rows, cols)),
            Step::Alternate(..) => {}
        });
        // What is missing, and what is to be rounded in its place.
        most + if self.has_sides() { 12 * (rows * cols) as u64 } else { 0 }
    }

    /// Floating-point operations for an input of `cols` columns, without the linears that read it.
    pub(crate) fn input_flops(&self, cols: usize) -> f64 {
        let mut flops = 0.0;
        visit(&self.steps, &mut |s| {
            if let Step::Solve(s) = s {
                flops += s.input_flops(cols);
            }
        });
        flops
    }

    /// Floating-point operations for one matrix.
    pub(crate) fn flops(&self, rows: usize, cols: usize) -> f64 {
        flops(&self.steps, rows, cols)
    }

    /// What is stored beside the codes, for people.
    pub(crate) fn side_label(&self) -> String {
        let mut labels = Vec::new();
        visit(&self.steps, &mut |s| {
            if let Step::Residual(r) = s {
                labels.push(format!(" + {}", r.label()));
            }
        });
        labels.concat()
    }

    /// Prepares for the linears that read one value.
    pub(crate) fn begin<'a>(&'a self, input: InputJob<'a>) -> Result<InputProgram<'a>> {
        let mut solver = None;
        visit(&self.steps, &mut |s| {
            if let Step::Solve(s) = s {
                solver = Some(s.begin(input));
            }
        });
        Ok(InputProgram { steps: &self.steps, has_sides: self.has_sides(), input, solver: solver.transpose()? })
    }
}

/// Calls `f` for every step, those of alternations in their place.
fn visit<'a>(steps: &'a [Step], f: &mut dyn FnMut(&'a Step)) {
    for step in steps {
        f(step);
        if let Step::Alternate(_, inner) = step {
            visit(inner, f);
        }
    }
}

fn flops(steps: &[Step], rows: usize, cols: usize) -> f64 {
    let of = |s: &Step| match s {
        Step::Residual(r) => r.flops(rows, cols),
        Step::Solve(s) => s.flops(rows, cols),
        Step::Alternate(rounds, inner) => *rounds as f64 * flops(inner, rows, cols),
    };
    steps.iter().map(of).sum()
}

/// A program that knows its input.
pub(crate) struct InputProgram<'a> {
    steps: &'a [Step],
    has_sides: bool,
    input: InputJob<'a>,
    solver: Option<Box<dyn InputSolver + 'a>>,
}

/// One linear to compress.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) name: &'a str,
    pub(crate) weight: &'a Mat,
    pub(crate) grid: &'a dyn Grid,
    pub(crate) fisher: Option<&'a Mat>,
    pub(crate) seed: u64,
}

/// What a linear became.
pub(crate) struct Compressed {
    pub(crate) linear: QuantizedLinear,
    pub(crate) output_mse: Option<f64>,
    pub(crate) warning: Option<String>,
}

/// A linear on its way.
#[derive(Clone, Debug, Default)]
struct State {
    keep: Keep,
    low_rank: Option<LowRank>,
    codes: Option<(Storage, Option<Sparse>)>,
    output_mse: Option<f64>,
    warning: Option<String>,
}

impl State {
    /// `W` without what stands in the sides, or without all that is stored.
    fn missing(&self, weight: &Mat, and_codes: bool) -> Mat {
        let mut stored = Mat::zeros(weight.rows(), weight.cols());
        if let (Some((storage, sparse)), true) = (&self.codes, and_codes) {
            storage.decode_rows(0..weight.rows(), stored.data_mut());
            if let Some(sparse) = sparse {
                sparse.add_rows(0..weight.rows(), stored.data_mut());
            }
        }
        if let Some(low_rank) = &self.low_rank {
            low_rank.add_rows(0..weight.rows(), stored.data_mut());
        }
        stored.data_mut().iter_mut().zip(weight.data()).for_each(|(s, w)| *s = w - *s);
        stored
    }
}

/// `Σ F Δ²`; `None` if it is no number.
fn weighted(delta: &Mat, fisher: &Mat) -> Option<f64> {
    let terms = delta.data().iter().zip(fisher.data()).map(|(d, f)| f64::from(*f) * f64::from(*d).powi(2));
    Some(terms.sum()).filter(|e: &f64| e.is_finite())
}

impl InputProgram<'_> {
    /// Compresses one linear.
    pub(crate) fn run(&self, target: &Target<'_>, bias: Option<Vec<f32>>) -> Result<Compressed> {
        let mut state = State::default();
        self.steps(self.steps, target, &mut state)?;
        if self.has_sides {
            state.output_mse =
                self.error(&state.missing(target.weight, true)).filter(|_| self.input.stats.gram.is_some());
            let count = (self.input.stats.tokens.max(1) * target.weight.rows()) as f64;
            state.output_mse = state.output_mse.map(|e| e / count);
        }
        let State { low_rank, codes, output_mse, warning, .. } = state;
        let (storage, sparse) = codes.ok_or_else(|| Error::internal("a program that does not round"))?;
        let linear = QuantizedLinear { sides: Sides { sparse, low_rank }, ..QuantizedLinear::uniform(storage, bias) };
        Ok(Compressed { linear, output_mse, warning })
    }

    fn steps(&self, steps: &[Step], target: &Target<'_>, state: &mut State) -> Result<()> {
        for step in steps {
            match step {
                Step::Residual(r) => self.residual(&**r, target, state)?,
                Step::Solve(_) => self.solve(target, state)?,
                Step::Alternate(rounds, inner) => self.alternate(*rounds, inner, target, state)?,
            }
        }
        Ok(())
    }

    fn residual(&self, residual: &dyn Residual, target: &Target<'_>, state: &mut State) -> Result<()> {
        // A correction takes the place of the one before.
        let without = State { low_rank: None, ..state.clone() };
        let missing = without.missing(target.weight, true);
        let InputJob { stats, team, .. } = self.input;
        let Target { name, weight, fisher, seed, .. } = *target;
        match residual.fit(&ResidualJob { name, weight, missing: &missing, stats, fisher, seed, team })? {
            Side::Keep(keep) => state.keep = std::mem::take(&mut state.keep).and(keep),
            Side::LowRank(low_rank) => state.low_rank = Some(*low_rank),
        }
        Ok(())
    }

    fn solve(&self, target: &Target<'_>, state: &mut State) -> Result<()> {
        let solver = self.solver.as_ref().ok_or_else(|| Error::internal("a solver that did not begin"))?;
        let rest = state.low_rank.is_some().then(|| state.missing(target.weight, false));
        let Target { name, weight, grid, fisher, seed } = *target;
        let weight = rest.as_ref().unwrap_or(weight);
        let solved = solver.solve(&LinearJob { name, weight, grid, keep: &state.keep, fisher, seed })?;
        let Solved { storage, sparse, output_mse, warning } = solved;
        (state.codes, state.output_mse, state.warning) = (Some((storage, sparse)), output_mse, warning);
        Ok(())
    }

    fn alternate(&self, rounds: usize, steps: &[Step], target: &Target<'_>, state: &mut State) -> Result<()> {
        let (mut best, mut least) = (None, f64::INFINITY);
        for _ in 0..rounds {
            self.steps(steps, target, state)?;
            let missing = state.missing(target.weight, true);
            let error = match (target.fisher, &self.input.stats.gram) {
                (Some(fisher), None) => weighted(&missing, fisher),
                _ => self.error(&missing),
            };
            let error = error.unwrap_or(f64::INFINITY);
            if error >= least {
                break;
            }
            (best, least) = (Some(state.clone()), error);
        }
        *state = best.ok_or_else(|| Error::input("holds what is no number").tensor(target.name))?;
        Ok(())
    }

    /// `tr(Δ H Δᵀ)`, or `‖Δ‖²` where `XᵀX` is unknown; `None` if it is no number.
    fn error(&self, delta: &Mat) -> Option<f64> {
        self.input.stats.squared_output(self.input.team, delta)
    }
}
