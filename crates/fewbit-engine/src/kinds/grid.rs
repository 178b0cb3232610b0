use std::ops::Range;

use fewbit_export::{GgufMix, MixTensor};
use fewbit_format::{Mat, Result, Storage};
use fewbit_kernel::Team;
use fewbit_kernel::strip::{STRIP, gather};

use crate::stats::InputStats;

/// Rows that are rounded together: one vector register of f32.
pub const LANES: usize = STRIP;

/// Up to [`LANES`] consecutive rows of a matrix, column by column: `data[c][lane]` is row `rows.start + lane`.
///
/// Lanes past the last row hold zeros. Solvers work on strips because rows are independent of each other.
#[derive(Clone, Debug)]
pub struct Strip {
    /// Rows of the matrix.
    pub rows: Range<usize>,
    /// One entry per column.
    pub data: Vec<[f32; LANES]>,
}

impl Strip {
    /// Strip `index` of a matrix.
    pub fn of(w: &Mat, index: usize) -> Self {
        let rows = index * LANES..((index + 1) * LANES).min(w.rows());
        let mut data = vec![[0.0; LANES]; w.cols()];
        let values = &w.data()[rows.start * w.cols()..rows.end * w.cols()];
        gather(values, w.cols(), data.as_flattened_mut());
        Self { rows, data }
    }

    /// Number of strips of a matrix with so many rows.
    pub fn count(rows: usize) -> usize {
        rows.div_ceil(LANES)
    }
}

/// How much an error of a weight counts when parameters are fitted. A weight of 0 makes an entry invisible.
#[derive(Clone, Copy, Debug)]
pub enum Weighting<'a> {
    /// All alike.
    None,
    /// One number per column of the group.
    Column(&'a [f32]),
    /// One number per weight of the group, `[column][lane]`.
    Element(&'a [[f32; LANES]]),
    /// The group's block of `XᵀX`, `[group, group]`: errors that cancel in the output cost nothing.
    Gram(&'a Mat),
}

impl Weighting<'_> {
    /// Whether a column of the group has this lane's weight out of sight.
    pub fn hides(&self, column: usize, lane: usize) -> bool {
        match self {
            Self::None | Self::Gram(_) => false,
            Self::Column(w) => w[column] == 0.0,
            Self::Element(w) => w[column][lane] == 0.0,
        }
    }

    /// The greatest magnitude in each lane of what is in sight.
    pub fn reach(&self, values: &[[f32; LANES]]) -> [f32; LANES] {
        let mut reach = [0f32; LANES];
        for (c, column) in values.iter().enumerate() {
            for lane in (0..LANES).filter(|lane| !self.hides(c, *lane)) {
                reach[lane] = reach[lane].max(column[lane].abs());
            }
        }
        reach
    }
}

/// What a grid's parameters are fitted to, of what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeighBy {
    /// All errors alike.
    #[default]
    Nothing,
    /// The diagonal of `XᵀX`: [`Weighting::Column`].
    Columns,
    /// The diagonal blocks of `XᵀX`: [`Weighting::Gram`].
    Blocks,
    /// Squared gradients: [`Weighting::Element`].
    Fisher,
}

/// A place in a matrix: a strip, and a column of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Strip: rows `strip · 16 ..`.
    pub strip: usize,
    /// Column: the first of a tile or group.
    pub column: usize,
}

/// One matrix that a grid is bound to.
#[derive(Clone, Copy)]
pub struct GridJob<'a> {
    /// `[out, in]`.
    pub weight: &'a Mat,
    /// What its input was like: the diagonal of `XᵀX` weighs columns.
    pub stats: &'a InputStats,
    /// Of everything random.
    pub seed: u64,
    /// The threads.
    pub team: &'a Team,
}

/// Parameters of one group in one strip: for each number that the grid keeps (scale, zero point, …), a value per row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params(pub Vec<[f32; LANES]>);

/// A set of numbers that weights may take, as a recipe describes it.
pub trait Grid: Send + Sync + std::fmt::Debug {
    /// Checks that the grid fits a matrix `[rows, cols]`, before any work.
    ///
    /// # Errors
    /// One sentence with what would fit.
    fn check(&self, rows: usize, cols: usize) -> Result<()>;

    /// What has to be known to fit its parameters.
    fn needs(&self) -> super::Needs;

    /// What [`BoundGrid::fit`] is to be given; all of it among its [`needs`](Self::needs).
    fn weigh_by(&self) -> WeighBy {
        if self.needs().gram { WeighBy::Blocks } else { WeighBy::Nothing }
    }

    /// Bits that a matrix `[rows, cols]` takes, everything stored. Equal to the storage's own count.
    fn stored_bits(&self, rows: usize, cols: usize) -> u64;

    /// Binds the grid to one matrix; finds what all its groups share (codebooks, a global scale).
    ///
    /// # Errors
    /// If the matrix cannot be represented.
    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>>;

    /// How a person calls it, such as `w4 g128`.
    fn label(&self) -> String;

    /// The mix of types that it stands for, if it does: then embedding and output get their types too.
    fn mix(&self) -> Option<GgufMix> {
        None
    }

    /// What a mix has for a tensor like this one, where its blocks tile the rows, which they do not.
    fn instead_of(&self) -> Option<&'static str> {
        None
    }

    /// The grid of one tensor, where that depends on which it is.
    fn of_tensor(&self, _: &MixTensor<'_>) -> OfTensor {
        OfTensor::Same
    }
}

/// What a grid is for one tensor.
pub enum OfTensor {
    /// What it is for all.
    Same,
    /// Another.
    Other(Box<dyn Grid>),
    /// None: the tensor stays as it is.
    Kept,
}

/// A grid bound to one matrix. A [`Rounder`](super::Rounder) calls [`fit`](Self::fit) once per group and strip, then
/// [`seal`](Self::seal) where all groups are fitted before any is rounded, [`round`](Self::round) for its tiles, and
/// [`store`](Self::store) at the end with all codes and parameters.
pub trait BoundGrid: Send + Sync {
    /// Columns that are rounded together: 1 for scalars, 8 for an 8-dimensional codebook.
    fn width(&self) -> usize;

    /// Consecutive lanes that one code covers; they divide [`LANES`]. 1 where rows are rounded each for itself.
    fn height(&self) -> usize {
        1
    }

    /// Columns that share parameters; a multiple of [`width`](Self::width).
    fn group(&self) -> usize;

    /// Parameters of the group that begins at `at` for the strip's rows, from the values `[group][lane]`.
    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params;

    /// Rounds the parameters themselves, such as scales of scales: `params[strip][group]`, of all strips. Blocks of
    /// parameters within a strip are better rounded by `fit`, which every solver calls.
    fn seal(&self, params: &mut [Vec<Params>]) {
        let _ = params;
    }

    /// Whether `seal` changes what `fit` gave: then all groups have to be fitted before any is rounded.
    fn is_sealed_as_a_whole(&self) -> bool {
        false
    }

    /// Rounds tiles `[width][lane]` of one group, one or several, the first of which begins at `at`: writes as many
    /// codes per lane, and what they decode to.
    fn round(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    );

    /// [`round`](Self::round) of one tile in which an error of one column is made up for by those behind it:
    /// `e_i = (w_i − ŵ_i) / U[i, i]`, `w_j −= e_i U[i, j]` for `j > i`, with `u` the factor's block `[width, width]` of the
    /// tile. A grid that can choose well makes `Σ e²` small.
    fn round_coupled(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        u: &[f32],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let _ = u;
        self.round(at, params, tile, codes, decoded);
    }

    /// All rows of a matrix at once, where the grid has a way of its own to round to nearest.
    ///
    /// # Errors
    /// If something is beyond what the layout holds.
    fn round_rows(&self, _: &Mat, _: &Team) -> Option<Result<Storage>> {
        None
    }

    /// The stored form. `codes[strip][column]` and `params[strip][group]`, strips in order.
    ///
    /// # Errors
    /// If something is beyond what the layout holds.
    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage>;
}
