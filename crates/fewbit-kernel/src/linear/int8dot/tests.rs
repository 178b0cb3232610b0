use bytes::Bytes;
use fewbit_format::{
    ActivationGrid, GgmlBlocks, GgmlType, Group, IntCodes, IntGrid, SignCodes, SignGrid, Signs, Zeros,
};
use proptest::prelude::*;

use super::*;

struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    fn next(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }
}

/// A random storage; `whole`: scales 1 and integer offsets, so that the sums are exact in f32.
fn int(n: &mut Numbers, rows: usize, bits: u8, cols: usize, group: Group, zeros: u8, whole: bool) -> Storage {
    let scale = [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.bits() as usize % 3];
    let grid = IntGrid { bits, group, symmetric: zeros == 0, scale };
    let groups = if group == Group::Tensor { 1 } else { rows * (cols / group.width(cols)) };
    let code = |n: &mut Numbers| (n.bits() & ((1 << bits) - 1)) as u8;
    // Now and then a row of the greatest codes.
    let codes: Vec<u8> =
        (0..rows * cols).map(|i| if i / cols % 5 == 4 { ((1u32 << bits) - 1) as u8 } else { code(n) }).collect();
    let number = |n: &mut Numbers| match n.bits() % 16 {
        _ if whole => 1.0,
        0 => 0.0,
        // Subnormal in f16.
        1 => scale.round(n.next() * 1e-6),
        _ => scale.round(n.next() / 16.0),
    };
    let scales: Vec<f32> = (0..groups).map(|_| number(n)).collect();
    let zeros = match zeros {
        0 => Zeros::Middle,
        1 => Zeros::Codes((0..groups).map(|_| code(n)).collect()),
        _ => Zeros::Offsets((0..groups).map(|_| number(n)).collect::<Vec<f32>>().into()),
    };
    Storage::Int(IntCodes::new(rows, cols, grid, &codes, scales, zeros).unwrap())
}

/// The types of ggml that are integers.
const INTEGERS: [GgmlType; 15] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q8_1,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Q8K,
    GgmlType::Tq1_0,
    GgmlType::Tq2_0,
    GgmlType::Q2_0,
];

fn ggml(n: &mut Numbers, rows: usize, kind: GgmlType, blocks: usize) -> Storage {
    let mut bytes: Vec<u8> = (0..rows * blocks * kind.block_bytes()).map(|_| n.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        kind.f16_fields().iter().for_each(|at| block[at + 1] = block[at + 1] & 0x87 | 0x20);
        if kind == GgmlType::Q8K {
            block[3] = block[3] & 0x80 | 0x3c;
        }
    }
    Storage::Ggml(GgmlBlocks::new(kind, rows, blocks * kind.block_len(), Bytes::from(bytes)).unwrap())
}

fn run(level: Level, team: &Team, linears: &[Arc<QuantizedLinear>], tokens: usize, x: &[f32]) -> Vec<Vec<f32>> {
    let kernel = candidate(linears, Arithmetic::Fast, level).expect("suits");
    let mut outs: Vec<Vec<f32>> = linears.iter().map(|l| vec![f32::NAN; tokens * l.shape[0]]).collect();
    kernel.run(team, tokens, x, &mut outs.iter_mut().map(|o| &mut **o).collect::<Vec<_>>());
    outs
}

/// The activations as the kernel rounds them, back in f64, columns in the input's order.
fn rounded(linear: &QuantizedLinear, tokens: usize, x: &[f32]) -> Vec<f64> {
    let packed = Packed::new(&linear.bands[0].storage).unwrap();
    let cols = linear.shape[1];
    let mut back = vec![0.0; tokens * cols];
    for t in 0..tokens {
        let place = |p: usize| packed.order.as_ref().map_or(p, |o| o[p] as usize);
        let ordered: Vec<f32> = (0..cols).map(|p| x[t * cols + place(p)]).collect();
        for (k, span) in ordered.chunks(packed.span).enumerate() {
            let scale = f64::from(span.iter().fold(0.0f32, |m, v| m.max(v.abs()))) / 127.0;
            for (i, v) in span.iter().enumerate() {
                let p = k * packed.span + i;
                let code = (v * (127.0 / (127.0 * scale) as f32)).round_ties_even();
                // So little counts as nothing.
                back[t * cols + place(p)] = if scale > 1e-32 { f64::from(code) * scale } else { 0.0 };
            }
        }
    }
    back
}

/// The same with integers in tiles, as our own files have them.
fn in_tiles(linear: &QuantizedLinear) -> QuantizedLinear {
    let storage = match &linear.bands[0].storage {
        Storage::Int(codes) => Storage::Int(codes.in_tiles().into_owned()),
        other => other.clone(),
    };
    QuantizedLinear::uniform(storage, None)
}

/// `spread`: the greatest product of a scale and a code. Such terms cancel against zero points and offsets, whatever the
/// size of the decoded weight, and leave their rounding.
fn check(linears: &[Arc<QuantizedLinear>], tokens: usize, x: &[f32], spread: f64) {
    let cols = linears[0].shape[1];
    let (one, three) = (Team::new(1), Team::new(3));
    let mut by_level = Vec::new();
    let tiled: Vec<_> = linears.iter().map(|l| Arc::new(in_tiles(l))).collect();
    for level in Level::of_machine() {
        let outs = run(level, &one, linears, tokens, x);
        assert_eq!(outs, run(level, &three, linears, tokens, x));
        assert_eq!(outs, run(level, &one, &tiled, tokens, x), "codes stored in tiles, {level:?}");
        let alone = run(level, &three, linears, 1, &x[(tokens - 1) * cols..]);
        for (linear, (out, alone)) in linears.iter().zip(outs.iter().zip(&alone)) {
            assert_eq!(out[(tokens - 1) * linear.shape[0]..], alone[..], "the last token alone, {level:?}");
        }
        by_level.push(outs);
    }
    for (l, linear) in linears.iter().enumerate() {
        let (w, a) = (linear.decode(), rounded(linear, tokens, x));
        for (i, got) in by_level[0][l].iter().enumerate() {
            let (t, r) = (i / linear.shape[0], i % linear.shape[0]);
            let terms = || w.row(r).iter().zip(&a[t * cols..]).map(|(w, a)| f64::from(*w) * a);
            let inputs = a[t * linear.shape[1]..][..linear.shape[1]].iter().map(|a| a.abs() * spread);
            let (want, scale) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>() + inputs.sum::<f64>() + 0.1);
            for (level, outs) in by_level.iter().enumerate() {
                let got = f64::from(outs[l][i]);
                assert!((got - want).abs() <= 1e-5 * scale, "level {level} row {r} token {t}: {got} for {want}");
            }
            let twin = f64::from(*got);
            for outs in &by_level[1..] {
                assert!((f64::from(outs[l][i]) - twin).abs() <= 2e-6 * scale, "row {r} token {t}");
            }
        }
    }
}

/// Few, which read the codes as they lie; many, for which they are unpacked; and more than are near at once.
fn tokens() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1usize..14, 3 => FEW_TOKENS..40, 1 => NEAR_TOKENS - 1..NEAR_TOKENS + 6]
}

/// Mostly numbers in `−1..1`; now and then spans of zeros, of subnormal numbers, or with one that is far greater.
fn inputs(n: &mut Numbers, count: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..count).map(|_| n.next()).collect();
    for span in x.chunks_mut(BLOCK) {
        match n.bits() % 12 {
            0 => span.fill(0.0),
            1 => span.iter_mut().for_each(|v| *v *= 1e-39),
            2 => span[0] = 30.0,
            _ => {}
        }
    }
    x
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn integers_of_any_width(
        bits in 1u8..=8, zeros in 0u8..3, kind in 0usize..7, count in 1usize..5, rows in 1usize..40, more in 1usize..20,
        tokens in tokens(), indexed: bool, seed: u64,
    ) {
        let n = &mut Numbers(seed);
        let width = [16, 32, 48, 64, 128][kind.min(4)];
        let group = [Group::Columns(width), Group::Row, Group::Tensor][kind.saturating_sub(4)];
        let cols = if kind > 4 { 1 + n.bits() as usize % 100 } else { width * count };
        let mut storage = int(n, rows, bits, cols, group, zeros, false);
        if let (Storage::Int(codes), true, true) = (&storage, indexed, kind <= 4) {
            let index = (0..cols).map(|c| (c % count) as u32).collect();
            storage = Storage::Int(codes.clone().with_group_index(index).unwrap());
        }
        let other = int(n, more, bits, cols, Group::Row, 0, false);
        let linears = [QuantizedLinear::uniform(storage, None), QuantizedLinear::uniform(other, None)].map(Arc::new);
        let x = inputs(n, tokens * cols);
        check(&linears, tokens, &x, f64::from(1 << bits) / 16.0);
    }

    #[test]
    fn three_values(kind in 0usize..3, count in 1usize..5, rows in 1usize..40, tokens in tokens(), seed: u64) {
        let n = &mut Numbers(seed);
        let group = [Group::Columns(16), Group::Columns(64), Group::Row][kind];
        let cols = if group == Group::Row { 1 + n.bits() as usize % 100 } else { group.width(0) * count };
        let grid = SignGrid { signs: Signs::Ternary, group, scale: ScaleType::F16 };
        let codes: Vec<u8> = (0..rows * cols).map(|_| (n.bits() % 3) as u8).collect();
        let scales: Vec<f32> = (0..group.count(rows, cols)).map(|_| ScaleType::F16.round(n.next() / 16.0)).collect();
        let storage = Storage::Signs(SignCodes::new(rows, cols, grid, &codes, &scales).unwrap());
        let x = inputs(n, tokens * cols);
        check(&[Arc::new(QuantizedLinear::uniform(storage, None))], tokens, &x, 1.0);
    }

    #[test]
    fn blocks_of_ggml(kind in prop::sample::select(&INTEGERS[..]), blocks in 1usize..3, rows in 1usize..40, tokens in tokens(), seed: u64) {
        let n = &mut Numbers(seed);
        let linears = [Arc::new(QuantizedLinear::uniform(ggml(n, rows, kind, blocks), None))];
        let x = inputs(n, tokens * linears[0].shape[1]);
        check(&linears, tokens, &x, 0.0);
    }

    /// Scales of 1 on both sides: every level must give the integer itself.
    #[test]
    fn the_integer_part_is_the_same_everywhere(
        bits in 1u8..=8, zeros in 0u8..3, spans in 1usize..7, odd: bool, rows in 1usize..20, tokens in tokens(), sign in 0u8..3, seed: u64,
    ) {
        let n = &mut Numbers(seed);
        let cols = if odd { 48 } else { 32 } * spans;
        let storage = int(n, rows, bits, cols, if odd { Group::Columns(48) } else { Group::Row }, zeros, true);
        let linears = [Arc::new(QuantizedLinear::uniform(storage, None))];
        let value = |n: &mut Numbers, i: usize| match sign {
            0 => 127.0,
            1 => if i.is_multiple_of(2) { 127.0 } else { -127.0 },
            _ => if i.is_multiple_of(16) { -127.0 } else { (n.bits() % 255) as f32 - 127.0 },
        };
        let x: Vec<f32> = (0..tokens * cols).map(|i| value(n, i)).collect();
        let w = linears[0].decode();
        let want: Vec<f32> = (0..tokens * rows)
            .map(|i| w.row(i % rows).iter().zip(&x[i / rows * cols..]).map(|(w, x)| *w as i64 * *x as i64).sum::<i64>() as f32)
            .collect();
        for level in Level::of_machine() {
            prop_assert_eq!(&run(level, &Team::new(2), &linears, tokens, &x)[0], &want, "{:?}", level);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// The products of the decoded weights and the inputs as the format rounds them, at every level.
    #[test]
    fn inputs_rounded_as_the_checkpoint_says(
        bits in 2u8..=8, to in prop::sample::select(vec![4u8, 8]), zeros in 0u8..3, grouped: bool, how in 0u8..3,
        rows in 1usize..40, count in 1usize..9, tokens in tokens(), bias: bool, seed: u64,
    ) {
        let n = &mut Numbers(seed);
        let cols = if grouped { 32 * count } else { 1 + n.bits() as usize % 200 };
        let storage = int(n, rows, bits, cols, if grouped { Group::Columns(32) } else { Group::Row }, zeros, false);
        let sharing = if how == 0 { Sharing::Token } else { Sharing::Tensor };
        let grid = ActivationGrid { number: Number::Int { bits: to, symmetric: how < 2 }, sharing, scale: ScaleType::F32, is_searched: false };
        // Small enough that some values are cut at either end.
        let step = 1.6 / (1u32 << to) as f32;
        let format = ActivationFormat { scale: step, zero: if how == 2 { -5 } else { 0 }, ..grid.dynamic() };
        let bias = bias.then(|| (0..rows).map(|_| n.next()).collect());
        let linear = QuantizedLinear { activation: Some(format), ..QuantizedLinear::uniform(storage, bias) };
        let x: Vec<f32> = (0..tokens * cols).map(|_| n.next()).collect();
        let mut rounded = x.clone();
        rounded.chunks_exact_mut(cols).for_each(|row| format.round(row));
        let (w, linears) = (linear.decode(), [Arc::new(linear)]);
        for level in Level::of_machine() {
            for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
                let kernel = candidate(&linears, arithmetic, level).expect("suits");
                let mut y = vec![f32::NAN; tokens * rows];
                kernel.run(&Team::new(2), tokens, &x, &mut [&mut y]);
                for (i, got) in y.iter().enumerate() {
                    let (r, row) = (i % rows, &rounded[i / rows * cols..]);
                    let row = &row[..w.cols()];
                    let terms = || w.row(r).iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let bias = linears[0].bias.as_ref().map_or(0.0, |b| f64::from(b[r]));
                    // What cancels against zero points leaves its rounding.
                    let spread = row.iter().map(|x| f64::from(x.abs()) * f64::from(1 << bits) / 16.0).sum::<f64>();
                    let (want, size) = (terms().sum::<f64>() + bias, terms().map(f64::abs).sum::<f64>() + spread + 0.1);
                    prop_assert!((f64::from(*got) - want).abs() <= 2e-5 * size, "{level:?}: {got} for {want}");
                }
            }
            prop_assert!(candidate(&linears, Arithmetic::WeightsOnly, level).is_none());
        }
    }
}

#[test]
fn more_columns_than_are_unpacked_at_once() {
    let n = &mut Numbers(11);
    for bits in 1..=8 {
        let groups = [Group::Columns(96), Group::Row][usize::from(bits % 2)];
        let cols = 2 * NEAR_COLUMNS + 96 * 2 - 2 * NEAR_COLUMNS % 96;
        let storage = int(n, 18, bits, cols, groups, bits % 3, false);
        let x = inputs(n, 21 * cols);
        check(&[Arc::new(QuantizedLinear::uniform(storage, None))], 21, &x, f64::from(1u32 << bits) / 16.0);
    }
}

#[test]
fn groups_that_do_not_suit_are_declined() {
    let n = &mut Numbers(1);
    for (cols, group) in [(24, Group::Columns(8)), (43 * 4, Group::Columns(43))] {
        let linears = [Arc::new(QuantizedLinear::uniform(int(n, 3, 4, cols, group, 0, false), None))];
        assert!(candidate(&linears, Arithmetic::Fast, Level::Scalar).is_none());
    }
}

#[test]
fn bands_and_bias() {
    use fewbit_format::Band;
    let n = &mut Numbers(5);
    let bands = vec![
        Band { rows: 0..5, storage: int(n, 5, 8, 64, Group::Columns(32), 1, true) },
        Band { rows: 5..40, storage: int(n, 35, 3, 64, Group::Columns(16), 2, true) },
    ];
    let bias: Vec<f32> = (0..40).map(|_| (n.bits() % 100) as f32).collect();
    let linear = Arc::new(QuantizedLinear::of_bands([40, 64], bands, Some(bias.clone())));
    let x: Vec<f32> = (0..3 * 64).map(|i| if i % 16 == 3 { 127.0 } else { (n.bits() % 200) as f32 - 100.0 }).collect();
    let w = linear.decode();
    for level in Level::of_machine() {
        let outs = run(level, &Team::new(2), std::slice::from_ref(&linear), 3, &x);
        for (i, y) in outs[0].iter().enumerate() {
            let sum: f64 =
                w.row(i % 40).iter().zip(&x[i / 40 * 64..]).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            assert_eq!(f64::from(*y), sum + f64::from(bias[i % 40]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_gated_unit_has_the_bits_of_its_steps(
        bits in 1u8..=8, zeros in 0u8..3, count in 1usize..4, rows in 1usize..130, gate in 0usize..2, bias: bool,
        tokens in tokens(), seed: u64,
    ) {
        let mut n = Numbers(seed);
        let (cols, group) = (64 * count, Group::Columns(64));
        let linears: Vec<_> = (0..2)
            .map(|_| {
                let bias = bias.then(|| (0..rows).map(|_| n.next()).collect());
                Arc::new(QuantizedLinear::uniform(int(&mut n, rows, bits, cols, group, zeros, false), bias))
            })
            .collect();
        let x = inputs(&mut n, tokens * cols);
        for level in Level::of_machine() {
            let mut outs = run(level, &Team::new(1), &linears, tokens, &x);
            let (mut y, up) = (std::mem::take(&mut outs[gate]), &outs[1 - gate]);
            elementwise::silu(&mut y);
            elementwise::mul(&mut y, up);
            let kernel = candidate(&linears, Arithmetic::Fast, level).expect("suits");
            let mut gated = vec![f32::NAN; tokens * rows];
            prop_assert!(kernel.run_gated(&Team::new(2), tokens, &x, gate, elementwise::silu, &mut gated));
            prop_assert!(y == gated, "{level:?}");
        }
    }
}

#[test]
fn linears_of_different_height_are_no_gated_unit() {
    let mut n = Numbers(1);
    let linear = |rows: usize| Arc::new(QuantizedLinear::uniform(int(&mut n, rows, 4, 64, Group::Row, 0, false), None));
    let kernel = candidate(&[16, 32].map(linear), Arithmetic::Fast, Level::Scalar).expect("suits");
    assert!(!kernel.run_gated(&Team::new(1), 1, &[1.0; 64], 0, elementwise::silu, &mut [0.0; 32]));
}
