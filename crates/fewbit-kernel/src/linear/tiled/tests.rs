use fewbit_format::{
    Band as Rows, Blocks, Dtype, FloatCodes, FloatGrid, GgmlBlocks, GgmlType, Group, IntCodes, IntGrid, LatticeCodes,
    LatticeGrid, Levels, Minifloat, Nested, NestedGrid, Numbers, ScaleType, SecondStage, SignCodes, SignGrid, Signs,
    TableCodes, TableGrid, Tensor, TrellisCode, TrellisCodes, TrellisGrid, TwoOfFour, VectorCodes, VectorGrid, Zeros,
    packed_len,
};
use proptest::prelude::*;

use super::super::dense;
use super::*;

/// Numbers of a generator.
struct Draws(u64);

impl Draws {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, most: usize) -> usize {
        self.bits() as usize % most
    }

    fn codes(&mut self, count: usize, bits: u8) -> Vec<u8> {
        (0..count).map(|_| self.bits() as u8 & ((1u16 << bits) - 1) as u8).collect()
    }

    /// Numbers of `-1..1` that the type holds.
    fn numbers(&mut self, count: usize, kind: ScaleType) -> Vec<f32> {
        (0..count).map(|_| kind.round(self.bits() as f32 / (1u32 << 30) as f32 - 1.0)).collect()
    }

    /// The same with some of the extremes of the type among them.
    fn scales(&mut self, count: usize, kind: ScaleType) -> Vec<f32> {
        let (least, most) = match kind {
            ScaleType::F16 => (5.960_464_5e-8, 65504.0),
            ScaleType::BF16 | ScaleType::F32 => (1e-39, 1e30),
            ScaleType::E8M0 => (5.877_472e-39, 2f32.powi(100)),
            ScaleType::E4M3 => (1.0 / 512.0, 448.0),
        };
        let mut numbers = self.numbers(count, kind);
        for n in &mut numbers {
            match self.below(8) {
                0 => *n = kind.round(least),
                1 => *n = kind.round(most),
                2 if kind != ScaleType::E8M0 => *n = 0.0,
                _ => {}
            }
        }
        numbers
    }
}

/// The decoder's kernel gives the bits of the kernel that decodes rows, for any tokens and threads.
fn check(linears: &[Arc<QuantizedLinear>], tokens: usize, n: &mut Draws) {
    let cols = linears[0].shape[1];
    let x = n.numbers(tokens * cols, ScaleType::F32);
    for level in Level::of_machine() {
        let run = |kernel: &dyn Kernel, team: &Team, tokens: usize, x: &[f32]| -> Vec<Vec<u32>> {
            let mut outs: Vec<Vec<f32>> = linears.iter().map(|l| vec![f32::NAN; tokens * l.shape[0]]).collect();
            kernel.run(team, tokens, x, &mut outs.iter_mut().map(|o| &mut **o).collect::<Vec<_>>());
            // One NaN is as good as another.
            let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
            outs.into_iter().map(|o| o.into_iter().map(bits).collect()).collect()
        };
        let [own, rows] = [candidate, dense::candidate].map(|c| c(linears, Arithmetic::Fast, level).unwrap());
        assert_eq!(own.name(), "tiled");
        let (one, three) = (Team::new(1), Team::new(3));
        let want = run(&*rows, &one, tokens, &x);
        assert!(run(&*own, &three, tokens, &x) == want, "{level:?}");
        let last = &x[(tokens - 1) * cols..];
        for ((alone, want), linear) in run(&*own, &one, 1, last).iter().zip(&want).zip(linears) {
            assert!(alone[..] == want[(tokens - 1) * linear.shape[0]..], "{level:?}, alone");
        }
    }
}

fn check_storage(storage: Storage, tokens: usize, n: &mut Draws) {
    let rows = storage.shape()[0];
    let bias = n.below(2) == 1;
    let bias = bias.then(|| n.numbers(rows, ScaleType::F32));
    check(&[Arc::new(QuantizedLinear::uniform(storage, bias))], tokens, n);
}

/// Groups and the width of a matrix of some of them.
fn shape(n: &mut Draws) -> (Group, usize) {
    let group =
        [Group::Columns(4), Group::Columns(16), Group::Columns(20), Group::Columns(64), Group::Row, Group::Tensor]
            [n.below(6)];
    let cols = match group {
        Group::Columns(g) => g * (1 + n.below(400usize.div_ceil(g))),
        _ => 1 + n.below(600),
    };
    (group, cols)
}

fn nested(n: &mut Draws, rows: usize, per_row: usize) -> Numbers {
    let kind = n.below(3);
    let (bits, levels) = if kind == 0 { (8, Levels::Dynamic) } else { (1 + n.below(8) as u8, Levels::Codes) };
    let blocks = if n.below(2) == 0 { Blocks::Rows(16) } else { Blocks::Flat(1 << n.below(9)) };
    let grid = NestedGrid { bits, levels, blocks, scale: [ScaleType::F16, ScaleType::F32][n.below(2)] };
    let count = grid.count(rows, per_row);
    let codes = n.codes(rows * per_row, bits);
    let scales = n.scales(count, grid.scale);
    let offsets = [0, 1, count][n.below(3)];
    let offsets = n.numbers(offsets, grid.scale);
    Numbers::Nested(Nested::new([rows, per_row], grid, &codes, &scales, &offsets).unwrap())
}

fn table(n: &mut Draws, rows: usize) -> Storage {
    let (group, cols) = shape(n);
    let is_shared = n.below(2) == 0;
    let bits = 1 + n.below(if is_shared { 8 } else { 4 }) as u8;
    let grid = TableGrid { bits, group, scale: [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.below(3)] };
    let levels = match n.below(3) {
        0 if !is_shared => (0..rows * grid.levels()).map(|_| n.below(255) as f32 - 127.0).collect(),
        _ if is_shared => n.scales(grid.levels(), ScaleType::F32),
        _ => n.scales(rows * grid.levels(), ScaleType::F16),
    };
    let groups = group.count(rows, cols);
    let codes = n.codes(rows * cols, bits);
    let scales = if group != Group::Tensor && n.below(2) == 0 {
        nested(n, rows, groups / rows)
    } else {
        n.scales(groups, grid.scale).into()
    };
    Storage::Table(TableCodes::new(rows, cols, grid, &codes, scales, levels).unwrap())
}

fn floats(n: &mut Draws, rows: usize) -> Storage {
    let (mut group, mut cols) = shape(n);
    if n.below(4) == 0 {
        (group, cols) = (Group::Block([16 * (1 + n.below(3)), 4 * (1 + n.below(50))]), 1 + n.below(600));
    }
    let names = ["e2m1", "e4m3", "e5m2", "e3m2", "e2m3", "e1m0", "e1m1", "e3m4", "e7m0", "e3m1"];
    let element = Minifloat::parse(names[n.below(names.len())]).unwrap();
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32, ScaleType::E8M0, ScaleType::E4M3][n.below(5)];
    let row_bytes = packed_len(cols, element.bits());
    let mut packed = n.codes(rows * row_bytes, 8);
    if element.bits() == 8 {
        packed.iter_mut().filter(|q| !element.is_number(**q)).for_each(|q| *q &= 0x83);
    }
    let scales = scale.to_bytes(&n.scales(group.count(rows, cols), scale));
    let global = (n.below(2) == 0).then(|| 1.0 + n.below(1000) as f32 / 300.0);
    let grid = FloatGrid { element, group, scale };
    Storage::Float(FloatCodes::new(rows, cols, grid, packed.into(), scales.into(), global).unwrap())
}

fn integers(n: &mut Draws, rows: usize, cols_of: Option<usize>) -> Storage {
    let (mut group, mut cols) = shape(n);
    if let Some(all) = cols_of {
        (group, cols) = (Group::Row, all);
    }
    let (groups, bits, kind) = (group.count(rows, cols), 1 + n.below(8) as u8, n.below(4));
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.below(3)];
    let grid = IntGrid { bits, group, symmetric: kind == 0, scale };
    let numbers = |n: &mut Draws| {
        if group != Group::Tensor && n.below(2) == 0 {
            nested(n, rows, groups / rows)
        } else {
            n.scales(groups, scale).into()
        }
    };
    let scales = numbers(n);
    let zeros = match kind {
        0 => Zeros::Middle,
        1 => Zeros::Codes(n.codes(groups, bits)),
        2 => Zeros::Offsets(numbers(n)),
        _ => Zeros::Points(numbers(n)),
    };
    let codes = n.codes(rows * cols, bits);
    Storage::Int(IntCodes::new(rows, cols, grid, &codes, scales, zeros).unwrap())
}

fn signs(n: &mut Draws, rows: usize) -> Storage {
    let group = [Group::Columns(16), Group::Columns(20), Group::Columns(64), Group::Row][n.below(4)];
    let signs = match n.below(4) {
        0 => Signs::Ternary,
        1 => Signs::Range,
        kind => {
            let most = if group == Group::Columns(16) { 2 } else { 8 };
            Signs::Planes { count: 1 + n.below(most) as u8, has_offset: kind == 2 }
        }
    };
    let group = if signs.numbers() > 3 && group != Group::Row { Group::Columns(64) } else { group };
    let cols = if let Group::Columns(g) = group { g * (1 + n.below(400 / g)) } else { 1 + n.below(600) };
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.below(3)];
    let codes: Vec<u8> = (0..rows * cols).map(|_| n.below(signs.levels()) as u8).collect();
    let numbers = n.numbers(group.count(rows, cols) * signs.numbers(), scale);
    Storage::Signs(SignCodes::new(rows, cols, SignGrid { signs, group, scale }, &codes, &numbers).unwrap())
}

fn lattice(n: &mut Draws, rows: usize) -> Storage {
    let group = [Group::Columns(8), Group::Columns(24), Group::Columns(64), Group::Row, Group::Tensor][n.below(5)];
    let width = if let Group::Columns(g) = group { g } else { 8 };
    let cols = width * (1 + n.below(600 / width));
    let second = [SecondStage::None, SecondStage::E8Short, SecondStage::E8P][n.below(3)];
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.below(3)];
    let count = rows * cols / 8;
    let codes = (0..count).map(|_| n.bits() as u16).collect();
    let seconds: Vec<u16> = match second {
        SecondStage::None => Vec::new(),
        SecondStage::E8Short => (0..count).map(|_| n.below(256) as u16).collect(),
        SecondStage::E8P => (0..count).map(|_| n.bits() as u16).collect(),
    };
    let scales = n.scales(group.count(rows, cols), scale);
    let grid = LatticeGrid { second, group, scale };
    Storage::Lattice(LatticeCodes::new(rows, cols, grid, codes, &seconds, &scales).unwrap())
}

fn trellis(n: &mut Draws, rows: usize) -> Storage {
    let group = [Group::Columns(16), Group::Columns(48), Group::Row, Group::Tensor][n.below(4)];
    let width = if let Group::Columns(g) = group { g } else { 16 };
    let cols = width * (1 + n.below(600 / width));
    let state_bits = 8 + n.below(9) as u8;
    let tile_bits = 128 * (2 + n.below(usize::from(state_bits) - 1).min(6)) as u16;
    let code = [TrellisCode::OneMad, TrellisCode::ThreeInst][n.below(2)];
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.below(3)];
    let grid = TrellisGrid { state_bits, tile_bits, code, group, scale };
    let paths = n.codes(rows.div_ceil(16) * (cols / 16) * grid.tile_bytes(), 8);
    let scales = n.scales(group.count(rows, cols), scale);
    Storage::Trellis(TrellisCodes::new(rows, cols, grid, paths, &scales).unwrap())
}

fn vectors(n: &mut Draws, rows: usize) -> Storage {
    let cols = 1 + n.below(400);
    let grid = VectorGrid {
        len: [2, 4, 8, 16][n.below(4)],
        bits: 1 + n.below(13) as u8,
        residual_bits: [0, 1 + n.below(9) as u8][n.below(2)],
        has_columns: n.below(2) == 0,
    };
    let count = rows.div_ceil(usize::from(grid.len)) * cols;
    let mut of = |bits: u8, count: usize| (0..count).map(|_| n.below(1 << bits) as u16).collect::<Vec<u16>>();
    let (codes, residual) =
        (of(grid.bits, count), of(grid.residual_bits, if grid.residual_bits > 0 { count } else { 0 }));
    let books = n.scales(grid.entries() * usize::from(grid.len), ScaleType::F16);
    let columns = n.scales(if grid.has_columns { 2 * cols } else { 0 }, ScaleType::F16);
    Storage::Vector(VectorCodes::new(rows, cols, grid, &codes, &residual, books, columns).unwrap())
}

fn two_of_four(n: &mut Draws, rows: usize) -> Storage {
    let kept = loop {
        let kept = match n.below(4) {
            0 => table(n, rows),
            1 => floats(n, rows),
            2 => signs(n, rows),
            _ => integers(n, rows, None),
        };
        if kept.shape()[1].is_multiple_of(2) {
            break kept;
        }
    };
    let cols = 2 * kept.shape()[1];
    let mut mask = vec![0; rows * TwoOfFour::mask_bytes(cols)];
    for row in mask.chunks_exact_mut(TwoOfFour::mask_bytes(cols)) {
        for q in 0..cols / 4 {
            row[q / 2] |= [3, 5, 6, 9, 10, 12][n.below(6)] << (4 * (q % 2));
        }
    }
    Storage::TwoOfFour(TwoOfFour::new(cols, mask, kept).unwrap())
}

fn blocks(n: &mut Draws, rows: usize, kinds: &[GgmlType]) -> Storage {
    let kind = kinds[n.below(kinds.len())];
    let cols = kind.block_len() * (1 + n.below(600 / kind.block_len()));
    let mut bytes = n.codes(rows * kind.row_bytes(cols).unwrap(), 8);
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        match kind {
            // Powers of two that leave room for sums.
            GgmlType::Mxfp4 => block[0] %= 200,
            _ => kind.f16_fields().iter().for_each(|at| block[at + 1] &= 0xbf),
        }
    }
    Storage::Ggml(GgmlBlocks::new(kind, rows, cols, bytes.into()).unwrap())
}

fn halves(n: &mut Draws, rows: usize) -> Storage {
    let (dtype, kind) = [(Dtype::BF16, ScaleType::BF16), (Dtype::F16, ScaleType::F16)][n.below(2)];
    let cols = 1 + n.below(600);
    Storage::Dense(Tensor::from_f32(dtype, &[rows, cols], &n.scales(rows * cols, kind)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn halves_are_what_they_widen_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = halves(n, rows);
        check_storage(storage, tokens, n);
    }

    /// Memory is spent on them where speed is asked for.
    #[test]
    fn halves_stay_where_they_are_if_arithmetic_is_exact(seed: u64) {
        let storage = halves(&mut Draws(seed), 3);
        let linears = [Arc::new(QuantizedLinear::uniform(storage, None))];
        prop_assert!(candidate(&linears, Arithmetic::Exact, Level::Scalar).is_none());
    }

    #[test]
    fn tables_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = table(n, rows);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn small_floats_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = floats(n, rows);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn integers_with_scales_of_scales_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = integers(n, rows, None);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn bands_of_several_kinds_and_neighbours(rows in 1usize..50, tokens in 1usize..12, seed: u64) {
        let n = &mut Draws(seed);
        let first = floats(n, rows);
        let cols = first.shape()[1];
        let second = integers(n, 40, Some(cols));
        let other = integers(n, 150, Some(cols));
        let bands = vec![Rows { rows: 0..rows, storage: first }, Rows { rows: rows..rows + 40, storage: second }];
        let bias = Some(n.numbers(rows + 40, ScaleType::F32));
        let banded = QuantizedLinear::of_bands([rows + 40, cols], bands, bias);
        check(&[banded, QuantizedLinear::uniform(other, None)].map(Arc::new), tokens, n);
    }

    #[test]
    fn blocks_of_levels_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let kinds = [GgmlType::Iq4Nl, GgmlType::Iq4Xs, GgmlType::Mxfp4, GgmlType::Nvfp4, GgmlType::Q1_0];
        let storage = blocks(n, rows, &kinds);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn blocks_of_points_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let kinds = [GgmlType::Iq2Xxs, GgmlType::Iq2Xs, GgmlType::Iq2S, GgmlType::Iq3Xxs, GgmlType::Iq3S];
        let storage = blocks(n, rows, &kinds);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn signs_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = signs(n, rows);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn lattices_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = lattice(n, rows);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn trellises_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = trellis(n, rows);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn vectors_are_what_they_decode_to(rows in 1usize..200, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = vectors(n, rows);
        check_storage(storage, tokens, n);
    }

    #[test]
    fn two_of_four_are_what_they_decode_to(rows in 1usize..100, tokens in 1usize..20, seed: u64) {
        let n = &mut Draws(seed);
        let storage = two_of_four(n, rows);
        check_storage(storage, tokens, n);
    }
}
