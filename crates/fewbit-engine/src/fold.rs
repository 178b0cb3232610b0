//! Folds an element of a site into the tensors of its block.

use fewbit_format::{Error, Mat, Result};
use fewbit_graph::{Fold, Graph, Producer, Site, Tied, WeightId};
use fewbit_store::PartWeights;

use crate::kinds::Element;

/// The tensors of one block in f32, as transforms change them.
#[derive(Clone, Debug)]
pub struct BlockTensors {
    /// By the graph's weights.
    pub weights: Vec<Mat>,
    /// By the graph's weights; a shift makes a bias where there was none.
    pub biases: Vec<Option<Vec<f32>>>,
    /// By the graph's vectors.
    pub vectors: Vec<Vec<f32>>,
}

impl BlockTensors {
    /// The tensors of a part, decoded.
    pub fn of(weights: &PartWeights) -> Self {
        Self {
            weights: weights.linears.iter().map(|l| l.decode()).collect(),
            biases: weights.linears.iter().map(|l| l.bias.clone()).collect(),
            vectors: weights.vectors.clone(),
        }
    }

    /// Adds `W x` to the bias of a linear.
    pub(crate) fn add_image(&mut self, weight: WeightId, x: &[f32]) {
        let w = &self.weights[weight];
        let image = |r: usize| w.row(r).iter().zip(x).map(|(v, x)| f64::from(v * x)).sum::<f64>() as f32;
        let bias = self.biases[weight].get_or_insert_with(|| vec![0.0; w.rows()]);
        bias.iter_mut().enumerate().for_each(|(r, b)| *b += image(r));
    }
}

/// Applies `element` at `site`: producers take `x' = x M`, consumers undo it.
///
/// # Errors
/// If the element does not fit the tie.
pub fn fold(
    graph: &Graph,
    tensors: &mut BlockTensors,
    site: &Site,
    tied: Tied,
    to: &Fold,
    element: &Element,
) -> Result<()> {
    let consumed = spread(element, tied, site.dim)?;
    // Grouped queries: what makes the value has one element per key-value head, what reads it one per query head.
    let made = match tied {
        Tied::PerKvGroup { .. } | Tied::RopePairs { .. } => element.clone(),
        _ => consumed.clone(),
    };
    for producer in &to.producers {
        produce(graph, tensors, *producer, &made)?;
    }
    if let Tied::RopePairs { head_dim, group, .. } = tied {
        let undone = inverse_transposed(&repeat_heads(element, head_dim, group)?)?;
        for producer in &to.queries {
            produce(graph, tensors, *producer, &undone)?;
        }
    }
    for w in &site.consumers {
        consume(tensors, *w, &consumed);
    }
    Ok(())
}

/// The element on the whole row that consumers read.
pub(crate) fn spread(element: &Element, tied: Tied, dim: usize) -> Result<Element> {
    let spread = match tied {
        Tied::PerKvGroup { head_dim, group } => repeat_heads(element, head_dim, group)?,
        _ => element.clone(),
    };
    let len = match &spread {
        Element::Permutation(order) => order.len(),
        Element::Diagonal(v) | Element::Shift(v) => v.len(),
        Element::Matrix { blocks, .. } => blocks.iter().map(Mat::rows).sum(),
    };
    if len == dim || matches!(tied, Tied::RopePairs { .. }) {
        return Ok(spread);
    }
    Err(Error::internal(format!("an element of {len} for a site of {dim}")))
}

/// Each head's part `group` times: from key-value heads to query heads.
fn repeat_heads(element: &Element, head_dim: usize, group: usize) -> Result<Element> {
    let repeat = |v: &[f32]| -> Vec<f32> {
        v.chunks_exact(head_dim).flat_map(|head| std::iter::repeat_n(head, group).flatten().copied()).collect()
    };
    Ok(match element {
        Element::Diagonal(v) => Element::Diagonal(repeat(v)),
        Element::Shift(v) => Element::Shift(repeat(v)),
        Element::Permutation(order) => {
            let heads =
                order.chunks_exact(head_dim).enumerate().flat_map(|(h, head)| (0..group).map(move |g| (h, g, head)));
            let mut out = Vec::with_capacity(order.len() * group);
            for (h, g, head) in heads {
                for at in head {
                    let within = at.checked_sub(h * head_dim).filter(|w| *w < head_dim);
                    let within = within.ok_or_else(|| Error::internal("a permutation that leaves its head"))?;
                    out.push((h * group + g) * head_dim + within);
                }
            }
            Element::Permutation(out)
        }
        Element::Matrix { blocks, inverses } => {
            let repeat = |ms: &[Mat]| ms.iter().flat_map(|m| std::iter::repeat_n(m.clone(), group)).collect();
            Element::Matrix { blocks: repeat(blocks), inverses: repeat(inverses) }
        }
    })
}

fn inverse_transposed(element: &Element) -> Result<Element> {
    match element {
        Element::Diagonal(v) => Ok(Element::Diagonal(v.iter().map(|f| 1.0 / f).collect())),
        _ => Err(Error::internal("only a diagonal passes between queries and keys")),
    }
}

/// `x' = x M` where `x` is made.
fn produce(graph: &Graph, tensors: &mut BlockTensors, producer: Producer, element: &Element) -> Result<()> {
    match producer {
        Producer::Rows(w) => {
            rows(&mut tensors.weights[w], element);
            if let Element::Shift(by) = element {
                let bias = tensors.biases[w].get_or_insert_with(|| vec![0.0; by.len()]);
                bias.iter_mut().zip(by).for_each(|(b, d)| *b += d);
            } else if let Some(bias) = tensors.biases[w].take() {
                let mut column = Mat::from_vec(bias.len(), 1, bias);
                rows(&mut column, element);
                tensors.biases[w] = Some(column.into_vec());
            }
        }
        Producer::Gain(v) | Producer::NormBias(v) => {
            let vector = &mut tensors.vectors[v];
            match element {
                Element::Diagonal(by) => vector.iter_mut().zip(by).for_each(|(g, f)| *g *= f),
                Element::Shift(by) => vector.iter_mut().zip(by).for_each(|(b, d)| *b += d),
                _ => {
                    let name = graph.vectors[v].name;
                    return Err(Error::internal("a norm takes factors and offsets only").tensor(name));
                }
            }
        }
    }
    Ok(())
}

/// Rows of a producer: `W' = Mᵀ W`.
fn rows(w: &mut Mat, element: &Element) {
    match element {
        Element::Permutation(order) => {
            let old = w.clone();
            for (r, from) in order.iter().enumerate() {
                w.row_mut(r).copy_from_slice(old.row(*from));
            }
        }
        Element::Diagonal(by) => {
            for (r, f) in by.iter().enumerate() {
                w.row_mut(r).iter_mut().for_each(|v| *v *= f);
            }
        }
        Element::Shift(_) => {}
        Element::Matrix { blocks, .. } => {
            let old = w.clone();
            let mut at = 0;
            for m in blocks {
                let n = m.rows();
                for r in 0..n {
                    let out = w.row_mut(at + r);
                    out.fill(0.0);
                    for k in 0..n {
                        let by = m[(k, r)];
                        out.iter_mut().zip(old.row(at + k)).for_each(|(o, v)| *o += by * v);
                    }
                }
                at += n;
            }
        }
    }
}

/// Columns of a consumer: `W' = W M⁻ᵀ`; a shift goes into the bias as `−W d`.
fn consume(tensors: &mut BlockTensors, weight: usize, element: &Element) {
    let w = &mut tensors.weights[weight];
    match element {
        Element::Permutation(order) => {
            for r in 0..w.rows() {
                let old = w.row(r).to_vec();
                for (v, from) in w.row_mut(r).iter_mut().zip(order) {
                    *v = old[*from];
                }
            }
        }
        Element::Diagonal(by) => {
            for r in 0..w.rows() {
                w.row_mut(r).iter_mut().zip(by).for_each(|(v, f)| *v /= f);
            }
        }
        Element::Shift(by) => {
            let undone: Vec<f32> = by.iter().map(|d| -d).collect();
            tensors.add_image(weight, &undone);
        }
        Element::Matrix { inverses, .. } => {
            for r in 0..w.rows() {
                let old = w.row(r).to_vec();
                let out = w.row_mut(r);
                let mut at = 0;
                for m in inverses {
                    let n = m.rows();
                    for j in 0..n {
                        out[at + j] = (0..n).map(|k| old[at + k] * m[(j, k)]).sum();
                    }
                    at += n;
                }
            }
        }
    }
}
