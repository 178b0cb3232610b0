//! What each layout writes, it reads.

use std::collections::BTreeMap;

use fewbit_format::{
    ActivationGrid, Band, Blocks, Dtype, FloatCodes, FloatGrid, GgmlBlocks, GgmlType, Group, IntCodes, IntGrid,
    LatticeCodes, LatticeGrid, Levels, Minifloat, Nested, NestedGrid, Number, Numbers, ScaleType, SecondStage, Sharing,
    SignCodes, SignGrid, Signs, Storage, TableCodes, TableGrid, Tensor, TrellisCode, TrellisCodes, TrellisGrid,
    TwoOfFour, VectorCodes, VectorGrid, Zeros, pack_bits, packed_len,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn codes(rows: usize, cols: usize, grid: IntGrid, offsets: bool, seed: u64) -> IntCodes {
    let noise = |i: usize| ((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32;
    let code = |i: usize| (noise(i) & ((1 << grid.bits) - 1)) as u8;
    let groups = if grid.group == Group::Tensor { 1 } else { rows * (cols / grid.group.width(cols)) };
    let real = |i: usize| grid.scale.round(noise(i) as f32 * 1e-9 + 1e-3);
    let zeros = match (grid.symmetric, offsets) {
        (true, _) => Zeros::Middle,
        (false, false) => Zeros::Codes((0..groups).map(|i| code(i + 5_000)).collect()),
        (false, true) => Zeros::Offsets((0..groups).map(|i| -real(i + 6_000)).collect::<Vec<f32>>().into()),
    };
    let all: Vec<u8> = (0..rows * cols).map(code).collect();
    IntCodes::new(rows, cols, grid, &all, (0..groups).map(real).collect::<Vec<f32>>(), zeros).unwrap()
}

fn grids() -> impl Strategy<Value = (usize, usize, IntGrid)> {
    // Groups of 16 and 32 columns among them, and 32 rows: such lie in tiles.
    let width = prop_oneof![1usize..20, Just(16), Just(32)];
    let group = prop_oneof![Just(Group::Tensor), Just(Group::Row), width.prop_map(Group::Columns)];
    let scale = prop_oneof![Just(ScaleType::F16), Just(ScaleType::BF16), Just(ScaleType::F32)];
    let rows = prop_oneof![1usize..40, Just(32)];
    (rows, 1usize..4, 1u8..=8, group, any::<bool>(), scale).prop_map(|(rows, n, bits, group, symmetric, scale)| {
        let cols = if let Group::Columns(g) = group { g * n } else { [13, 32][rows / 32] * n };
        (rows, cols, IntGrid { bits, group, symmetric, scale })
    })
}

/// Numbers of a second level for the groups of these rows.
fn nested(shape: [usize; 2], blocks: Blocks, bits: u8, is_mapped: bool, offsets: usize, seed: u64) -> Numbers {
    let noise = |i: usize| ((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32;
    let levels = if is_mapped && bits == 8 { Levels::Dynamic } else { Levels::Codes };
    let grid = NestedGrid { bits, levels, blocks, scale: ScaleType::F16 };
    let count = grid.count(shape[0], shape[1]);
    let number = |i: usize| ScaleType::F16.round(noise(i) as f32 * 1e-9 + 0.5);
    let codes: Vec<u8> = (0..shape[0] * shape[1]).map(|i| (noise(i) & ((1 << bits) - 1)) as u8).collect();
    let offsets = [0, 1, count][offsets];
    let numbers = |count: usize, from: usize| (0..count).map(|i| number(from + i)).collect::<Vec<f32>>();
    let nested = Nested::new(shape, grid, &codes, &numbers(count, 1000), &numbers(offsets, 2000));
    Numbers::Nested(nested.unwrap())
}

fn quantization(layout: &dyn Layout, scheme: Option<Scheme>) -> Quantization {
    let settings = layout.quantization_config(&[("m".to_owned(), scheme), ("lm_head".to_owned(), None)], None);
    Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap()
}

/// Writes, reads, and finds the same, whether the codes lie in rows or in tiles.
fn check(layout: &dyn Layout, codes: &IntCodes) {
    let bytes = |codes: &IntCodes| {
        let tensors = layout.tensors("m", &Storage::Int(codes.clone())).unwrap();
        tensors.into_iter().map(|(name, t)| (name, t.shape, t.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(bytes(codes), bytes(&codes.in_tiles()));
    let storage = Storage::Int(codes.clone());
    let tensors: BTreeMap<String, Tensor> = layout.tensors("m", &storage).unwrap().into_iter().collect();
    let q = quantization(layout, Scheme::of(&storage));
    assert!(is_quantized(&q, &tensors, "m"));
    let names = tensor_names(&q, "m");
    for (name, tensor) in &tensors {
        assert!(names.contains(name), "{name}");
        assert_eq!(tensor.len() * tensor.dtype.size_bytes(), tensor.bytes.len(), "{name}");
    }
    let Storage::Int(back) = read_linear(&q, &tensors, "m", codes.shape()).unwrap() else {
        panic!("not integer codes")
    };
    assert_eq!(back, *codes);
    assert_eq!(back.cells().is_some(), layout.name() == "fewbit" && codes.suits_tiles());
}

/// Columns that belong to the groups in turn.
fn in_turns(codes: IntCodes) -> IntCodes {
    let (cols, groups) = (codes.shape()[1] as u32, codes.groups_per_row() as u32);
    codes.with_group_index((0..cols).map(|c| c % groups).collect()).unwrap()
}

/// The grid for rows that are `times` as long.
fn grid_of(grid: IntGrid, times: usize) -> IntGrid {
    let group = if let Group::Columns(g) = grid.group { Group::Columns(times * g) } else { grid.group };
    IntGrid { group, ..grid }
}

/// One scale of the matrix is stored for each row.
fn same_numbers(layout: &dyn Layout, codes: &IntCodes) {
    let storage = Storage::Int(codes.clone());
    let tensors: BTreeMap<String, Tensor> = layout.tensors("m", &storage).unwrap().into_iter().collect();
    let q = quantization(layout, Scheme::of(&storage));
    let back = read_linear(&q, &tensors, "m", codes.shape()).unwrap();
    let [rows, cols] = codes.shape();
    let (mut a, mut b) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
    storage.decode_rows(0..rows, &mut a);
    back.decode_rows(0..rows, &mut b);
    assert_eq!(a, b);
}

proptest! {
    #[test]
    fn fewbit_holds_every_grid((rows, cols, grid) in grids(), offsets: bool, reordered: bool, seed: u64) {
        let mut codes = codes(rows, cols, grid, offsets, seed);
        if reordered {
            codes = in_turns(codes);
        }
        check(&Fewbit, &codes);
    }

    /// Version 1 had rows alone.
    #[test]
    fn rows_are_read_where_tiles_would_be_written((rows, cols, grid) in grids(), seed: u64) {
        let codes = codes(rows, cols, grid, false, seed);
        prop_assume!(codes.suits_tiles());
        let mut tensors: BTreeMap<String, Tensor> =
            Fewbit.tensors("m", &Storage::Int(codes.clone())).unwrap().into_iter().collect();
        tensors.remove("m.weight.tiles").unwrap();
        let shape = match grid.group {
            Group::Tensor => vec![1],
            _ => vec![rows, codes.groups_per_row()],
        };
        tensors.insert("m.weight.scales".to_owned(), codes.scales().plain().unwrap().tensor(&shape));
        let bytes = |shape: Vec<usize>, bytes| Tensor { dtype: Dtype::U8, shape, bytes };
        let packed = bytes(vec![rows, packed_len(cols, grid.bits)], codes.packed().clone());
        tensors.insert("m.weight.codes".to_owned(), packed);
        if let Zeros::Codes(zeros) = codes.zeros() {
            let mut packed = vec![0; packed_len(zeros.len(), grid.bits)];
            pack_bits(zeros, grid.bits, &mut packed);
            tensors.insert("m.weight.zeros".to_owned(), bytes(vec![packed.len()], packed.into()));
        }
        let q = quantization(&Fewbit, Scheme::of(&Storage::Int(codes.clone())));
        let back = read_linear(&q, &tensors, "m", [rows, cols]).unwrap();
        prop_assert!(matches!(back, Storage::Int(back) if back == codes && back.cells().is_none()));
    }

    #[test]
    fn pack_quantized_holds_what_it_says((rows, cols, grid) in grids(), seed: u64) {
        let codes = codes(rows, cols, grid, false, seed);
        match CompressedTensors.can_hold(&Storage::Int(codes.clone())) {
            Ok(()) => check(&CompressedTensors, &codes),
            Err(why) => prop_assert!(grid.bits == 1 || grid.scale == ScaleType::F32, "{}", why),
        }
    }

    #[test]
    fn gptq_holds_what_it_says((rows, cols, grid) in grids(), is_v2: bool, reordered: bool, seed: u64) {
        let (layout, mut codes) = (Gptq { is_v2 }, codes(32 * rows, 32 * cols, grid_of(grid, 32), false, seed));
        if reordered {
            codes = in_turns(codes);
        }
        match layout.can_hold(&Storage::Int(codes.clone())) {
            Ok(()) if grid.group == Group::Tensor => same_numbers(&layout, &codes),
            Ok(()) => check(&layout, &codes),
            Err(why) => {
                let is_v1 = !is_v2 && !grid.symmetric;
                let is_odd = ![2, 3, 4, 8].contains(&grid.bits) || grid.scale == ScaleType::F32;
                prop_assert!(is_v1 || is_odd, "{}", why);
            }
        }
    }

    #[test]
    fn awq_holds_what_it_says((rows, cols, grid) in grids(), seed: u64) {
        let grid = IntGrid { bits: 4, ..grid };
        let codes = codes(8 * rows, cols, grid, false, seed);
        match Awq.can_hold(&Storage::Int(codes.clone())) {
            Ok(()) if grid.group == Group::Tensor => same_numbers(&Awq, &codes),
            Ok(()) => check(&Awq, &codes),
            Err(why) => prop_assert!(grid.scale == ScaleType::F32, "{}", why),
        }
    }

    /// Any tensor may be damaged in type, shape or presence: a sentence, never a panic.
    #[test]
    fn damage_gives_a_sentence((rows, cols, grid) in grids(), which: prop::sample::Index, how in 0..4, fewbit: bool, seed: u64) {
        let grid = IntGrid { bits: grid.bits.max(2), scale: ScaleType::F16, ..grid };
        let storage = Storage::Int(codes(rows, cols, grid, false, seed));
        let layout: &dyn Layout = if fewbit { &Fewbit } else { &CompressedTensors };
        let mut tensors: BTreeMap<String, Tensor> = layout.tensors("m", &storage).unwrap().into_iter().collect();
        let name = which.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
        let tensor = tensors.get_mut(&name).unwrap();
        match how {
            0 => { tensors.remove(&name); }
            // One row after another: as a matrix, it is whole packed codes of some shape.
            1 => *tensor = Tensor::from_i32(&[15], &[-1; 15]),
            2 => tensor.shape.push(2),
            _ => tensor.dtype = Dtype::F64,
        }
        let q = quantization(layout, Scheme::of(&storage));
        // Only the shape is redundant in pack-quantized.
        if let Err(e) = read_linear(&q, &tensors, "m", [rows, cols]) {
            prop_assert!(e.to_string().starts_with("tensor `m.weight"), "{}", e);
        } else {
            prop_assert_eq!(name, "m.weight_shape");
        }
    }
}

proptest! {
    #[test]
    fn scales_of_scales_come_back_or_give_a_sentence(
        (rows, groups, bits) in (1usize..40, 1usize..5, prop::sample::select(vec![1u8, 2, 3, 5, 6, 8])),
        blocks in prop::sample::select(vec![Blocks::Rows(16), Blocks::Rows(3), Blocks::Flat(7), Blocks::Flat(256)]),
        (kind, is_mapped, offsets, how) in (0usize..4, any::<bool>(), 0usize..3, 0..5),
        which: prop::sample::Index,
        seed: u64,
    ) {
        let (cols, group) = (4 * groups, Group::Columns(4));
        let numbers = |seed| nested([rows, groups], blocks, bits, is_mapped, offsets, seed);
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 8) as u8).collect();
        let grid = IntGrid { bits: 3, group, symmetric: kind == 0, scale: ScaleType::F16 };
        let int = |zeros| IntCodes::new(rows, cols, grid, &codes, numbers(seed), zeros).map(Storage::Int).unwrap();
        let storage = match kind {
            0 => int(Zeros::Middle),
            1 => int(Zeros::Offsets(numbers(seed + 1))),
            2 => int(Zeros::Points(numbers(seed + 1))),
            _ => {
                let grid = TableGrid { bits: 3, group, scale: ScaleType::F16 };
                let levels = (0..8).map(|i| i as f32).collect();
                TableCodes::new(rows, cols, grid, &codes, numbers(seed), levels).map(Storage::Table).unwrap()
            }
        };
        prop_assert!(CompressedTensors.can_hold(&storage).is_err());
        let mut tensors: BTreeMap<String, Tensor> = Fewbit.tensors("m", &storage).unwrap().into_iter().collect();
        let q = quantization(&Fewbit, Scheme::of(&storage));
        let names = tensor_names(&q, "m");
        prop_assert!(is_quantized(&q, &tensors, "m") && tensors.keys().all(|t| names.contains(t)));
        let stored: u64 = tensors.values().map(|t| 8 * t.bytes.len() as u64).sum();
        prop_assert_eq!(stored.div_ceil(8), storage.stored_bits().div_ceil(8));
        let name = which.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
        // Offsets of a second level may be absent.
        let may_lack = name.ends_with("s.offsets");
        match how {
            0 if !may_lack => { tensors.remove(&name); }
            1 => { tensors.insert(name, Tensor::from_i32(&[3, 5], &[-1; 15])); }
            2 => tensors.get_mut(&name).unwrap().shape.push(2),
            _ => {
                let back = read_linear(&q, &tensors, "m", [rows, cols]).unwrap();
                prop_assert_eq!(format!("{back:?}"), format!("{storage:?}"));
                return Ok(());
            }
        }
        let e = read_linear(&q, &tensors, "m", [rows, cols]).unwrap_err();
        prop_assert!(e.to_string().starts_with("tensor `m.weight"), "{}", e);
        for size in [usize::MAX, usize::MAX / 16, 1 << 60] {
            prop_assert!(read_linear(&q, &tensors, "m", [size, 16]).is_err());
        }
    }
}

proptest! {
    #[test]
    fn codes_into_tables_come_back_or_give_a_sentence(
        (rows, cols, grid) in grids(),
        own_tables: bool,
        of_integers: bool,
        how in 0..5,
        which: prop::sample::Index,
        seed: u64,
    ) {
        let grid = TableGrid { bits: grid.bits, group: grid.group, scale: grid.scale };
        let number = |i: usize| (seed.wrapping_mul(2 * i as u64 + 1) >> 41) as u32;
        let codes: Vec<u8> = (0..rows * cols).map(|i| (number(i) % grid.levels() as u32) as u8).collect();
        let groups = if grid.group == Group::Tensor { 1 } else { rows * (cols / grid.group.width(cols)) };
        let scales = (0..groups).map(|k| grid.scale.round(1.0 + number(k) as f32 / 1e7)).collect::<Vec<f32>>();
        let tables = grid.levels() * if own_tables { rows } else { 1 };
        let level = |i| if of_integers { (number(i) % 255) as f32 - 127.0 } else { number(i) as f32 / 1e6 - 4.0 };
        let tables = (0..tables).map(|i| ScaleType::F16.round(level(i))).collect();
        let codes = TableCodes::new(rows, cols, grid, &codes, scales, tables).unwrap();
        let storage = Storage::Table(codes.clone());
        prop_assert!(CompressedTensors.can_hold(&storage).unwrap_err().contains("tables"));
        let mut tensors: BTreeMap<String, Tensor> = Fewbit.tensors("m", &storage).unwrap().into_iter().collect();
        let q = quantization(&Fewbit, Scheme::of(&storage));
        let names = tensor_names(&q, "m");
        prop_assert!(is_quantized(&q, &tensors, "m") && tensors.keys().all(|t| names.contains(t)));
        let name = which.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
        match how {
            0 => { tensors.remove(&name); }
            1 => { tensors.insert(name, Tensor::from_i32(&[3, 5], &[-1; 15])); }
            2 => tensors.get_mut(&name).unwrap().shape.push(2),
            _ => {
                let Storage::Table(back) = read_linear(&q, &tensors, "m", [rows, cols]).unwrap() else {
                    panic!("no tables")
                };
                prop_assert_eq!(back, codes);
                return Ok(());
            }
        }
        let e = read_linear(&q, &tensors, "m", [rows, cols]).unwrap_err();
        prop_assert!(e.to_string().starts_with("tensor `m.weight"), "{}", e);
    }
}

proptest! {
    #[test]
    fn small_floats_come_back_or_give_a_sentence(
        (rows, group, width) in (1usize..20, 0usize..5, 1usize..5),
        element in prop::sample::select(vec!["e2m1", "e3m0", "e2m3", "e4m3", "e5m2"]),
        scale in prop::sample::select(vec![ScaleType::F16, ScaleType::F32, ScaleType::E8M0, ScaleType::E4M3]),
        is_under: bool,
        how in 0..5,
        which: prop::sample::Index,
        seed: u64,
    ) {
        let group = [Group::Tensor, Group::Row, Group::Columns(16), Group::Columns(32), Group::Block([7, 9])][group];
        let cols = 32 * width;
        let grid = FloatGrid { element: Minifloat::parse(element).unwrap(), group, scale };
        let number = |i: usize| (seed.wrapping_mul(2 * i as u64 + 1) >> 41) as u32;
        let level = |i: usize| grid.element.encode(number(i) as f32 / 1e6 - 4.0);
        let mut packed = vec![0; rows * packed_len(cols, grid.element.bits())];
        for (r, out) in packed.chunks_exact_mut(packed_len(cols, grid.element.bits())).enumerate() {
            let codes: Vec<u8> = (0..cols).map(|c| level(r * cols + c)).collect();
            pack_bits(&codes, grid.element.bits(), out);
        }
        let scales: Vec<f32> = (0..group.count(rows, cols)).map(|k| scale.round(1.0 + number(k) as f32 / 1e7)).collect();
        let global = (is_under && scale == ScaleType::E4M3).then_some(37.5);
        let codes =
            FloatCodes::new(rows, cols, grid, packed.into(), scale.to_bytes(&scales).into(), global).unwrap();
        let storage = Storage::Float(codes.clone());
        for layout in [&Fewbit as &dyn Layout, &CompressedTensors] {
            if layout.can_hold(&storage).is_err() {
                prop_assert!(layout.name() == "compressed-tensors" && layout.tensors("m", &storage).is_err());
                continue;
            }
            let mut tensors: BTreeMap<String, Tensor> = layout.tensors("m", &storage).unwrap().into_iter().collect();
            let q = quantization(layout, Scheme::of(&storage));
            let names = tensor_names(&q, "m");
            prop_assert!(is_quantized(&q, &tensors, "m") && tensors.keys().all(|t| names.contains(t)));
            let name = which.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
            match how {
                0 if !name.ends_with("global_scale") => { tensors.remove(&name); }
                1 => { tensors.insert(name, Tensor::from_i32(&[3, 5], &[-1; 15])); }
                2 => tensors.get_mut(&name).unwrap().shape.push(2),
                _ => {
                    let Storage::Float(back) = read_linear(&q, &tensors, "m", [rows, cols]).unwrap() else {
                        panic!("no floats")
                    };
                    prop_assert_eq!(back, codes.clone());
                    continue;
                }
            }
            let e = read_linear(&q, &tensors, "m", [rows, cols]).unwrap_err();
            prop_assert!(e.to_string().contains("tensor `m.weight"), "{}", e);
        }
    }
}

/// One storage of each kind whose codes are vectors.
fn vectors(seed: u64) -> Vec<Storage> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as u16
    };
    let group = [Group::Tensor, Group::Row, Group::Columns(16)][usize::from(next() % 3)];
    let (rows, cols) = (usize::from(1 + next() % 40), usize::from(16 * (1 + next() % 4)));
    let groups = if group == Group::Tensor { 1 } else { rows * (cols / group.width(cols)) };
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][usize::from(next() % 3)];
    let scales: Vec<f32> = (0..groups).map(|_| scale.round(f32::from(next()) / 3e4)).collect();
    let second = [SecondStage::None, SecondStage::E8Short, SecondStage::E8P][usize::from(next() % 3)];
    let mut codes = |count: usize, bits: u8| -> Vec<u16> {
        if bits == 0 {
            Vec::new()
        } else {
            (0..count).map(|_| (u32::from(next()) & ((1 << bits) - 1)) as u16).collect()
        }
    };
    let count = rows * cols / 8;
    let grid = LatticeGrid { second, group, scale };
    let lattice = LatticeCodes::new(rows, cols, grid, codes(count, 16), &codes(count, second.bits()), &scales);
    let tile_bits = 256 + 8 * (codes(1, 7)[0] % 64);
    let grid = TrellisGrid { state_bits: 12, tile_bits, code: TrellisCode::OneMad, group, scale };
    let stream = codes(rows.div_ceil(16) * cols / 16 * grid.tile_bytes(), 8).into_iter().map(|b| b as u8).collect();
    let trellis = TrellisCodes::new(rows, cols, grid, stream, &scales);
    let (len, residual_bits) = (2 << (codes(1, 2)[0] as u8), codes(1, 2)[0] as u8);
    let grid = VectorGrid { len, bits: 5, residual_bits, has_columns: codes(1, 1)[0] == 1 };
    let count = rows.div_ceil(usize::from(len)) * cols;
    let (main, residual) = (codes(count, 5), codes(count, residual_bits));
    let mut numbers = |count: usize| codes(count, 10).into_iter().map(|c| f32::from(c) / 8.0).collect::<Vec<f32>>();
    let (book, columns) =
        (numbers(grid.entries() * usize::from(len)), numbers(if grid.has_columns { 2 * cols } else { 0 }));
    let vector = VectorCodes::new(rows, cols, grid, &main, &residual, book, columns);
    vec![Storage::Lattice(lattice.unwrap()), Storage::Trellis(trellis.unwrap()), Storage::Vector(vector.unwrap())]
}

proptest! {
    #[test]
    fn codes_that_are_vectors_come_back_or_give_a_sentence(how in 0..5, which: prop::sample::Index, seed: u64) {
        for storage in vectors(seed) {
            prop_assert!(CompressedTensors.can_hold(&storage).unwrap_err().contains("vectors"));
            let shape = storage.shape();
            let mut tensors: BTreeMap<String, Tensor> = Fewbit.tensors("m", &storage).unwrap().into_iter().collect();
            let q = quantization(&Fewbit, Scheme::of(&storage));
            let names = tensor_names(&q, "m");
            prop_assert!(is_quantized(&q, &tensors, "m") && tensors.keys().all(|t| names.contains(t)));
            let stored: u64 = tensors.values().map(|t| 8 * t.bytes.len() as u64).sum();
            prop_assert_eq!(stored, storage.stored_bits());
            let name = which.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
            match how {
                0 => { tensors.remove(&name); }
                1 => { tensors.insert(name, Tensor::from_i32(&[3, 5], &[-1; 15])); }
                2 => tensors.get_mut(&name).unwrap().shape.push(2),
                _ => {
                    let back = read_linear(&q, &tensors, "m", shape).unwrap();
                    prop_assert_eq!(format!("{back:?}"), format!("{storage:?}"));
                    continue;
                }
            }
            let e = read_linear(&q, &tensors, "m", shape).unwrap_err();
            prop_assert!(e.to_string().starts_with("tensor `m.weight"), "{}", e);
            // Sizes that settings alone would make huge are refused before anything is allocated.
            for size in [usize::MAX, usize::MAX / 16, 1 << 60] {
                prop_assert!(read_linear(&q, &tensors, "m", [size, 16]).is_err());
            }
        }
    }
}

/// Codes of signs, and two weights in four columns, in integers and in floats.
fn signs_and_masks(seed: u64) -> Vec<Storage> {
    let number = |i: usize| ((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
    let kinds = [
        Signs::Planes { count: 1 + (number(0) % 8) as u8, has_offset: number(1).is_multiple_of(2) },
        Signs::Ternary,
        Signs::Range,
    ];
    let (rows, cols) = (1 + number(2) % 20, 12 * (1 + number(3) % 4));
    let group = [Group::Row, Group::Columns(6)][number(4) % 2];
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][number(5) % 3];
    let mut all = Vec::new();
    for signs in kinds {
        let codes: Vec<u8> = (0..rows * cols).map(|i| (number(i) % signs.levels()) as u8).collect();
        let count = group.count(rows, cols) * signs.numbers();
        let numbers: Vec<f32> = (0..count).map(|i| scale.round(number(i) as f32 / 1e6 - 4.0)).collect();
        let grid = SignGrid { signs, group, scale };
        all.push(Storage::Signs(SignCodes::new(rows, cols, grid, &codes, &numbers).unwrap()));
    }
    let four = |i: usize| [3u8, 5, 6, 9, 10, 12][number(i) % 6];
    let upper = |i: usize, byte: usize| if 8 * byte + 4 < cols { four(i + 7777) } else { 0 };
    let bytes = (0..rows).flat_map(|r| (0..cols.div_ceil(8)).map(move |b| (r * cols + b, b)));
    let mask: Vec<u8> = bytes.map(|(i, byte)| four(i) | upper(i, byte) << 4).collect();
    let grid = IntGrid { bits: 1 + (number(6) % 8) as u8, group, symmetric: true, scale };
    let kept = codes(rows, cols / 2, grid, false, seed);
    all.push(Storage::TwoOfFour(TwoOfFour::new(cols, mask.clone(), Storage::Int(kept)).unwrap()));
    let floats: Vec<f32> = (0..rows * cols / 2).map(|i| number(i) as f32 / 1e6 - 4.0).collect();
    let kept = Storage::Dense(Tensor::from_f32(Dtype::BF16, &[rows, cols / 2], &floats).unwrap());
    all.push(Storage::TwoOfFour(TwoOfFour::new(cols, mask, kept).unwrap()));
    all
}

proptest! {
    #[test]
    fn signs_and_masks_come_back_or_give_a_sentence(how in 0..5, which: prop::sample::Index, seed: u64) {
        for storage in signs_and_masks(seed) {
            prop_assert!(CompressedTensors.can_hold(&storage).is_err());
            let shape = storage.shape();
            let mut tensors: BTreeMap<String, Tensor> = Fewbit.tensors("m", &storage).unwrap().into_iter().collect();
            let q = quantization(&Fewbit, Scheme::of(&storage));
            let names = tensor_names(&q, "m");
            prop_assert!(is_quantized(&q, &tensors, "m") && tensors.keys().all(|t| names.contains(t)));
            let stored: u64 = tensors.values().map(|t| 8 * t.bytes.len() as u64).sum();
            prop_assert_eq!(stored, storage.stored_bits());
            let name = which.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
            match how {
                0 => { tensors.remove(&name); }
                1 => { tensors.insert(name, Tensor::from_i32(&[3, 5], &[-1; 15])); }
                2 => tensors.get_mut(&name).unwrap().shape.push(2),
                _ => {
                    let back = read_linear(&q, &tensors, "m", shape).unwrap();
                    prop_assert_eq!(format!("{back:?}"), format!("{storage:?}"));
                    continue;
                }
            }
            let e = read_linear(&q, &tensors, "m", shape).unwrap_err();
            prop_assert!(e.to_string().starts_with("tensor `m.weight"), "{}", e);
            // Sizes that settings alone would make huge are refused before anything is allocated.
            for size in [usize::MAX, usize::MAX / 16, 1 << 60] {
                prop_assert!(read_linear(&q, &tensors, "m", [size, 16]).is_err());
            }
        }
    }
}

#[test]
fn impossible_schemes_of_vectors_are_refused() {
    for scheme in [
        json!({ "lattice": "e8", "second": "none", "group": 8 }),
        json!({ "lattice": "e8p", "second": "e9", "group": 8 }),
        json!({ "vector": 3, "bits": 8, "residual_bits": 0, "columns": false }),
        json!({ "vector": 8, "bits": 17, "residual_bits": 0, "columns": false }),
        json!({ "trellis": "hyb", "state_bits": 12, "tile_bits": 512, "group": "row" }),
        json!({ "trellis": "1mad", "state_bits": 12, "tile_bits": 512 }),
    ] {
        let settings = json!({ "quant_method": "fewbit", "version": 1, "default": scheme });
        let parsed = Quantization::parse(&json!({ "quantization_config": settings }), None);
        assert!(parsed.is_err_and(|e| e.to_string().contains("vector")
            || e.to_string().contains("codebooks")
            || e.to_string().contains("scheme")));
    }
    // Numbers that only a matrix shows to be impossible.
    for (tile_bits, state_bits) in [(513, 12), (248, 12), (2048, 12), (512, 7)] {
        let settings = json!({ "quant_method": "fewbit", "version": 1, "default":
            { "trellis": "1mad", "state_bits": state_bits, "tile_bits": tile_bits, "group": "row" } });
        let q = Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap();
        let mut tensors: BTreeMap<String, Tensor> = Fewbit.tensors("m", &vectors(1)[1]).unwrap().into_iter().collect();
        tensors.retain(|name, _| name.ends_with("codes"));
        let e = read_linear(&q, &tensors, "m", [16, 16]).unwrap_err().to_string();
        assert!(e.starts_with("tensor `m.weight.codes`: a trellis"), "{e}");
    }
}

#[test]
fn bands_of_rows_come_back() {
    let grid = IntGrid { bits: 3, group: Group::Row, symmetric: false, scale: ScaleType::BF16 };
    let upper = codes(5, 26, grid, false, 1);
    let lower = codes(7, 26, IntGrid { bits: 5, group: Group::Columns(13), ..grid }, true, 2);
    let bands = [Band { rows: 0..5, storage: Storage::Int(upper) }, Band { rows: 5..12, storage: Storage::Int(lower) }];
    let q = quantization(&Fewbit, Scheme::of_bands(&bands));
    let tensors: BTreeMap<String, Tensor> = Fewbit.band_tensors("m", &bands).unwrap().into_iter().collect();
    let names = tensor_names(&q, "m");
    assert!(tensors.keys().all(|t| names.contains(t)));
    let back = read_bands(&q, &tensors, "m", [12, 26]).unwrap();
    assert_eq!(back.len(), 2);
    for (band, ours) in back.iter().zip(&bands) {
        let (Storage::Int(back), Storage::Int(ours)) = (&band.storage, &ours.storage) else {
            panic!("not integer codes")
        };
        assert_eq!((&band.rows, back), (&band.rows, ours));
    }
    let fails = |r: Result<String>| r.unwrap_err().to_string();
    assert_eq!(
        fails(read_bands(&q, &tensors, "m", [13, 26]).map(|_| String::new())),
        "tensor `m.weight`: bands of [5, 7] rows in the settings, where the config asks for 13 rows"
    );
    assert_eq!(
        fails(read_linear(&q, &tensors, "m", [12, 26]).map(|_| String::new())),
        "`m` lies in 2 bands of rows, where one is needed"
    );
    let why = CompressedTensors.band_tensors("m", &bands).unwrap_err().to_string();
    assert!(
        why.ends_with("compressed-tensors stores all rows of a matrix alike; write it with `--format fewbit`"),
        "{why}"
    );
}

#[test]
fn plain_weights_stay_plain() {
    let weight = Tensor::from_f32(Dtype::BF16, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    for layout in [&CompressedTensors as &dyn Layout, &Fewbit] {
        let storage = Storage::Dense(weight.clone());
        assert_eq!(layout.can_hold(&storage), Ok(()));
        let tensors: BTreeMap<String, Tensor> = layout.tensors("lm_head", &storage).unwrap().into_iter().collect();
        let q = quantization(layout, None);
        assert!(!is_quantized(&q, &tensors, "lm_head"));
        assert!(
            matches!(read_linear(&q, &tensors, "lm_head", [2, 3]), Ok(Storage::Dense(t)) if t.bytes == weight.bytes)
        );
        let e = read_linear(&q, &tensors, "lm_head", [3, 2]).unwrap_err().to_string();
        assert!(e.starts_with("tensor `lm_head.weight`: has shape [2, 3], where the config asks for [3, 2]"), "{e}");
        assert!(read_linear(&q, &tensors, "lm_head", [0, 2]).is_err());
        assert!(read_linear(&q, &tensors, "lm_head", [usize::MAX, 2]).is_err());
        let blocks = GgmlBlocks { kind: GgmlType::Q4_0, rows: 0, cols: 32, bytes: Vec::new().into() };
        assert_eq!(layout.can_hold(&Storage::Ggml(blocks)).is_ok(), layout.name() == "fewbit");
    }
}

#[test]
fn fp8_is_code_times_the_scale_of_its_block() {
    let settings = json!({ "quant_method": "fp8", "weight_block_size": [2, 2], "activation_scheme": "dynamic" });
    let q = Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap();
    let weight = Tensor {
        dtype: Dtype::F8E4M3,
        shape: vec![3, 3],
        bytes: vec![0x38, 0xb8, 0x40, 0, 0x30, 0x38, 0x38, 0x38, 0x7e].into(),
    };
    let tensors = BTreeMap::from([
        ("m.weight".to_owned(), weight),
        ("m.weight_scale_inv".to_owned(), Tensor::from_f32(Dtype::F32, &[2, 2], &[2.0, 3.0, 5.0, 7.0]).unwrap()),
    ]);
    let storage = read_linear(&q, &tensors, "m", [3, 3]).unwrap();
    let mut values = [0.0; 9];
    storage.decode_rows(0..3, &mut values);
    assert_eq!(values, [2.0, -2.0, 6.0, 0.0, 1.0, 3.0, 5.0, 5.0, 3136.0]);
    assert_eq!(q.runtime_rounding().unwrap(), "activations to e4m3 per 2 columns");
    assert!(read_linear(&q, &tensors, "m", [3, 2]).is_err());
}

#[test]
fn fp8_holds_what_it_says() {
    let input = |sharing| ActivationGrid {
        number: Number::Float(Minifloat::E4M3),
        sharing,
        scale: ScaleType::F32,
        is_searched: false,
    };
    let cases = [
        (Group::Block([128, 128]), Sharing::Columns(128)),
        (Group::Block([64, 32]), Sharing::Columns(32)),
        (Group::Tensor, Sharing::Token),
        (Group::Tensor, Sharing::Tensor),
    ];
    for (group, sharing) in cases {
        let [rows, cols] = [200usize, 256];
        let grid = FloatGrid { element: Minifloat::E4M3, group, scale: ScaleType::F32 };
        let count = if let Group::Block([h, w]) = group { rows.div_ceil(h) * cols.div_ceil(w) } else { 1 };
        let scales = ScaleType::F32.to_bytes(&(1..=count).map(|i| 0.01 * i as f32).collect::<Vec<_>>());
        // No NaN, which has all bits but the sign.
        let bytes: Vec<u8> = (0..rows * cols).map(|i| (i * 37) as u8 & 0x7e).collect();
        let storage = Storage::Float(FloatCodes::new(rows, cols, grid, bytes.into(), scales.into(), None).unwrap());
        assert_eq!(Float8.can_hold(&storage), Ok(()));
        assert_eq!(Float8.can_hold_input(&storage, input(sharing), 1.0), Ok(()));
        let mut format = input(sharing).dynamic();
        format.scale = 0.5;
        let bands = [Band { rows: 0..rows, storage: storage.clone() }];
        let tensors: BTreeMap<String, Tensor> =
            Float8.rounded_tensors("m", &bands, &format).unwrap().into_iter().collect();
        let scheme = Scheme::of(&storage).map(|s| s.rounded(Some(format.grid)));
        let modules = [("m".to_owned(), scheme), ("lm_head".to_owned(), None)];
        assert_eq!(Float8.can_hold_together(&modules), Ok(()));
        let settings = Float8.quantization_config(&modules, None);
        let q = Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap();
        let Storage::Float(back) = read_linear(&q, &tensors, "m", [rows, cols]).unwrap() else { panic!("not floats") };
        let Storage::Float(codes) = &storage else { unreachable!() };
        assert_eq!((back.packed(), back.scales(), back.grid()), (codes.packed(), codes.scales(), codes.grid()));
        let back = read_activation(&q, &tensors, "m", [rows, cols]).unwrap().unwrap();
        assert_eq!(back.grid, format.grid);
        if sharing == Sharing::Tensor {
            assert_eq!(back.scale, 0.5);
        }
        let alone = [("m".to_owned(), Scheme::of(&storage))];
        assert!(Float8.can_hold_together(&alone).unwrap_err().contains("always round inputs"));
    }
}

#[test]
fn exceptions_of_gptq_and_one_group_of_awq() {
    let int =
        |bits, group| Some(Scheme::Int(IntScheme { bits, group, symmetric: true, act_order: false, second: None }));
    let modules = |list: &[(&str, Option<Scheme>)]| -> Vec<(String, Option<Scheme>)> {
        list.iter().map(|(name, s)| ((*name).to_owned(), s.clone())).collect()
    };
    let mixed = modules(&[
        ("a.0.q", int(4, Group::Columns(64))),
        ("a.0.k", int(4, Group::Columns(64))),
        ("a.0.down", int(8, Group::Row)),
        ("a.0.gate", None),
        ("lm_head", None),
    ]);
    let settings = Gptq { is_v2: false }.quantization_config(&mixed, None);
    assert_eq!((&settings["bits"], &settings["group_size"]), (&json!(4), &json!(64)));
    let exceptions = json!({
        "+:^a\\.0\\.down$": { "bits": 8, "group_size": -1, "sym": true },
        "-:^a\\.0\\.gate$": {}
    });
    assert_eq!(settings["dynamic"], exceptions);
    let why = Awq.can_hold_together(&mixed).unwrap_err();
    assert_eq!(why, "`a.0.q` and `a.0.down` have different groups, and it has one for all");
}
