//! Maps that run before and after a product.

use fewbit_format::{Dtype, Error, Online, Result, Tensor};
use fewbit_kernel::hadamard::Hadamard;

use crate::layout::module::Module;

/// The ends of a linear.
pub(super) const ENDS: [&str; 2] = ["input", "output"];
/// The tensors of one map: a Hadamard matrix's block and whether it is the inverse; its signs; a diagonal;
/// an order.
const PARTS: [&str; 4] = ["hadamard", "flips", "factors", "order"];
/// Maps at one end, at most.
const MOST: usize = 4;

/// The names that the maps of a module may have.
pub(super) fn names(module: &str) -> impl Iterator<Item = String> {
    let places = ENDS.iter().flat_map(|end| (0..MOST).map(move |i| (end, i)));
    places.flat_map(move |(end, i)| PARTS.map(|part| format!("{module}.{end}.{i}.{part}")))
}

/// The maps at both ends as tensors.
pub(super) fn tensors(module: &str, ends: [&[Online]; 2]) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for (end, maps) in ENDS.iter().zip(ends) {
        if maps.len() > MOST {
            return Err(Error::input(format!(
                "`{module}` has {} maps at one end, where {MOST} have a place",
                maps.len()
            )));
        }
        for (i, map) in maps.iter().enumerate() {
            let name = |part: &str| format!("{module}.{end}.{i}.{part}");
            match map {
                Online::Hadamard { block, flips, is_inverse } => {
                    let numbers = [*block as i32, i32::from(*is_inverse)];
                    tensors.push((name(PARTS[0]), Tensor::from_i32(&[2], &numbers)));
                    if !flips.is_empty() {
                        let byte =
                            |eight: &[bool]| eight.iter().enumerate().map(|(k, flip)| u8::from(*flip) << k).sum::<u8>();
                        let bytes: Vec<u8> = flips.chunks(8).map(byte).collect();
                        let shape = vec![bytes.len()];
                        tensors.push((name(PARTS[1]), Tensor { dtype: Dtype::U8, shape, bytes: bytes.into() }));
                    }
                }
                Online::Diagonal(factors) => {
                    tensors.push((name(PARTS[2]), Tensor::from_f32(Dtype::F32, &[factors.len()], factors)?));
                }
                Online::Reorder(from) => {
                    let (dtype, bytes): (_, Vec<u8>) = if Online::place_bits(from.len()) == 16 {
                        (Dtype::U16, from.iter().flat_map(|k| (*k as u16).to_le_bytes()).collect())
                    } else {
                        (Dtype::U32, from.iter().flat_map(|k| k.to_le_bytes()).collect())
                    };
                    tensors.push((name(PARTS[3]), Tensor { dtype, shape: vec![from.len()], bytes: bytes.into() }));
                }
            }
        }
    }
    Ok(tensors)
}

/// The maps at one end of a module, for rows of `dim` values.
pub(in crate::layout) fn read(m: Module<'_>, end: &str, dim: usize) -> Result<Vec<Online>> {
    let mut maps = Vec::new();
    for i in 0..MOST {
        let [hadamard, flips, factors, order] = PARTS.map(|part| format!("{end}.{i}.{part}"));
        if m.has(&hadamard) {
            let numbers = m.part_as(&hadamard, Dtype::I32, &[2])?.to_i32()?;
            let is_there = |b: &usize| *b > 0 && dim.is_multiple_of(*b) && Hadamard::of_order(*b).is_some();
            let block = usize::try_from(numbers[0]).ok().filter(is_there).ok_or_else(|| {
                Error::input(format!("asks for Hadamard matrices of order {} in rows of {dim}", numbers[0]))
                    .tensor(&m.full_name(&hadamard))
            })?;
            let flips = if m.has(&flips) {
                let bytes = m.part_as(&flips, Dtype::U8, &[dim.div_ceil(8)])?.bytes;
                (0..dim).map(|k| bytes[k / 8] >> (k % 8) & 1 == 1).collect()
            } else {
                Vec::new()
            };
            maps.push(Online::Hadamard { block, flips, is_inverse: numbers[1] != 0 });
        } else if m.has(&factors) {
            maps.push(Online::Diagonal(m.scales(&factors, &[&[dim]])?.1));
        } else if m.has(&order) {
            let from: Vec<u32> = if Online::place_bits(dim) == 16 {
                let bytes = m.part_as(&order, Dtype::U16, &[dim])?.bytes;
                bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect()
            } else {
                let bytes = m.part_as(&order, Dtype::U32, &[dim])?.bytes;
                bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
            };
            let map = Online::Reorder(from);
            if !map.fits(dim) {
                return Err(
                    Error::input(format!("does not name each of {dim} places once")).tensor(&m.full_name(&order))
                );
            }
            maps.push(map);
        } else {
            break;
        }
    }
    Ok(maps)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn maps_come_back_or_give_a_sentence() {
        let hadamard = |block, flips: &[usize], is_inverse| Online::Hadamard {
            block,
            flips: if flips.is_empty() { vec![] } else { (0..12).map(|i| flips.contains(&i)).collect() },
            is_inverse,
        };
        let order = Online::Reorder((0..12).map(|k| (5 * k + 3) % 12).collect());
        assert_eq!(order.inverse().inverse(), order);
        let input =
            vec![hadamard(4, &[1, 2, 11], false), Online::Diagonal(vec![0.5; 12]), hadamard(12, &[], true), order];
        let output = vec![hadamard(2, &[0], true)];
        let all: BTreeMap<String, Tensor> = tensors("m", [&input, &output]).unwrap().into_iter().collect();
        assert!(all.keys().all(|n| names("m").any(|k| k == *n)));
        let stored: u64 = all.values().map(|t| 8 * t.bytes.len() as u64).sum();
        assert_eq!(stored, input.iter().chain(&output).map(Online::stored_bits).sum::<u64>());
        let get = |tensors: &BTreeMap<String, Tensor>, dim| {
            read(Module { tensors, name: "m", shape: [dim; 2] }, "input", dim)
        };
        assert_eq!(get(&all, 12).unwrap(), input);
        let e = get(&all, 13).unwrap_err().to_string();
        assert_eq!(e, "tensor `m.input.0.hadamard`: asks for Hadamard matrices of order 4 in rows of 13");
        let broken = |name: &str, tensor: Tensor| {
            let mut broken = all.clone();
            broken.insert(format!("m.input.{name}"), tensor);
            get(&broken, 12).unwrap_err().to_string()
        };
        for block in [0, -4, 6, i32::MAX] {
            assert!(broken("0.hadamard", Tensor::from_i32(&[2], &[block, 0])).contains("order"));
        }
        assert!(
            broken("3.order", Tensor { dtype: Dtype::U16, shape: vec![12], bytes: vec![0; 24].into() })
                .contains("once")
        );
        assert!(broken("0.flips", Tensor::from_i32(&[2], &[1, 1])).contains("where U8 [2] is needed"));
        assert!(broken("1.factors", Tensor::from_f32(Dtype::F32, &[12], &[f32::NAN; 12]).unwrap()).contains("NaN"));
    }
}
