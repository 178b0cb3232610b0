use fewbit_format::Mat;
use fewbit_graph::{Graph, WeightId};

/// Gradients of one graph's parameters: those that are there are asked for, and what a pass finds is added to them.
///
/// Work for what is not asked for is skipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// By the graph's weights.
    pub weights: Vec<Option<Mat>>,
    /// By the graph's weights.
    pub biases: Vec<Option<Vec<f32>>>,
    /// By the graph's vectors.
    pub vectors: Vec<Option<Vec<f32>>>,
    /// Whether the gradient of the graph's input is to be returned.
    pub wants_input: bool,
}

impl Gradients {
    /// Asks for nothing but the gradient of the input.
    pub fn none(graph: &Graph) -> Self {
        Self {
            weights: vec![None; graph.weights.len()],
            biases: vec![None; graph.weights.len()],
            vectors: vec![None; graph.vectors.len()],
            wants_input: true,
        }
    }

    /// Asks for everything.
    pub fn all(graph: &Graph) -> Self {
        let biased = |w: &fewbit_graph::Weight| w.has_bias.then(|| vec![0.0; w.shape[0]]);
        Self {
            weights: graph.weights.iter().map(|w| Some(Mat::zeros(w.shape[0], w.shape[1]))).collect(),
            biases: graph.weights.iter().map(biased).collect(),
            vectors: graph.vectors.iter().map(|v| Some(vec![0.0; v.len()])).collect(),
            wants_input: true,
        }
    }

    /// Asks for these weights, without their biases.
    pub fn of_weights(graph: &Graph, weights: impl IntoIterator<Item = WeightId>) -> Self {
        let mut gradients = Self::none(graph);
        for w in weights {
            let [rows, cols] = graph.weights[w].shape;
            gradients.weights[w] = Some(Mat::zeros(rows, cols));
        }
        gradients
    }

    /// Sets what is asked for to zero.
    pub fn clear(&mut self) {
        self.slices_mut().for_each(|s| s.fill(0.0));
    }

    /// Everything that is asked for: weights, biases, vectors, in the graph's order.
    pub fn slices(&self) -> impl Iterator<Item = &[f32]> {
        (self.weights.iter().flatten().map(Mat::data))
            .chain(self.biases.iter().flatten().map(Vec::as_slice))
            .chain(self.vectors.iter().flatten().map(Vec::as_slice))
    }

    /// As [`slices`](Self::slices), mutable.
    pub fn slices_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        (self.weights.iter_mut().flatten().map(Mat::data_mut))
            .chain(self.biases.iter_mut().flatten().map(Vec::as_mut_slice))
            .chain(self.vectors.iter_mut().flatten().map(Vec::as_mut_slice))
    }
}
