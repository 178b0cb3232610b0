//! Which programs can load a written model.

mod gguf_reader;

use std::collections::BTreeMap;

use fewbit_format::{Group, Minifloat, Number, Result};
use fewbit_store::ModelFile;
use fewbit_store::layout::{FloatScheme, HqqConfig, IntScheme, Quantization, ScaleKind, Scheme};

use crate::verify::{FUSED, Linear, linears, mixed};

/// A program that runs models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadedBy {
    /// vLLM, by what its Marlin, Cutlass and FP8 kernels take on one GPU.
    Vllm,
    /// transformers, with the package of the format.
    Transformers,
    /// llama.cpp, and what is built on it.
    LlamaCpp,
}

impl LoadedBy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vllm, Self::Transformers, Self::LlamaCpp];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Transformers => "transformers",
            Self::LlamaCpp => "llama.cpp",
        }
    }
}

/// What is in the way of a program: the tensor or module, if it is one, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Module path; empty where it is the whole model.
    pub module: String,
    /// A sentence.
    pub why: String,
}

impl Obstacle {
    fn of_model(why: impl Into<String>) -> Vec<Self> {
        vec![Self { module: String::new(), why: why.into() }]
    }
}

/// What keeps a program from loading a model; empty where it can, as far as the files show.
///
/// # Errors
/// If a linear has no name.
pub fn obstacles(file: &ModelFile, program: LoadedBy) -> Result<Vec<Obstacle>> {
    let gguf = file.checkpoint().gguf();
    match (program, file.quantization()) {
        (LoadedBy::LlamaCpp, _) if gguf.is_some() => Ok(long_names(file)),
        (LoadedBy::LlamaCpp, _) => {
            Ok(Obstacle::of_model("it reads GGUF files alone: `fewbit convert MODEL OUT.gguf --format gguf`"))
        }
        (_, Quantization::None) => gguf.map_or_else(|| Ok(Vec::new()), |gguf| gguf_reader::obstacles(gguf, program)),
        (_, Quantization::Fewbit(_)) => Ok(Obstacle::of_model(
            "the layout `fewbit` is known to fewbit alone: `fewbit convert` writes it in another where one holds it",
        )),
        (_, Quantization::Mlx(_)) => {
            Ok(Obstacle::of_model("the layout is MLX's: `fewbit convert` writes its numbers as `plain` or `fewbit`"))
        }
        (LoadedBy::Vllm, Quantization::TorchAo(_)) => Ok(Vec::new()),
        (LoadedBy::Vllm, Quantization::Hqq(config)) => hqq(file, config),
        (_, Quantization::Other(method)) => {
            Ok(Obstacle::of_model(format!("`{method}` is not known here, so that nothing can be said of it")))
        }
        (LoadedBy::Vllm, quantization) => vllm(file, quantization),
        (LoadedBy::Transformers, _) => Ok(Vec::new()),
    }
}

/// ggml has 64 bytes for a name, the last of which is zero.
fn long_names(file: &ModelFile) -> Vec<Obstacle> {
    let long = file.checkpoint().names().filter(|name| name.len() > 63);
    long.map(|name| Obstacle { module: name.to_owned(), why: "its name is longer than 63 bytes".to_owned() }).collect()
}

fn vllm(file: &ModelFile, quantization: &Quantization) -> Result<Vec<Obstacle>> {
    let linears = linears(file)?;
    let scheme_of = |l: &Linear| if l.is_quantized { quantization.scheme_of(&l.module).cloned() } else { None };
    let schemes: Vec<(String, Option<Scheme>)> = linears.iter().map(|l| (l.module.clone(), scheme_of(l))).collect();
    let mut found: Vec<Obstacle> = mixed(&schemes).into_iter().map(|(module, why)| Obstacle { module, why }).collect();
    for Product { module, scheme, cols, rows } in products(file, &linears, &schemes) {
        let input = quantization.input_of(&module).map(|grid| grid.number);
        let shape = [rows.iter().sum(), cols];
        let why_not = match (quantization, scheme.weights()) {
            (Quantization::CompressedTensors(_), Scheme::Int(scheme)) if input.is_none() => marlin(*scheme, shape),
            (Quantization::CompressedTensors(_), Scheme::Int(scheme)) => cutlass(*scheme, input),
            (_, Scheme::Float(scheme)) => floats(*scheme, &rows),
            _ => None,
        };
        found.extend(why_not.map(|why| Obstacle { module, why }));
    }
    Ok(found)
}

/// HQQ: one kernel, for groups along the inputs.
fn hqq(file: &ModelFile, config: &HqqConfig) -> Result<Vec<Obstacle>> {
    let is_taken = |module: &str| {
        let scheme = config.scheme_of(module);
        matches!(scheme, Some(Scheme::Int(IntScheme { bits: 4, group: Group::Columns(64), .. })))
    };
    let why = "its kernel has codes of 4 bits in groups of 64 along the inputs (axis 1), as config.json must say";
    let quantized = linears(file)?.into_iter().filter(|l| l.is_quantized && !is_taken(&l.module));
    Ok(quantized.map(|l| Obstacle { module: l.module, why: why.to_owned() }).collect())
}

/// Quantized linears that vLLM multiplies as one.
struct Product {
    /// The first of them.
    module: String,
    scheme: Scheme,
    cols: usize,
    /// Rows of each.
    rows: Vec<usize>,
}

fn products(file: &ModelFile, linears: &[Linear], schemes: &[(String, Option<Scheme>)]) -> Vec<Product> {
    let mut products: BTreeMap<(String, usize), Product> = BTreeMap::new();
    for (linear, (module, scheme)) in linears.iter().zip(schemes) {
        let Some(scheme) = scheme else { continue };
        let [rows, cols] = file.model().part(linear.part).weights[linear.weight].shape;
        let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
        let key = match FUSED.iter().position(|names| names.contains(&last)) {
            Some(group) => (parent.to_owned(), group),
            None => (module.clone(), FUSED.len()),
        };
        let new = || Product { module: module.clone(), scheme: scheme.clone(), cols, rows: Vec::new() };
        products.entry(key).or_insert_with(new).rows.push(rows);
    }
    products.into_values().collect()
}

/// Weights alone in integers: the Marlin kernels.
fn marlin(scheme: IntScheme, [rows, cols]: [usize; 2]) -> Option<String> {
    let IntScheme { bits, group, symmetric, .. } = scheme;
    let width = group.width(cols);
    match (bits, symmetric) {
        (4, _) | (8, true) => {}
        (8, false) => return Some("its kernels have no zero points beside codes of 8 bits".to_owned()),
        _ => return Some(format!("its kernels have codes of 4 and 8 bits, not of {bits}")),
    }
    if width != cols && ![32, 64, 128].contains(&width) {
        return Some(format!("its kernels have groups of 32, 64 and 128 columns, or rows, not groups of {width}"));
    }
    if !rows.is_multiple_of(64) || !cols.is_multiple_of(128) {
        return Some(format!("its kernels need outputs by 64 and inputs by 128, not [{rows}, {cols}]"));
    }
    None
}

/// Integer weights with rounded inputs.
fn cutlass(scheme: IntScheme, input: Option<Number>) -> Option<String> {
    let is_int8 = matches!(input, Some(Number::Int { bits: 8, .. }));
    match (scheme.bits, is_int8, scheme.group) {
        (8, true, Group::Row | Group::Tensor) if scheme.symmetric => None,
        (8, true, Group::Row | Group::Tensor) => Some("its integer products have no zero points of weights".to_owned()),
        (8, true, _) => Some("its integer products have one scale for a row or the matrix".to_owned()),
        (4, _, _) => None,
        (bits, ..) => Some(format!("it has no products of {bits}-bit weights with inputs that are rounded so")),
    }
}

/// Small floats, in matrices of so many rows that are multiplied as one.
fn floats(scheme: FloatScheme, members: &[usize]) -> Option<String> {
    match (scheme.element, scheme.scale, scheme.group) {
        (Minifloat::E4M3, ScaleKind::Plain, Group::Block([height, _])) => {
            let odd = members.iter().find(|rows| members.len() > 1 && !rows.is_multiple_of(height));
            odd.map(|rows| format!("it fuses matrices, and {rows} rows are no multiple of the blocks' {height}"))
        }
        (Minifloat::E4M3, ScaleKind::Plain, Group::Columns(g)) => {
            Some(format!("its FP8 products have no scales for groups of {g} columns"))
        }
        (Minifloat::E4M3, ScaleKind::Plain, _)
        | (Minifloat::E4M3 | Minifloat::E2M1, ScaleKind::PowerOfTwo, Group::Columns(32))
        | (Minifloat::E2M1, ScaleKind::Float8, Group::Columns(16)) => None,
        _ => Some("it has no products with floats that are stored so".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(bits: u8, group: Group, symmetric: bool) -> IntScheme {
        IntScheme { bits, group, symmetric, act_order: false, second: None }
    }

    #[test]
    fn kernels_that_are_missing_are_named() {
        let shape = [64, 256];
        assert_eq!(marlin(int(4, Group::Columns(128), false), shape), None);
        assert_eq!(marlin(int(8, Group::Row, true), shape), None);
        assert!(marlin(int(3, Group::Row, true), shape).unwrap().contains("not of 3"));
        assert!(marlin(int(8, Group::Row, false), shape).unwrap().contains("zero points"));
        assert!(marlin(int(4, Group::Columns(16), true), shape).unwrap().contains("not groups of 16"));
        assert!(marlin(int(4, Group::Row, true), [96, 256]).unwrap().contains("[96, 256]"));
        let int8 = Some(Number::Int { bits: 8, symmetric: true });
        assert_eq!(cutlass(int(8, Group::Row, true), int8), None);
        assert!(cutlass(int(8, Group::Columns(32), true), int8).unwrap().contains("one scale"));
    }

    #[test]
    fn blocks_of_scales_end_where_fused_matrices_do() {
        let scheme = |group| FloatScheme { element: Minifloat::E4M3, group, scale: ScaleKind::Plain };
        assert_eq!(floats(scheme(Group::Block([128, 128])), &[256, 128]), None);
        assert!(floats(scheme(Group::Block([128, 128])), &[256, 64]).unwrap().contains("64 rows"));
        assert_eq!(floats(scheme(Group::Block([128, 128])), &[64]), None);
        assert!(floats(scheme(Group::Columns(64)), &[64]).unwrap().contains("groups of 64"));
    }
}
