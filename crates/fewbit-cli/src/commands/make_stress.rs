use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use fewbit_engine::kinds::Element;
use fewbit_engine::{BlockTensors, fold, write_shard};
use fewbit_format::{Dtype, Error, Result, Tensor};
use fewbit_graph::{Edge, Graph, Part, Site, Symmetry, Tied, ValueId, sites};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Hooks, Layer, Rotations, Workspace, embed};
use fewbit_store::ModelFile;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::bundled;
use crate::session::Session;

/// Make a model that computes the same and is hard to round, for measuring methods
///
/// Channels of what linears read become 20 to 100 times as large, one unit of each MLP answers the first token with a
/// massive activation, and the values of attention get constant offsets; the weights undo all of it, so that the logits
/// stay. Weights are f32. Small models lack such things, and large ones have them.
///
/// JSON: out, channels, factor.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit make-stress demo demo-stress")]
pub(crate) struct MakeStress {
    /// The model that it is made from, of a family whose attention may have biases
    model: String,
    /// Folder to write
    out: PathBuf,
    /// Largest factor of an outlier channel; the smallest is a fifth of it
    #[arg(long, value_name = "F", default_value_t = 100.0)]
    factor: f32,
    /// Share of the channels that become outliers
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    share: f64,
    /// Of what is chosen at random
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// Tokens in which the first token's unit is looked for.
const TOKENS: usize = 64;

impl MakeStress {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        if !(self.factor.is_finite() && self.factor >= 1.0 && (0.0..=1.0).contains(&self.share)) {
            return Err(Error::input("`--factor` is at least 1, `--share` from 0 to 1"));
        }
        let file = ModelFile::open(&bundled::resolve_model(session, &self.model)?)?;
        std::fs::create_dir(&self.out).map_err(|e| Error::io("creating", &self.out, &e))?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let firsts = first_token_units(&file, &session.team())?;
        let (mut tensors, mut channels) = (Vec::new(), 0);
        for (part, graph) in file.model().parts() {
            let mut block = BlockTensors::of(&file.part(part)?);
            if let Part::Block(i) = part {
                for site in sites(graph) {
                    channels += self.stress(graph, &mut block, &site, firsts[i], &mut rng)?;
                }
            }
            add(&file, part, graph, &block, &mut tensors)?;
        }
        write_shard(&self.out.join("model.safetensors"), &tensors)?;
        self.write_rest(&file)?;
        session.output.text(&format!("{}: {channels} channels are outliers\n", self.out.display()))?;
        session.output.object(&json!({ "out": self.out, "channels": channels, "factor": self.factor }))
    }

    /// Makes one value hard to round; returns its outlier channels.
    fn stress(
        &self,
        graph: &Graph,
        block: &mut BlockTensors,
        site: &Site,
        first: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<usize> {
        let mut apply = |tied: Tied, element: &Element| {
            let symmetry = if matches!(element, Element::Shift(_)) { Symmetry::Shift } else { Symmetry::Diagonal };
            fold(graph, block, site, tied, &site.folds[&(symmetry, tied)], element)
        };
        let name = graph.values[site.value].name;
        let tie = |symmetry| site.folds.keys().find(|(s, _)| *s == symmetry).map(|(_, tied)| *tied);
        match (name, tie(Symmetry::Diagonal), tie(Symmetry::Shift)) {
            ("attn_in" | "mlp_in", Some(tied @ Tied::No), _) => {
                let is_outlier: Vec<bool> = (0..site.dim).map(|_| rng.random::<f64>() < self.share).collect();
                let factor = |o: &bool| if *o { self.factor * 0.2f32.powf(rng.random::<f32>()) } else { 1.0 };
                let factors = is_outlier.iter().map(factor).collect();
                apply(tied, &Element::Diagonal(factors))?;
                Ok(is_outlier.iter().filter(|o| **o).count())
            }
            ("down_in", Some(tied @ Tied::No), _) => {
                let factors = (0..site.dim).map(|c| if c == first { 10.0 * self.factor } else { 1.0 }).collect();
                apply(tied, &Element::Diagonal(factors)).map(|()| 1)
            }
            ("o_in", _, Some(tied)) => {
                let dim = match tied {
                    Tied::PerKvGroup { group, .. } => site.dim / group,
                    _ => site.dim,
                };
                let offsets =
                    (0..dim).map(|_| if rng.random::<f32>() < 0.25 { 3.0 * rng.random::<f32>() } else { 0.0 });
                apply(tied, &Element::Shift(offsets.collect())).map(|()| 0)
            }
            _ => Ok(0),
        }
    }

    fn write_rest(&self, file: &ModelFile) -> Result<()> {
        let mut config = fewbit_export::config(file, None, file.is_tied())?;
        config.insert("attention_bias".to_owned(), Value::Bool(true));
        for key in ["torch_dtype", "dtype"] {
            if config.contains_key(key) {
                config.insert(key.to_owned(), json!("float32"));
            }
        }
        self.file("config.json", format!("{:#}", Value::Object(config)).as_bytes())?;
        for (name, bytes) in fewbit_export::sidecars(file)? {
            self.file(&name, &bytes)?;
        }
        Ok(())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path: &Path = &self.out.join(name);
        std::fs::write(path, bytes).map_err(|e| Error::io("writing", path, &e))
    }
}

/// The tensors of a part in f32; attention's linears get biases, zeros where nothing was folded into them.
fn add(
    file: &ModelFile,
    part: Part,
    graph: &Graph,
    block: &BlockTensors,
    tensors: &mut Vec<(String, Tensor)>,
) -> Result<()> {
    for (w, weight) in graph.weights.iter().enumerate() {
        if part == Part::Head && file.is_tied() {
            continue;
        }
        let name = file.exported(part, &weight.name)?.name;
        let m = &block.weights[w];
        tensors.push((format!("{name}.weight"), Tensor::from_f32(Dtype::F32, &[m.rows(), m.cols()], m.data())?));
        let zeros = weight.name.starts_with("self_attn.").then(|| vec![0.0; m.rows()]);
        if let Some(bias) = block.biases[w].clone().or(zeros) {
            tensors.push((format!("{name}.bias"), Tensor::from_f32(Dtype::F32, &[bias.len()], &bias)?));
        }
    }
    for (vector, values) in graph.vectors.iter().zip(&block.vectors) {
        let name = file.exported(part, vector.name)?.name;
        tensors.push((name, Tensor::from_f32(Dtype::F32, &[values.len()], values)?));
    }
    Ok(())
}

/// Of each block, the unit of the MLP that answers the first token most, compared with all others.
fn first_token_units(file: &ModelFile, team: &Team) -> Result<Vec<usize>> {
    let weights = file.part(Part::Embed)?;
    let matrix = weights.linears.first().ok_or_else(|| Error::internal("a model without embedding"))?;
    let vocabulary = file.model().vocabulary as u32;
    let first = file.checkpoint().config().get("bos_token_id").and_then(Value::as_u64).unwrap_or(0) as u32;
    let ids: Vec<u32> = (0..TOKENS as u32).map(|t| if t == 0 { first } else { (7 + 13 * t) % vocabulary }).collect();
    let mut x = embed(&file.model().embed, matrix, &ids)?;
    let batch = Batch::sequences(1, TOKENS);
    let (rotations, mut workspace) = (Rotations::new(&file.model().ropes, &batch), Workspace::default());
    let mut units = Vec::new();
    for (i, graph) in file.model().blocks.iter().enumerate() {
        let layer = Layer::new(Arc::new(graph.clone()), file.part(Part::Block(i))?, Arithmetic::Exact)?;
        let value = graph.values.iter().position(|v| v.name == "down_in");
        let mut look = First { value, most: BTreeMap::new() };
        layer.run(team, &batch, &rotations, None, &mut look, &mut workspace, &mut x);
        let best = look.most.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        units.push(best.map_or(0, |(unit, _)| unit));
    }
    Ok(units)
}

/// By unit: the first token's magnitude ÷ the largest of all others.
struct First {
    value: Option<ValueId>,
    most: BTreeMap<usize, f32>,
}

impl Hooks for First {
    fn wants(&self, value: ValueId) -> bool {
        self.value == Some(value)
    }

    fn edge(&mut self, _: Edge, rows: &mut [f32], dim: usize) {
        for unit in 0..dim {
            let others = rows.iter().skip(dim + unit).step_by(dim).fold(1e-6f32, |m, v| m.max(v.abs()));
            self.most.insert(unit, rows[unit].abs() / others);
        }
    }
}
