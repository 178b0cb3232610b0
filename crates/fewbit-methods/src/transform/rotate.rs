use fewbit_engine::kinds::{Entry, Rotation, RotationJob, Space, parse};
use fewbit_format::{Error, Result};
use fewbit_linalg::Orthogonal;
use serde::Deserialize;

use super::{BLOCK, check_block, matrix};

pub(crate) const ENTRY: Entry<dyn Rotation> = Entry {
    name: "rotate",
    cite: "Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024 (arXiv:2404.00456)",
    settings: &[
        ("space = \"residual\"", "what is rotated: the `residual` stream, or the values of attention `heads`"),
        ("kind = \"hadamard\"", "`hadamard` with random signs, or a uniformly `random` orthogonal matrix"),
        BLOCK,
    ],
    build: |table| {
        let own: Rotate = parse("transform.rotate", table)?;
        check_block(own.block)?;
        if own.block > 0 && own.kind == Matrix::Random {
            return Err(Error::input("blocks are of Hadamard matrices").hint("leave `transform.kind` out"));
        }
        Ok(Box::new(own))
    },
};

/// An equivalent model in a basis in which no channel stands out: `x' = x Q`, folded into what makes and reads `x`.
///
/// `Q = D H / √n` with random signs `D` and a Hadamard matrix `H`, or uniformly random (section 4). A rotation spreads
/// an outlier over all channels, and makes the entries of weights nearly normal. Data-free.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rotate {
    space: Space,
    kind: Matrix,
    block: usize,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Matrix {
    #[default]
    Hadamard,
    Random,
}

impl Rotation for Rotate {
    fn space(&self) -> Space {
        self.space
    }

    fn choose(&self, job: &RotationJob<'_>) -> Result<Orthogonal> {
        Ok(match self.kind {
            Matrix::Hadamard => Orthogonal::blocks(job.order, matrix(job.order, self.block), job.seed),
            Matrix::Random => Orthogonal::random(job.team, job.order, job.seed),
        })
    }
}
