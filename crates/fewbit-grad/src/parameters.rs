use fewbit_format::{Error, Mat, Result};
use fewbit_graph::{Graph, WeightId};
use fewbit_store::PartWeights;

use crate::Input;

/// The numbers of one graph, in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// By the graph's weights, `[out, in]`.
    pub weights: Vec<Mat>,
    /// By the graph's weights, `[out]`.
    pub biases: Vec<Option<Vec<f32>>>,
    /// By the graph's vectors: gains and biases of norms.
    pub vectors: Vec<Vec<f32>>,
    /// By the graph's weights: what happens to the rows that each reads; empty where all read theirs as they are.
    pub inputs: Vec<Option<Input>>,
}

impl Parameters {
    /// Decodes the tensors of a part of a checkpoint, with the maps and the rounding of inputs.
    ///
    /// # Errors
    /// If a linear has a map of its output that runs online: that is no part of its matrix.
    pub fn of(graph: &Graph, tensors: &PartWeights) -> Result<Self> {
        for (weight, linear) in graph.weights.iter().zip(&tensors.linears) {
            if !linear.output.is_empty() {
                return Err(Error::input("is rotated after its product, and has no gradient here yet")
                    .hint("choose a recipe without online rotations of outputs")
                    .tensor(&weight.name));
            }
        }
        Ok(Self {
            weights: tensors.linears.iter().map(|l| l.decode()).collect(),
            biases: tensors.linears.iter().map(|l| l.bias.clone()).collect(),
            vectors: tensors.vectors.clone(),
            inputs: tensors.linears.iter().map(|l| Input::of(l)).collect(),
        })
    }

    /// All of them, borrowed.
    pub fn view(&self) -> View<'_> {
        View {
            weights: self.weights.iter().collect(),
            biases: self.biases.iter().map(Option::as_deref).collect(),
            vectors: self.vectors.iter().map(|v| &**v).collect(),
            inputs: self.inputs.iter().map(Option::as_ref).collect(),
        }
    }
}

/// The numbers of one graph where they lie: a tuner puts what it made for one step in the place of a weight.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// By the graph's weights, `[out, in]`.
    pub weights: Vec<&'a Mat>,
    /// By the graph's weights, `[out]`.
    pub biases: Vec<Option<&'a [f32]>>,
    /// By the graph's vectors.
    pub vectors: Vec<&'a [f32]>,
    /// By the graph's weights: what happens to the rows that each reads; empty where all read theirs as they are.
    pub inputs: Vec<Option<&'a Input>>,
}

impl View<'_> {
    /// What happens to the rows that a linear reads.
    pub(crate) fn input(&self, weight: WeightId) -> Option<&Input> {
        self.inputs.get(weight).copied().flatten()
    }

    /// Whether everything has the graph's shape.
    ///
    /// # Errors
    /// Names the first that has not.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let counts = [self.weights.len(), self.biases.len(), self.vectors.len()];
        if counts != [graph.weights.len(), graph.weights.len(), graph.vectors.len()] {
            return Err(Error::internal("parameters of another graph"));
        }
        for ((expected, found), bias) in graph.weights.iter().zip(&self.weights).zip(&self.biases) {
            let shape = [found.rows(), found.cols()];
            if shape != expected.shape {
                let reason = format!("has shape {shape:?}, where {:?} is needed", expected.shape);
                return Err(Error::input(reason).tensor(&expected.name));
            }
            let bias = bias.map(<[f32]>::len);
            if bias.is_some() != expected.has_bias || bias.is_some_and(|len| len != expected.shape[0]) {
                let reason = format!("has a bias of {:?} numbers, where the graph says otherwise", bias.unwrap_or(0));
                return Err(Error::input(reason).tensor(&expected.name));
            }
        }
        for (expected, found) in graph.vectors.iter().zip(&self.vectors) {
            if found.len() != expected.len() {
                let reason = format!("has {} numbers, where {} are needed", found.len(), expected.len());
                return Err(Error::input(reason).tensor(expected.name));
            }
        }
        Ok(())
    }
}
