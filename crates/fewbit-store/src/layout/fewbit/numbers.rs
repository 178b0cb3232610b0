//! Scales, offsets and real zero points: each for itself, or as codes of a second level.

use fewbit_format::{Dtype, Error, Nested, NestedGrid, Numbers, Result, ScaleType, Tensor, packed_len};

use crate::layout::module::Module;
use crate::layout::scheme::SecondLevel;

/// The tensors of a second level: codes, scales, offsets.
const PARTS: [&str; 3] = ["codes", "scales", "offsets"];

/// The numbers that may have a second level.
pub(super) const NUMBERS: [&str; 3] = ["scales", "offsets", "points"];

/// The names of all parts of all numbers of a second level, after those of the weight.
pub(super) fn names() -> impl Iterator<Item = String> {
    NUMBERS.iter().flat_map(|n| PARTS.iter().map(move |p| format!("{n}.{p}")))
}

/// The tensors of numbers that are called `name`, with `end` behind it; each for itself they have shape `shape`.
pub(super) fn tensors(name: &str, end: &str, numbers: &Numbers, shape: &[usize]) -> Vec<(String, Tensor)> {
    let nested = match numbers {
        Numbers::Plain(values) => return vec![(format!("{name}{end}"), values.tensor(shape))],
        Numbers::Nested(nested) => nested,
    };
    let ([scales, offsets], packed) = (nested.parameters(), nested.packed().to_vec());
    let mut tensors = vec![
        (PARTS[0], Tensor { dtype: Dtype::U8, shape: vec![packed.len()], bytes: packed.into() }),
        (PARTS[1], scales.tensor(&[scales.len()])),
    ];
    if !offsets.is_empty() {
        tensors.push((PARTS[2], offsets.tensor(&[offsets.len()])));
    }
    tensors.into_iter().map(|(part, t)| (format!("{name}.{part}{end}"), t)).collect()
}

/// Reads the numbers `weight.NAME`, or those of the second level, and the type of scales.
pub(super) fn read(
    m: Module<'_>,
    name: &str,
    end: &str,
    second: Option<SecondLevel>,
    shape: &[usize],
) -> Result<(ScaleType, Numbers)> {
    let part = |of: &str| format!("weight.{name}.{of}{end}");
    let Some(second) = second.filter(|_| m.has(&part(PARTS[0]))) else {
        let scales = m.finite_scales(&format!("weight.{name}{end}"), &[shape])?;
        return Ok((scales.kind(), Numbers::Plain(scales)));
    };
    let place = |e: Error| e.tensor(&m.full_name(&part(PARTS[0])));
    let [rows, per_row] = *shape else {
        return Err(place(Error::input("one scale for the whole matrix has no second level")));
    };
    let SecondLevel { bits, levels, blocks } = second;
    // The tensor is there, and as long as the matrix asks for: so are all that follow from it.
    let numbers = rows.checked_mul(per_row).filter(|n| n.checked_mul(8).is_some());
    let numbers = numbers.ok_or_else(|| place(Error::input("is beyond what can be addressed")))?;
    let packed = m.part_as(&part(PARTS[0]), Dtype::U8, &[packed_len(numbers, bits)])?;
    let count = NestedGrid { bits, levels, blocks, scale: ScaleType::F16 }.count(rows, per_row);
    let (scale, scales) = m.scales(&part(PARTS[1]), &[[count]])?;
    let optional = |of: &str, shapes: &[[usize; 1]]| {
        if m.has(&part(of)) { m.scales(&part(of), shapes).map(|(_, values)| values) } else { Ok(Vec::new()) }
    };
    let offsets = optional(PARTS[2], &[[count], [1]])?;
    let grid = NestedGrid { bits, levels, blocks, scale };
    let nested = Nested::from_packed([rows, per_row], grid, packed.bytes.to_vec(), &scales, &offsets);
    Ok((scale, Numbers::Nested(nested.map_err(place)?)))
}
