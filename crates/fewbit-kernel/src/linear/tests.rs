use fewbit_format::{Band, Dtype, Group, IntCodes, IntGrid, ScaleType, Storage, Tensor, Zeros};
use proptest::prelude::*;

use super::*;

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|l| *l <= cpu::machine())
}

/// Numbers in `-1..1`.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.bits() as f32 / (1u32 << 30) as f32 - 1.0).collect()
    }
}

fn int(n: &mut Numbers, rows: usize, cols: usize, bits: u8, group: Group, zeros: u8) -> Storage {
    let grid = IntGrid {
        bits,
        group,
        symmetric: zeros == 0,
        scale: [ScaleType::F16, ScaleType::BF16, ScaleType::F32][n.bits() as usize % 3],
    };
    let groups = if group == Group::Tensor { 1 } else { rows * (cols / group.width(cols)) };
    let code = |n: &mut Numbers| (n.bits() & ((1 << bits) - 1)) as u8;
    let codes: Vec<u8> = (0..rows * cols).map(|_| code(n)).collect();
    let round = |v: f32| grid.scale.round(v);
    let scales = n.take(groups).into_iter().map(|v| round(v / 16.0)).collect();
    let zeros = match zeros {
        0 => Zeros::Middle,
        1 => Zeros::Codes((0..groups).map(|_| code(n)).collect()),
        _ => Zeros::Offsets(n.take(groups).into_iter().map(round).collect()),
    };
    Storage::Int(IntCodes::new(rows, cols, grid, &codes, scales, zeros).unwrap())
}

fn dense(n: &mut Numbers, rows: usize, cols: usize, dtype: Dtype) -> Storage {
    Storage::Dense(Tensor::from_f32(dtype, &[rows, cols], &n.take(rows * cols)).unwrap())
}

fn run(kernel: &dyn Kernel, team: &Team, linears: &[Arc<QuantizedLinear>], tokens: usize, x: &[f32]) -> Vec<Vec<f32>> {
    let mut outs: Vec<Vec<f32>> = linears.iter().map(|l| vec![f32::NAN; tokens * l.shape[0]]).collect();
    kernel.run(team, tokens, x, &mut outs.iter_mut().map(|o| &mut **o).collect::<Vec<_>>());
    outs
}

/// Sums in f64 over the decoded weights against `x`, compared relative to the sums of magnitudes.
fn check(outs: &[Vec<f32>], linears: &[Arc<QuantizedLinear>], tokens: usize, x: &[f32], tolerance: f64) {
    for (linear, out) in linears.iter().zip(outs) {
        let [rows, cols] = linear.shape;
        let w = linear.decode();
        for t in 0..tokens {
            for r in 0..rows {
                let terms = || w.row(r).iter().zip(&x[t * cols..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let bias = linear.bias.as_ref().map_or(0.0, |b| f64::from(b[r]));
                let (want, scale) = (terms().sum::<f64>() + bias, terms().map(f64::abs).sum::<f64>() + bias.abs());
                let got = f64::from(out[t * rows + r]);
                assert!((got - want).abs() <= tolerance * scale + 1e-30, "row {r} of token {t}: {got} for {want}");
            }
        }
    }
}

/// The same bits for any team and batch.
fn check_invariance(kernel: &dyn Kernel, linears: &[Arc<QuantizedLinear>], tokens: usize, x: &[f32]) -> Vec<Vec<f32>> {
    let (one, three) = (Team::new(1), Team::new(3));
    let all = run(kernel, &one, linears, tokens, x);
    assert_eq!(all, run(kernel, &three, linears, tokens, x));
    let cols = linears[0].shape[1];
    for t in [0, tokens / 2, tokens - 1] {
        let alone = run(kernel, &three, linears, 1, &x[t * cols..(t + 1) * cols]);
        for ((all, alone), linear) in all.iter().zip(&alone).zip(linears) {
            assert_eq!(alone[..], all[t * linear.shape[0]..(t + 1) * linear.shape[0]]);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn exact_is_the_sum_over_the_decoded_weights(
        tokens in 1usize..24, cols in 1usize..300, rows in 1usize..70, more in 1usize..40, kind in 0usize..6, bias: bool, seed: u64,
    ) {
        let n = &mut Numbers(seed);
        let kinds = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64];
        let storage = |n: &mut Numbers, rows| match kinds.get(kind) {
            Some(dtype) => dense(n, rows, cols, *dtype),
            None => int(n, rows, cols, 3, Group::Row, kind as u8 % 3),
        };
        let first = storage(n, rows);
        let second = dense(n, more, cols, Dtype::BF16);
        let bias = bias.then(|| n.take(rows + more));
        let bands = vec![Band { rows: 0..rows, storage: first }, Band { rows: rows..rows + more, storage: second }];
        let banded = QuantizedLinear { shape: [rows + more, cols], bands, bias };
        let other = QuantizedLinear::uniform(storage(n, more), None);
        let linears = [Arc::new(banded), Arc::new(other)];
        let x = n.take(tokens * cols);
        for level in levels() {
            let kernel = choose_at(level, &linears, Arithmetic::Exact);
            let outs = check_invariance(&*kernel, &linears, tokens, &x);
            check(&outs, &linears, tokens, &x, 1e-5);
        }
    }
}

#[test]
fn a_dense_linear_beside_integers_leaves_them_their_kernel() {
    let n = &mut Numbers(3);
    let storages = [int(n, 20, 64, 4, Group::Columns(32), 1), dense(n, 10, 64, Dtype::BF16)];
    let linears = storages.map(|s| Arc::new(QuantizedLinear::uniform(s, None)));
    let x = n.take(5 * 64);
    for level in levels() {
        assert_eq!(choose_at(level, &linears, Arithmetic::Fast).name(), "separate");
        let kernel = choose_at(level, &linears, Arithmetic::Exact);
        check(&check_invariance(&*kernel, &linears, 5, &x), &linears, 5, &x, 1e-5);
    }
}
