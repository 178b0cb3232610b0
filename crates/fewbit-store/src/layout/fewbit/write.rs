use bytes::Bytes;
use fewbit_format::{
    ActivationGrid, Band, Dtype, Error, FloatCodes, FloatGrid, IntCodes, IntGrid, LATTICE_DIM, LatticeCodes, Numbers,
    Online, Result, SecondStage, Sides, SignCodes, SignGrid, Storage, TILE, TableCodes, TableGrid, Tensor,
    TrellisCodes, TwoOfFour, VectorCodes, Zeros, pack_bits, packed_len, tiles,
};
use half::f16;
use serde_json::Value;

use super::{config, numbers, online, scale_shape, sides, tile_shape};
use crate::layout::{Layout, Scheme, SideTensors};

/// Our own layout, for what no established one holds: any width, F32 scales, real offsets, reordered groups, bands.
///
/// `docs/format.md` has every byte.
pub struct Fewbit;

impl Fewbit {
    fn band(module: &str, codes: &IntCodes, suffix: &str) -> Vec<(String, Tensor)> {
        let is_tiled = codes.suits_tiles();
        let codes = if is_tiled { codes.in_tiles() } else { codes.in_rows() };
        let ([rows, cols], IntGrid { bits, group, .. }) = (codes.shape(), codes.grid());
        let named = |part: &str, tensor: Tensor| (format!("{module}.weight.{part}{suffix}"), tensor);
        let bytes = |shape: Vec<usize>, bytes: Bytes| Tensor { dtype: Dtype::U8, shape, bytes };
        let (shape, mut tensors) = if let Some(cells) = codes.cells() {
            let tiles = named("tiles", bytes(vec![rows / tiles::ROWS, tiles::tile_bytes(cols, bits)], cells.clone()));
            (tile_shape(group, rows, cols), vec![tiles])
        } else {
            let packed = bytes(vec![rows, packed_len(cols, bits)], codes.packed().clone());
            (scale_shape(group, rows, cols), vec![named("codes", packed)])
        };
        let numbers = |part: &str, n: &Numbers| numbers::tensors(&format!("{module}.weight.{part}"), suffix, n, &shape);
        tensors.extend(numbers("scales", codes.scales()));
        match codes.zeros() {
            Zeros::Middle => {}
            Zeros::Codes(zeros) => {
                let mut packed = vec![0; packed_len(zeros.len(), bits)];
                pack_bits(zeros, bits, &mut packed);
                tensors.push(named("zeros", bytes(vec![packed.len()], packed.into())));
            }
            Zeros::Offsets(offsets) => tensors.extend(numbers("offsets", offsets)),
            Zeros::Points(points) => tensors.extend(numbers("points", points)),
        }
        if let Some(index) = codes.group_index() {
            let index: Vec<i32> = index.iter().map(|k| *k as i32).collect();
            tensors.push(named("group_index", Tensor::from_i32(&[cols], &index)));
        }
        tensors
    }

    fn table(module: &str, codes: &TableCodes) -> Result<Vec<(String, Tensor)>> {
        let ([rows, cols], TableGrid { bits, group, .. }) = (codes.shape(), codes.grid());
        let named = |part: &str, tensor: Tensor| (format!("{module}.weight.{part}"), tensor);
        let (shape, levels) = (vec![rows, packed_len(cols, bits)], codes.grid().levels());
        let packed = Tensor { dtype: Dtype::U8, shape, bytes: codes.packed().to_vec().into() };
        let tables = codes.tables();
        let table = if tables.len() == levels {
            Tensor::from_f32(Dtype::F32, &[levels], tables)?
        } else if codes.has_integer_tables() {
            let bytes: Vec<u8> = tables.iter().map(|t| *t as i8 as u8).collect();
            Tensor { dtype: Dtype::I8, shape: vec![rows, levels], bytes: bytes.into() }
        } else {
            Tensor::from_f32(Dtype::F16, &[rows, levels], tables)?
        };
        let (name, shape) = (format!("{module}.weight.scales"), scale_shape(group, rows, cols));
        let mut tensors = vec![named("codes", packed)];
        tensors.extend(numbers::tensors(&name, "", codes.scales(), &shape));
        tensors.push(named("table", table));
        Ok(tensors)
    }

    fn float(module: &str, codes: &FloatCodes) -> Result<Vec<(String, Tensor)>> {
        let ([rows, cols], FloatGrid { element, group, scale }) = (codes.shape(), codes.grid());
        let named = |part: &str, tensor: Tensor| (format!("{module}.weight.{part}"), tensor);
        let shape = vec![rows, packed_len(cols, element.bits())];
        let scales =
            Tensor { dtype: scale.dtype(), shape: scale_shape(group, rows, cols), bytes: codes.scales().clone() };
        let mut tensors = vec![
            named("codes", Tensor { dtype: Dtype::U8, shape, bytes: codes.packed().clone() }),
            named("scales", scales),
        ];
        if let Some(global) = codes.global() {
            tensors.push(named("global_scale", Tensor::from_f32(Dtype::F32, &[1], &[global])?));
        }
        Ok(tensors)
    }
}

impl Fewbit {
    fn two_of_four(&self, module: &str, codes: &TwoOfFour) -> Result<Vec<(String, Tensor)>> {
        let [rows, cols] = codes.shape();
        let mut tensors = match codes.kept() {
            Storage::Dense(tensor) => vec![(format!("{module}.weight.kept"), tensor.clone())],
            kept => self.tensors(module, kept)?,
        };
        tensors.push(bytes(module, "mask", vec![rows, TwoOfFour::mask_bytes(cols)], codes.mask().to_vec()));
        Ok(tensors)
    }
}

/// A part of a module, bytes as they are.
fn bytes(module: &str, part: &str, shape: Vec<usize>, bytes: impl Into<Bytes>) -> (String, Tensor) {
    (format!("{module}.weight.{part}"), Tensor { dtype: Dtype::U8, shape, bytes: bytes.into() })
}

fn signs(module: &str, codes: &SignCodes) -> Vec<(String, Tensor)> {
    let ([rows, cols], SignGrid { signs, group, .. }) = (codes.shape(), codes.grid());
    let shape = [rows, group.per_row(cols), signs.numbers()];
    let packed = bytes(module, "codes", vec![rows, signs.row_bytes(cols)], codes.packed().to_vec());
    vec![packed, (format!("{module}.weight.numbers"), codes.numbers().tensor(&shape))]
}

fn lattice(module: &str, codes: &LatticeCodes) -> Vec<(String, Tensor)> {
    let ([rows, cols], grid) = (codes.shape(), codes.grid());
    let words = |codes: &[u16]| codes.iter().flat_map(|c| c.to_le_bytes()).collect::<Vec<u8>>();
    let per_row = cols / LATTICE_DIM;
    let scales = codes.scales().tensor(&scale_shape(grid.group, rows, cols));
    let mut tensors = vec![
        bytes(module, "codes", vec![rows, 2 * per_row], words(codes.codes())),
        (format!("{module}.weight.scales"), scales),
    ];
    if grid.second != SecondStage::None {
        let shape = vec![rows, usize::from(grid.second.bits()) / 8 * per_row];
        tensors.push(bytes(module, "residual", shape, codes.second().to_vec()));
    }
    tensors
}

fn vector(module: &str, codes: &VectorCodes) -> Vec<(String, Tensor)> {
    let ([rows, cols], grid) = (codes.shape(), codes.grid());
    let (len, [main, residual]) = (usize::from(grid.len), codes.packed());
    let strips = rows.div_ceil(len);
    let f16 = |part: &str, shape: Vec<usize>, values: &[f16]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (format!("{module}.weight.{part}"), Tensor { dtype: Dtype::F16, shape, bytes: bytes.into() })
    };
    let mut tensors = vec![
        bytes(module, "codes", vec![strips, packed_len(cols, grid.bits)], main.to_vec()),
        f16("codebook", vec![codes.codebook().len() / len, len], codes.codebook()),
    ];
    if grid.residual_bits > 0 {
        let shape = vec![strips, packed_len(cols, grid.residual_bits)];
        tensors.push(bytes(module, "residual", shape, residual.to_vec()));
    }
    if grid.has_columns {
        tensors.push(f16("columns", vec![2, cols], codes.columns()));
    }
    tensors
}

fn trellis(module: &str, codes: &TrellisCodes) -> Vec<(String, Tensor)> {
    let ([rows, cols], grid) = (codes.shape(), codes.grid());
    let shape = vec![rows.div_ceil(TILE), cols / TILE, grid.tile_bytes()];
    let scales = codes.scales().tensor(&scale_shape(grid.group, rows, cols));
    vec![bytes(module, "codes", shape, codes.packed().to_vec()), (format!("{module}.weight.scales"), scales)]
}

impl Layout for Fewbit {
    fn name(&self) -> &'static str {
        "fewbit"
    }

    fn can_hold_rows(&self, _: &Storage, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn can_hold_input(&self, _: &Storage, _: ActivationGrid, _: f32) -> Result<(), String> {
        Ok(())
    }

    fn has_caches(&self) -> bool {
        true
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        match storage {
            Storage::Dense(tensor) => Ok(vec![(format!("{module}.weight"), tensor.clone())]),
            Storage::Int(codes) => Ok(Self::band(module, codes, "")),
            Storage::Table(codes) => Self::table(module, codes),
            Storage::Signs(codes) => Ok(signs(module, codes)),
            Storage::Lattice(codes) => Ok(lattice(module, codes)),
            Storage::Vector(codes) => Ok(vector(module, codes)),
            Storage::Trellis(codes) => Ok(trellis(module, codes)),
            Storage::Float(codes) => Self::float(module, codes),
            Storage::TwoOfFour(codes) => self.two_of_four(module, codes),
            Storage::Ggml(blocks) => {
                let shape = vec![blocks.rows, blocks.bytes.len() / blocks.rows.max(1)];
                Ok(vec![bytes(module, "codes", shape, blocks.bytes.clone())])
            }
        }
    }

    fn band_tensors(&self, module: &str, bands: &[Band]) -> Result<Vec<(String, Tensor)>> {
        if let [band] = bands {
            return self.tensors(module, &band.storage);
        }
        let mut tensors = Vec::new();
        for (i, band) in bands.iter().enumerate() {
            let Storage::Int(codes) = &band.storage else {
                return Err(Error::input(format!(
                    "band {i} of `{module}` is not integer codes, which the `fewbit` layout needs"
                )));
            };
            tensors.extend(Self::band(module, codes, &format!(".{i}")));
        }
        Ok(tensors)
    }

    fn side_tensors(&self, module: &str, sides: &Sides) -> Result<SideTensors> {
        let mut tensors = sides.sparse.as_ref().map_or_else(Vec::new, |s| sides::sparse_tensors(module, s));
        let mut schemes = Vec::new();
        if let Some(low_rank) = &sides.low_rank {
            for (factor, storage) in sides::FACTORS.iter().zip([&low_rank.left, &low_rank.right]) {
                let name = format!("{module}.{factor}");
                tensors.extend(self.tensors(&name, storage)?);
                schemes.extend(Scheme::of(storage).map(|s| (name, Some(s))));
            }
        }
        Ok((tensors, schemes))
    }

    fn online_tensors(&self, module: &str, ends: [&[Online]; 2]) -> Result<Vec<(String, Tensor)>> {
        online::tensors(module, ends)
    }

    fn quantization_config(&self, modules: &[(String, Option<Scheme>)], cache: Option<ActivationGrid>) -> Value {
        config::quantization_config(modules, cache)
    }
}

#[cfg(test)]
mod tests {
    use fewbit_format::{Group, ScaleType};

    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        let grid = IntGrid { bits: 3, group: Group::Columns(2), symmetric: false, scale: ScaleType::F16 };
        let zeros = Zeros::Codes(vec![3, 1, 2, 4]);
        let codes = IntCodes::new(2, 4, grid, &[1, 7, 0, 5, 2, 2, 3, 4], vec![0.5, 2.0, 1.0, 0.25], zeros).unwrap();
        let tensors = Fewbit.tensors("M", &Storage::Int(codes.clone())).unwrap();
        let bytes: Vec<(&str, &[u8])> = tensors.iter().map(|(name, t)| (&**name, &*t.bytes)).collect();
        let expected: [(&str, &[u8]); 3] = [
            ("M.weight.codes", &[0x39, 0x0a, 0xd2, 0x08]),
            ("M.weight.scales", &[0x00, 0x38, 0x00, 0x40, 0x00, 0x3c, 0x00, 0x34]),
            ("M.weight.zeros", &[0x8b, 0x08]),
        ];
        assert_eq!(bytes, expected);
        let mut values = [0.0; 8];
        codes.decode_rows(0..2, &mut values);
        assert_eq!(values, [-1.0, 2.0, -2.0, 8.0, 0.0, 0.0, -0.25, 0.0]);
    }
}
