use fewbit_format::{
    Dtype, Error, FloatCodes, FloatGrid, Group, IntCodes, IntGrid, Result, ScaleType, Storage, Tensor, Zeros,
    packed_len,
};

use super::config::{CtConfig, Packing, Weights};
use crate::layout::module::Module;
use crate::layout::scheme::{FloatScheme, IntScheme, ScaleKind, Scheme};
use crate::layout::words::{transposed, unpack_columns, unpack_rows, words_for};

/// Reads a module whose packed tensors are there.
pub(in crate::layout) fn read(config: &CtConfig, m: Module<'_>) -> Result<Storage> {
    let group = config.group_of(m.name).ok_or_else(|| {
        Error::input(format!("`{}` has packed tensors, but no group of `config_groups` targets it", m.name))
            .hint("mend `targets` or `ignore` in the `quantization_config` of config.json")
    })?;
    match &group.weights {
        Weights::Coded { scheme: Scheme::Int(scheme), packing } => read_int(*scheme, *packing, m),
        Weights::Coded { scheme: Scheme::Float(scheme), packing } => read_float(*scheme, *packing, m),
        Weights::Unread(what) => {
            Err(Error::input(format!("`{}` is {what} ({}), which is not read yet", m.name, group.name))
                .hint("use the original checkpoint, or one in another format"))
        }
        Weights::Coded { .. } | Weights::Plain => {
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
    let groups = group.per_row(cols);
    let (scale, scales) = m.scales("weight_scale", &shapes_of_scales(group, rows, cols))?;
    let zeros = if m.has("weight_zero_point") {
        Zeros::Codes(read_zeros(scheme, m, groups)?)
    } else if scheme.symmetric {
        Zeros::Middle
    } else {
        return Err(Error::input("is missing, and the scheme is asymmetric").tensor(&m.full_name("weight_zero_point")));
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    let codes = IntCodes::new(rows, cols, grid, &codes, scales, zeros).map_err(|e| e.tensor(&m.full_name(name)))?;
    m.grouped_by("weight_g_idx", codes).map(Storage::Int)
}

fn read_float(scheme: FloatScheme, packing: Packing, m: Module<'_>) -> Result<Storage> {
    let (FloatScheme { element, group, scale: kind }, [rows, cols]) = (scheme, m.shape);
    let (name, dtype, width) = match packing {
        Packing::Words => ("weight_packed", Dtype::U8, packed_len(cols, element.bits())),
        Packing::Bytes => ("weight", Dtype::F8E4M3, cols),
    };
    let place = |e: Error| e.tensor(&m.full_name(name));
    let codes = m.part_as(name, dtype, &[rows, width])?;
    let (scale, scales) = m.stored_scales("weight_scale", &shapes_of_scales(group, rows, cols))?;
    let is_kind = match kind {
        ScaleKind::Plain => matches!(scale, ScaleType::F16 | ScaleType::BF16 | ScaleType::F32),
        ScaleKind::PowerOfTwo => scale == ScaleType::E8M0,
        ScaleKind::Float8 => scale == ScaleType::E4M3,
    };
    if !is_kind {
        return Err(Error::input(format!("holds {scale:?}, where the settings say {scheme}"))
            .tensor(&m.full_name("weight_scale")));
    }
    let global = if kind == ScaleKind::Float8 {
        m.scales("weight_global_scale", &[&[1][..], &[]])?.1.first().copied()
    } else {
        None
    };
    let grid = FloatGrid { element, group, scale };
    FloatCodes::new(rows, cols, grid, codes.bytes, scales, global).map(Storage::Float).map_err(place)
}

/// The shapes that scales may have, the usual one first.
fn shapes_of_scales(group: Group, rows: usize, cols: usize) -> Vec<Vec<usize>> {
    match group {
        Group::Tensor => vec![vec![1], vec![], vec![1, 1]],
        Group::Row => vec![vec![rows, 1], vec![rows]],
        Group::Columns(_) => vec![vec![rows, group.per_row(cols)]],
        Group::Block([height, _]) => vec![vec![rows.div_ceil(height), group.per_row(cols)]],
    }
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
        if tensor.len() == wanted {
            return Ok(unsigned(&tensor, bits));
        }
        return Err(Error::input(format!("has {} zero points, where {wanted} are needed", tensor.len()))
            .tensor(&m.full_name("weight_zero_point")));
    }
    let packed = m.part_as("weight_zero_point", Dtype::I32, &[words_for(rows, bits), groups])?;
    Ok(transposed(&unpack_columns(&packed.bytes, groups, rows, bits), rows))
}

/// Signed bytes as codes: `value + 2^(bits−1)`. What is out of range stays so and is refused with the codes.
fn unsigned(tensor: &Tensor, bits: u8) -> Vec<u8> {
    tensor.bytes.iter().map(|b| b.wrapping_add(1 << (bits - 1))).collect()
}
