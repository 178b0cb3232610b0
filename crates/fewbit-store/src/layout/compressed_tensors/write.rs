use fewbit_format::{
    ActivationFormat, ActivationGrid, Band, Dtype, Error, FloatCodes, Group, IntCodes, IntGrid, Minifloat, Result,
    ScaleType, Storage, Tensor, Zeros,
};
use serde_json::Value;

use super::settings;
use crate::layout::input;
use crate::layout::scheme::{FloatScheme, IntScheme};
use crate::layout::words::{pack_columns, pack_rows, transposed, words, words_for};
use crate::layout::{Layout, Scheme};

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
        if !matches!(grid.scale, ScaleType::F16 | ScaleType::BF16) {
            return Some(format!("pack-quantized holds scales in F16 or BF16, not {:?}", grid.scale));
        }
        if codes.has_nested() {
            return Some("pack-quantized holds scales, not codes of a second level in their place".to_owned());
        }
        if matches!(codes.zeros(), Zeros::Offsets(_) | Zeros::Points(_)) {
            return Some("pack-quantized holds integer zero points, not real offsets".to_owned());
        }
        codes.group_index().map(|_| "compressed-tensors has given up reordered groups (g_idx)".to_owned())
    }
}

impl Layout for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn can_hold_rows(&self, storage: &Storage, _: usize) -> Result<(), String> {
        match storage {
            Storage::Dense(_) => Ok(()),
            Storage::Int(codes) => Self::why_not(codes).map_or(Ok(()), Err),
            Storage::Table(_) => Err("compressed-tensors has no codes into tables".to_owned()),
            Storage::Signs(_) => Err("compressed-tensors has no codes of signs".to_owned()),
            Storage::TwoOfFour(_) => Err("masks of two in four weights are not written for it".to_owned()),
            Storage::Lattice(_) | Storage::Vector(_) | Storage::Trellis(_) => {
                Err("compressed-tensors has no codes that are vectors".to_owned())
            }
            Storage::Float(codes) if codes.global().is_some() != (codes.grid().scale == ScaleType::E4M3) => {
                Err("compressed-tensors holds a scale of the matrix above scales in E4M3, and only there".to_owned())
            }
            Storage::Float(codes) => settings::float_format(FloatScheme::of(codes)).map(|_| ()),
            Storage::Ggml(_) => Err("compressed-tensors does not hold blocks of ggml".to_owned()),
        }
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        self.refuse_what_it_cannot_hold(module, storage)?;
        let named = |suffix: &str, tensor: Tensor| (format!("{module}.{suffix}"), tensor);
        let codes = match storage {
            Storage::Int(codes) => codes,
            Storage::Dense(tensor) => return Ok(vec![named("weight", tensor.clone())]),
            Storage::Float(codes) => return float(module, codes),
            Storage::Table(_)
            | Storage::Signs(_)
            | Storage::TwoOfFour(_)
            | Storage::Lattice(_)
            | Storage::Vector(_)
            | Storage::Trellis(_)
            | Storage::Ggml(_) => {
                return Err(Error::internal("what it cannot hold was refused before"));
            }
        };
        let codes = codes.in_rows();
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
            named("weight_scale", Tensor::from_f32(scale.dtype(), scale_shape, &codes.scales().values())?),
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

    fn has_caches(&self) -> bool {
        true
    }

    fn can_hold_input(&self, _: &Storage, input: ActivationGrid, clip: f32) -> Result<(), String> {
        if clip < 1.0 {
            return Err("compressed-tensors has no share of the greatest magnitude".to_owned());
        }
        settings::why_not_input(input).map_or(Ok(()), Err)
    }

    fn rounded_tensors(
        &self,
        module: &str,
        bands: &[Band],
        format: &ActivationFormat,
    ) -> Result<Vec<(String, Tensor)>> {
        if format.clip < 1.0 {
            return Err(Error::internal(format!("`{module}` keeps a share of the greatest magnitude")));
        }
        let mut tensors = match bands {
            [Band { storage: Storage::Int(codes), .. }] if settings::is_bytes(IntScheme::of(codes), format.grid) => {
                bytes(module, codes)?
            }
            _ => self.band_tensors(module, bands)?,
        };
        tensors.extend(input::tensors(module, format)?);
        Ok(tensors)
    }

    fn quantization_config(&self, modules: &[(String, Option<Scheme>)], cache: Option<ActivationGrid>) -> Value {
        settings::quantization_config(modules, cache)
    }
}

/// `weight` F8_E4M3 or, for pairs of four bits, `weight_packed` U8; `weight_scale`, in the MX formats as U8; for NVFP4
/// `weight_global_scale` F32, which divides.
fn float(module: &str, codes: &FloatCodes) -> Result<Vec<(String, Tensor)>> {
    let ([rows, cols], grid) = (codes.shape(), codes.grid());
    let named = |suffix: &str, tensor: Tensor| (format!("{module}.{suffix}"), tensor);
    let weight = if grid.element == Minifloat::E4M3 {
        named("weight", Tensor { dtype: Dtype::F8E4M3, shape: vec![rows, cols], bytes: codes.packed().clone() })
    } else {
        named("weight_packed", Tensor { dtype: Dtype::U8, shape: vec![rows, cols / 2], bytes: codes.packed().clone() })
    };
    let shape = match grid.group {
        Group::Tensor => vec![1],
        Group::Row | Group::Columns(_) => vec![rows, grid.group.per_row(cols)],
        Group::Block([height, _]) => vec![rows.div_ceil(height), grid.group.per_row(cols)],
    };
    let dtype = if grid.scale == ScaleType::E8M0 { Dtype::U8 } else { grid.scale.dtype() };
    let mut tensors = vec![weight, named("weight_scale", Tensor { dtype, shape, bytes: codes.scales().clone() })];
    if let Some(global) = codes.global() {
        tensors.push(named("weight_global_scale", Tensor::from_f32(Dtype::F32, &[1], &[global])?));
    }
    Ok(tensors)
}

/// `int-quantized`: `weight` I8 `[out, in]`, one signed value a byte, and `weight_scale`.
fn bytes(module: &str, codes: &IntCodes) -> Result<Vec<(String, Tensor)>> {
    let ([rows, cols], grid) = (codes.shape(), codes.grid());
    let mut signed = vec![0; rows * cols];
    for (r, row) in signed.chunks_exact_mut(cols).enumerate() {
        codes.row_codes(r, row);
        row.iter_mut().for_each(|q| *q = q.wrapping_sub(128));
    }
    let scale_shape: &[usize] = if grid.group == Group::Tensor { &[1] } else { &[rows, 1] };
    let scales = Tensor::from_f32(grid.scale.dtype(), scale_shape, &codes.scales().values())?;
    let weight = Tensor { dtype: Dtype::I8, shape: vec![rows, cols], bytes: signed.into() };
    Ok(vec![(format!("{module}.weight"), weight), (format!("{module}.weight_scale"), scales)])
}
