//! An element of any symmetry, folded at any site of any family, leaves the block's output as it was.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_engine::kinds::Element;
use fewbit_engine::{BlockTensors, fold};
use fewbit_format::{Dtype, Mat, QuantizedLinear, Storage, Tensor};
use fewbit_graph::{Fold, Graph, Part, Rope, Site, Symmetry, Tied, sites};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Layer, NoHooks, Rotations, Workspace};
use fewbit_store::{ModelFile, PartWeights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 7;
/// Largest difference, as a share of the largest value that the block adds to the residual stream.
const TOLERANCE: f32 = 1e-4;

#[test]
fn a_folded_element_changes_nothing() {
    for folder in folders() {
        let family = folder.file_name().unwrap().to_string_lossy().into_owned();
        let file = ModelFile::open(&folder).unwrap();
        for i in 0..file.model().blocks.len().min(if family == "demo-model" { 1 } else { usize::MAX }) {
            let block = Block::load(&file, i);
            let found = block.check(&format!("{family} block {i}"));
            println!("{family} block {i}: {}", found.join(", "));
        }
    }
}

#[test]
fn every_family_has_the_sites_that_transforms_use() {
    for folder in folders() {
        let file = ModelFile::open(&folder).unwrap();
        for graph in &file.model().blocks {
            let sites = sites(graph);
            let has = |name: &str, symmetry: Option<Symmetry>| {
                let named = sites.iter().filter(|s| graph.values[s.value].name == name);
                named.flat_map(|s| s.folds.keys()).any(|(y, _)| symmetry.is_none_or(|s| s == *y))
            };
            let diagonal = |name| has(name, Some(Symmetry::Diagonal));
            // One norm may serve both; OLMo 2 has none in front of either.
            let has_inputs = diagonal("block_in") || diagonal("attn_in") && diagonal("mlp_in");
            assert!(has_inputs != folder.ends_with("olmo2"), "{}", folder.display());
            assert!(has("o_in", None), "{}", folder.display());
        }
    }
}

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let entries = std::fs::read_dir(root.join("tests/families")).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = entries.filter(|p| p.is_dir()).collect();
    all.sort();
    assert!(all.len() >= 7, "{all:?}");
    all.push(root.join("assets/demo-model"));
    all
}

struct Block {
    graph: Arc<Graph>,
    ropes: Vec<Rope>,
    tensors: BlockTensors,
    team: Team,
    batch: Batch,
    input: Vec<f32>,
}

impl Block {
    /// Block `i`, each matrix widened to `Σ w² = 4 · rows`: tiny checkpoints are initialised so small that attention is
    /// nearly uniform, and a wrong fold of the keys would hardly show.
    fn load(file: &ModelFile, i: usize) -> Self {
        let weights = file.part(Part::Block(i)).unwrap();
        let widened = |linear: &Arc<QuantizedLinear>| {
            let mut w = linear.decode();
            let sum: f32 = w.data().iter().map(|v| v * v).sum();
            let factor = (w.rows() as f32 / sum).sqrt() * 2.0;
            w.data_mut().iter_mut().for_each(|v| *v *= factor);
            w
        };
        let tensors = BlockTensors {
            weights: weights.linears.iter().map(widened).collect(),
            biases: weights.linears.iter().map(|l| l.bias.clone()).collect(),
            vectors: weights.vectors,
        };
        let batch = Batch::sequences(2, 12);
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let input = (0..batch.tokens() * file.model().hidden).map(|_| random.random_range(-1.7f32..1.7)).collect();
        let graph = Arc::new(file.model().blocks[i].clone());
        Self { graph, ropes: file.model().ropes.clone(), tensors, team: Team::new(1), batch, input }
    }

    /// What the block adds to its input.
    fn added(&self, tensors: &BlockTensors) -> Vec<f32> {
        let linear = |(w, bias): (&Mat, &Option<Vec<f32>>)| {
            let tensor = Tensor::from_f32(Dtype::F32, &[w.rows(), w.cols()], w.data()).unwrap();
            Arc::new(QuantizedLinear::uniform(Storage::Dense(tensor), bias.clone()))
        };
        let linears = tensors.weights.iter().zip(&tensors.biases).map(linear).collect();
        let weights = PartWeights { linears, vectors: tensors.vectors.clone(), ..PartWeights::default() };
        let layer = Layer::new(self.graph.clone(), weights, Arithmetic::Exact).unwrap();
        let turn = Rotations::new(&self.ropes, &self.batch);
        let mut x = self.input.clone();
        layer.run(&self.team, &self.batch, &turn, None, &mut NoHooks, &mut Workspace::default(), &mut x);
        x.iter().zip(&self.input).map(|(y, x)| y - x).collect()
    }

    /// Folds an element of every symmetry at every site; says which there are.
    fn check(&self, place: &str) -> Vec<String> {
        let before = self.added(&self.tensors);
        let mut found = Vec::new();
        for site in sites(&self.graph) {
            let name = self.graph.values[site.value].name;
            for ((symmetry, tied), to) in &site.folds {
                let place = format!("{place}, {name}, {symmetry:?} {tied:?}");
                let element = element(*symmetry, *tied, &site);
                let right = distance(&before, &self.folded(&site, *tied, to, &element));
                assert!(right < TOLERANCE, "{place}: {right}");
                // Nobody undoes the element: the test must see that.
                let deaf = Site { consumers: Vec::new(), ..site.clone() };
                let to = Fold { queries: std::collections::BTreeSet::new(), ..to.clone() };
                let wrong = distance(&before, &self.folded(&deaf, *tied, &to, &element));
                assert!(wrong > 20.0 * TOLERANCE, "{place}: a wrong fold went unseen ({wrong})");
                found.push(format!("{name} {symmetry:?}"));
            }
        }
        found
    }

    fn folded(&self, site: &Site, tied: Tied, to: &Fold, element: &Element) -> Vec<f32> {
        let mut tensors = self.tensors.clone();
        fold(&self.graph, &mut tensors, site, tied, to, element).unwrap();
        self.added(&tensors)
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// A random element, tied as the site asks.
fn element(symmetry: Symmetry, tied: Tied, site: &Site) -> Element {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    // Values that the element is given for, and of how many it mixes.
    let (dim, part) = match tied {
        Tied::No => (site.dim, site.dim),
        Tied::PerHead { head_dim } | Tied::RopePairs { head_dim, .. } => (site.dim, head_dim),
        Tied::PerKvGroup { head_dim, group } => (site.dim / group, head_dim),
    };
    match symmetry {
        Symmetry::Permutation => {
            let mut order: Vec<usize> = (0..dim).collect();
            for head in order.chunks_exact_mut(part) {
                for i in (1..part).rev() {
                    head.swap(i, random.random_range(0..=i));
                }
            }
            Element::Permutation(order)
        }
        Symmetry::Diagonal => {
            let mut factors: Vec<f32> = (0..dim).map(|_| random.random_range(-1f32..1.0).exp()).collect();
            if let Tied::RopePairs { head_dim, rotary_dims, .. } = tied {
                for head in factors.chunks_exact_mut(head_dim) {
                    head.copy_within(..rotary_dims / 2, rotary_dims / 2);
                }
            }
            Element::Diagonal(factors)
        }
        Symmetry::Shift => Element::Shift((0..dim).map(|_| random.random_range(-1f32..1.0)).collect()),
        Symmetry::Orthogonal | Symmetry::Invertible => {
            let pairs = (0..dim / part).map(|_| {
                let (p, q) = (orthogonal(part, &mut random), orthogonal(part, &mut random));
                let stretch =
                    |_| if symmetry == Symmetry::Orthogonal { 1.0 } else { random.random_range(-0.7f64..0.7).exp() };
                let d: Vec<f64> = (0..part).map(stretch).collect();
                // P D Q, and Qᵀ D⁻¹ Pᵀ.
                let m =
                    Mat::from_fn(part, part, |r, c| (0..part).map(|k| p[r][k] * d[k] * q[k][c]).sum::<f64>() as f32);
                let inverse =
                    Mat::from_fn(part, part, |r, c| (0..part).map(|k| q[k][r] / d[k] * p[c][k]).sum::<f64>() as f32);
                (m, inverse)
            });
            let (blocks, inverses) = pairs.unzip();
            Element::Matrix { blocks, inverses }
        }
    }
}

/// Q of the QR decomposition of a random matrix: Gram–Schmidt over its rows, twice.
fn orthogonal(n: usize, random: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n);
    while rows.len() < n {
        let mut row: Vec<f64> = (0..n).map(|_| random.random_range(-1.0..1.0)).collect();
        for _ in 0..2 {
            for q in &rows {
                let along: f64 = row.iter().zip(q).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(q).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
        rows.push(row);
    }
    rows
}
