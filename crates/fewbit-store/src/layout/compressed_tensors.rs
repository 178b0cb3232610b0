use std::collections::BTreeSet;

use fewbit_format::{Dtype, Error, Group, IntCodes, IntGrid, Result, ScaleType, Storage, Tensor, Zeros};
use serde_json::{Value, json};

use super::Layout;
use super::ct_config::{CtConfig, Packing, Weights};
use super::module::{Module, scale_dtype};
use super::scheme::{IntScheme, Scheme};
use super::words::{pack_columns, pack_rows, transposed, unpack_columns, unpack_rows, words_for};

/// The tensors beside `weight` that belong to a quantized weight and to the rounding of its input and output.
pub(super) const PARTS: &[&str] = &[
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
];

/// The release of compressed-tensors whose `pack-quantized` is written.
const VERSION: &str = "0.19.0";

/// Reads a module whose packed tensors are there.
pub(super) fn read(config: &CtConfig, m: Module<'_>) -> Result<Storage> {
    let group = config.group_of(m.name).ok_or_else(|| {
        Error::input(format!("`{}` has packed tensors, but no group of `config_groups` targets it", m.name))
            .hint("mend `targets` or `ignore` in the `quantization_config` of config.json")
    })?;
    match &group.weights {
        Weights::Int { scheme: Scheme::Int(scheme), packing } => read_int(*scheme, *packing, m),
        Weights::Unread(what) => {
            Err(Error::input(format!("`{}` is {what} ({}), which is not read yet", m.name, group.name))
                .hint("use the original checkpoint, or one with integer weights"))
        }
        Weights::Int { .. } | Weights::Plain => {
            Err(Error::input(format!("`{}` has packed tensors, but `{}` leaves weights plain", m.name, group.name)))
        }
    }
}

fn read_int(scheme: IntScheme, packing: Packing, m: Module<'_>) -> Result<Storage> {
    let IntScheme { bits, group, .. } = scheme;
    let [rows, cols] = m.shape;
    group.check(cols).map_err(|e| e.tensor(&m.full_name("weight")))?;
    let (codes, name) = match packing {
        Packing::Words => {
            check_shape(m)?;
            let packed = m.part_as("weight_packed", Dtype::I32, &[rows, words_for(cols, bits)])?;
            (unpack_rows(&packed.bytes, rows, cols, bits), "weight_packed")
        }
        Packing::Bytes => (unsigned(&m.part_as("weight", Dtype::I8, &[rows, cols])?, bits), "weight"),
    };
    let groups = cols / group.width(cols);
    let (scale, scales) = match group {
        Group::Tensor => m.scales("weight_scale", &[&[1], &[], &[1, 1]])?,
        Group::Row => m.scales("weight_scale", &[&[rows, 1], &[rows]])?,
        Group::Columns(_) => m.scales("weight_scale", &[&[rows, groups]])?,
    };
    let zeros = match m.has("weight_zero_point") {
        true => Zeros::Codes(read_zeros(scheme, m, groups)?),
        false if scheme.symmetric => Zeros::Middle,
        false => {
            return Err(
                Error::input("is missing, and the scheme is asymmetric").tensor(&m.full_name("weight_zero_point"))
            );
        }
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    let codes = IntCodes::new(rows, cols, grid, &codes, scales, zeros).map_err(|e| e.tensor(&m.full_name(name)))?;
    if !m.has("weight_g_idx") {
        return Ok(Storage::Int(codes));
    }
    let index = m.part_as("weight_g_idx", Dtype::I32, &[cols])?.to_i32()?;
    // -1 everywhere says that columns are in order.
    if index.iter().all(|k| *k == -1) {
        return Ok(Storage::Int(codes));
    }
    let index = index.iter().map(|k| *k as u32).collect();
    codes.with_group_index(index).map(Storage::Int).map_err(|e| e.tensor(&m.full_name("weight_g_idx")))
}

/// `weight_shape` must agree with the model, for the packed width alone does not tell the columns.
fn check_shape(m: Module<'_>) -> Result<()> {
    if !m.has("weight_shape") {
        return Ok(());
    }
    let shape = m.part("weight_shape")?.to_i32().map_err(|e| e.tensor(&m.full_name("weight_shape")))?;
    if shape.iter().map(|n| i64::from(*n)).eq(m.shape.iter().map(|n| *n as i64)) {
        return Ok(());
    }
    Err(Error::input(format!("says {shape:?}, where the config asks for {:?}", m.shape))
        .tensor(&m.full_name("weight_shape")))
}

/// Zero points `[rows, groups]`: packed along the rows, or a signed byte each.
fn read_zeros(scheme: IntScheme, m: Module<'_>, groups: usize) -> Result<Vec<u8>> {
    let IntScheme { bits, group, .. } = scheme;
    let rows = m.shape[0];
    let tensor = m.part("weight_zero_point")?;
    if tensor.dtype == Dtype::I8 {
        let wanted = if group == Group::Tensor { 1 } else { rows * groups };
        return match tensor.len() == wanted {
            true => Ok(unsigned(&tensor, bits)),
            false => Err(Error::input(format!("has {} zero points, where {wanted} are needed", tensor.len()))
                .tensor(&m.full_name("weight_zero_point"))),
        };
    }
    let packed = m.part_as("weight_zero_point", Dtype::I32, &[words_for(rows, bits), groups])?;
    Ok(transposed(&unpack_columns(&packed.bytes, groups, rows, bits), rows))
}

/// Signed bytes as codes: `value + 2^(bits−1)`. What is out of range stays so and is refused with the codes.
fn unsigned(tensor: &Tensor, bits: u8) -> Vec<u8> {
    tensor.bytes.iter().map(|b| b.wrapping_add(1 << (bits - 1))).collect()
}

/// compressed-tensors' `pack-quantized`: what vLLM and transformers load.
///
/// `weight_packed` i32 `[out, ⌈in·bits/32⌉]`, each row a little-endian bit stream of `signed value + 2^(bits−1)`;
/// `weight_scale` `[out, groups]`; `weight_zero_point` i32 `[⌈out·bits/32⌉, groups]`, each column such a stream;
/// `weight_shape` i64 `[2]`. (vLLM's kernels take 4 and 8 bits, per row or group.)
pub struct CompressedTensors;

impl CompressedTensors {
    fn why_not(codes: &IntCodes) -> Option<String> {
        let grid = codes.grid();
        if !(2..=8).contains(&grid.bits) {
            return Some(format!("pack-quantized holds 2 to 8 bits, not {}", grid.bits));
        }
        if grid.scale == ScaleType::F32 {
            return Some("pack-quantized holds scales in F16 or BF16, not F32".to_owned());
        }
        if matches!(codes.zeros(), Zeros::Offsets(_)) {
            return Some("pack-quantized holds integer zero points, not real offsets".to_owned());
        }
        codes.group_index().map(|_| "compressed-tensors has given up reordered groups (g_idx)".to_owned())
    }
}

impl Layout for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn can_hold(&self, storage: &Storage) -> Result<(), String> {
        match storage {
            Storage::Dense(_) => Ok(()),
            Storage::Int(codes) => Self::why_not(codes).map_or(Ok(()), Err),
            Storage::Ggml(_) => Err("compressed-tensors does not hold blocks of ggml".to_owned()),
        }
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        self.can_hold(storage)
            .map_err(|why| Error::input(why).place(format!("`{module}`")).hint("write it with `--format fewbit`"))?;
        let named = |suffix: &str, tensor: Tensor| (format!("{module}.{suffix}"), tensor);
        let codes = match storage {
            Storage::Int(codes) => codes,
            Storage::Dense(tensor) => return Ok(vec![named("weight", tensor.clone())]),
            Storage::Ggml(_) => return Err(Error::internal("blocks of ggml were refused before")),
        };
        let [rows, cols] = codes.shape();
        let IntGrid { bits, group, scale, .. } = codes.grid();
        let mut unpacked = vec![0; rows * cols];
        for (r, row) in unpacked.chunks_exact_mut(cols).enumerate() {
            codes.row_codes(r, row);
        }
        let groups = codes.groups_per_row();
        let packed = words([rows, words_for(cols, bits)], pack_rows(&unpacked, cols, bits));
        let scale_shape: &[usize] = if group == Group::Tensor { &[1] } else { &[rows, groups] };
        let shape = [rows, cols].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect::<Vec<u8>>();
        let mut tensors = vec![
            named("weight_packed", packed),
            named("weight_scale", Tensor::from_f32(scale_dtype(scale), scale_shape, codes.scales())?),
            named("weight_shape", Tensor { dtype: Dtype::I64, shape: vec![2], bytes: shape.into() }),
        ];
        if let Zeros::Codes(zeros) = codes.zeros() {
            tensors.push(named(
                "weight_zero_point",
                match group {
                    // One zero point is not packed.
                    Group::Tensor => Tensor {
                        dtype: Dtype::I8,
                        shape: vec![1],
                        bytes: zeros.iter().map(|z| z.wrapping_sub(1 << (bits - 1))).collect::<Vec<u8>>().into(),
                    },
                    _ => words([words_for(rows, bits), groups], pack_columns(&transposed(zeros, groups), rows, bits)),
                },
            ));
        }
        Ok(tensors)
    }

    /// One scheme targets `Linear` and ignores every plain linear by name; several target their modules by pattern
    /// over the blocks where this says neither more nor less than the list, else by name.
    fn quantization_config(&self, modules: &[(String, Option<Scheme>)]) -> Value {
        let mut schemes: Vec<IntScheme> = Vec::new();
        for scheme in modules.iter().filter_map(|(_, s)| int(s.as_ref())) {
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
        let by_class = schemes.len() == 1;
        let mut groups = serde_json::Map::new();
        for (i, scheme) in schemes.iter().enumerate() {
            let targets = if by_class { vec!["Linear".to_owned()] } else { ct_targets(modules, *scheme) };
            groups.insert(
                format!("group_{i}"),
                json!({
                    "input_activations": null,
                    "output_activations": null,
                    "targets": targets,
                    "weights": weights(*scheme),
                }),
            );
        }
        let plain = modules.iter().filter(|(_, s)| by_class && s.is_none()).map(|(name, _)| name);
        json!({
            "config_groups": groups,
            "format": "pack-quantized",
            "global_compression_ratio": null,
            "ignore": plain.collect::<Vec<_>>(),
            "kv_cache_scheme": null,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "version": VERSION,
        })
    }
}

fn words(shape: [usize; 2], bytes: Vec<u8>) -> Tensor {
    Tensor { dtype: Dtype::I32, shape: shape.to_vec(), bytes: bytes.into() }
}

fn int(scheme: Option<&Scheme>) -> Option<IntScheme> {
    match scheme {
        Some(Scheme::Int(s)) => Some(*s),
        _ => None,
    }
}

fn weights(scheme: IntScheme) -> Value {
    let (strategy, group_size) = match scheme.group {
        Group::Tensor => ("tensor", None),
        Group::Row => ("channel", None),
        Group::Columns(g) => ("group", Some(g)),
    };
    json!({
        "actorder": null,
        "block_structure": null,
        "dynamic": false,
        "group_size": group_size,
        "num_bits": scheme.bits,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": scheme.symmetric,
        "type": "int",
    })
}

/// The targets of one scheme: for each module its pattern over the blocks, where all linears of that pattern share
/// the scheme, else its name.
fn ct_targets(modules: &[(String, Option<Scheme>)], scheme: IntScheme) -> Vec<String> {
    let is_ours = |s: &Option<Scheme>| int(s.as_ref()) == Some(scheme);
    let foreign: BTreeSet<String> =
        modules.iter().filter(|(_, s)| !is_ours(s)).map(|(name, _)| over_blocks(name)).collect();
    let mut targets = Vec::new();
    for (name, _) in modules.iter().filter(|(_, s)| is_ours(s)) {
        let pattern = over_blocks(name);
        let target = if foreign.contains(&pattern) || !pattern.starts_with("re:") { name.clone() } else { pattern };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// `model.layers.3.mlp.up_proj` as the pattern of all blocks; a name without numbers as itself.
fn over_blocks(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !name.split('.').any(is_number) {
        return name.to_owned();
    }
    let parts: Vec<&str> = name.split('.').map(|p| if is_number(p) { r"\d+" } else { p }).collect();
    format!("re:{}$", parts.join(r"\."))
}
