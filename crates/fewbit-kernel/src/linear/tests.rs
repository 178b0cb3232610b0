use fewbit_format::{
    ActivationGrid, Adapter, Band, Dtype, GgmlBlocks, GgmlType, Group, IntCodes, IntGrid, LowRank, Minifloat, Number,
    Online, ScaleType, Sharing, Sides, Sparse, SparseValues, Storage, Tensor, Zeros,
};
use proptest::prelude::*;

use super::*;

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
    let scales: Vec<f32> = n.take(groups).into_iter().map(|v| round(v / 16.0)).collect();
    let zeros = match zeros {
        0 => Zeros::Middle,
        1 => Zeros::Codes((0..groups).map(|_| code(n)).collect()),
        _ => Zeros::Offsets(n.take(groups).into_iter().map(round).collect::<Vec<f32>>().into()),
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
        let banded = QuantizedLinear::of_bands([rows + more, cols], bands, bias);
        let other = QuantizedLinear::uniform(storage(n, more), None);
        let linears = [Arc::new(banded), Arc::new(other)];
        let x = n.take(tokens * cols);
        for level in Level::of_machine() {
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
    for level in Level::of_machine() {
        assert_eq!(choose_at(level, &linears, Arithmetic::Fast).name(), "separate");
        let kernel = choose_at(level, &linears, Arithmetic::Exact);
        check(&check_invariance(&*kernel, &linears, 5, &x), &linears, 5, &x, 1e-5);
    }
}

/// As the mixes of llama.cpp have it: what is queried in levels, what is looked up in integers, and points of grids.
#[test]
fn blocks_of_several_kinds_keep_their_kernels() {
    let n = &mut Numbers(5);
    let mut blocks = |kind: GgmlType| {
        let mut bytes: Vec<u8> = (0..20 * kind.row_bytes(512).unwrap()).map(|_| n.bits() as u8).collect();
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            kind.f16_fields().iter().for_each(|at| block[at + 1] = block[at + 1] & 0x83 | 0x20);
        }
        let blocks = GgmlBlocks::new(kind, 20, 512, bytes.into()).unwrap();
        Arc::new(QuantizedLinear::uniform(Storage::Ggml(blocks), None))
    };
    let linears = [blocks(GgmlType::Iq4Xs), blocks(GgmlType::Q5K), blocks(GgmlType::Iq1S), blocks(GgmlType::Iq3S)];
    let x = n.take(5 * 512);
    for level in Level::of_machine() {
        assert_eq!(choose_at(level, &linears, Arithmetic::Fast).name(), "separate");
        let kernel = choose_at(level, &linears, Arithmetic::Exact);
        check(&check_invariance(&*kernel, &linears, 5, &x), &linears, 5, &x, 1e-5);
    }
    let alone = linears.map(|l| choose_at(Level::Scalar, &[l], Arithmetic::Exact).name());
    assert_eq!(alone, ["tiled", "unpacked", "decoded", "tiled"]);
}

/// `y = output(W · input(x)) + b + adapters(x)` with everything that may stand beside the codes, against plain loops.
#[test]
fn what_stands_beside_the_codes_is_added() {
    let n = &mut Numbers(4);
    let (rows, cols, tokens) = (20, 64, 37);
    let places: Vec<usize> = (0..rows).filter(|r| r % 4 != 2).flat_map(|r| [r * cols + 3, r * cols + 40]).collect();
    let values = SparseValues::F16(n.take(places.len()).into_iter().map(half::f16::from_f32).collect());
    let low_rank = LowRank { left: dense(n, rows, 3, Dtype::F16), right: dense(n, 3, cols, Dtype::F32) };
    let adapter = |n: &mut Numbers, rank, dtype, scale| Adapter {
        factors: LowRank { left: dense(n, rows, rank, dtype), right: dense(n, rank, cols, dtype) },
        scale,
    };
    let adapters = vec![adapter(n, 5, Dtype::BF16, 1.5), adapter(n, 2, Dtype::F32, -0.25)];
    let hadamard = |block, flips| Online::Hadamard { block, flips, is_inverse: false };
    let composed = QuantizedLinear {
        sides: Sides { sparse: Some(Sparse::new([rows, cols], &places, values).unwrap()), low_rank: Some(low_rank) },
        input: vec![hadamard(16, (0..cols).map(|c| c % 3 == 0).collect()), Online::Diagonal(n.take(cols))],
        output: vec![hadamard(4, (0..rows).map(|r| r % 5 == 0).collect()).inverse()],
        adapters,
        ..QuantizedLinear::uniform(int(n, rows, cols, 4, Group::Columns(32), 1), Some(n.take(rows)))
    };
    let plain = QuantizedLinear::uniform(dense(n, 7, cols, Dtype::BF16), None);
    let linears = [composed.clone(), plain].map(Arc::new);
    let x = n.take(tokens * cols);
    let w = composed.decode();
    for level in Level::of_machine() {
        let kernel = choose_at(level, &linears, Arithmetic::Exact);
        let outs = check_invariance(&*kernel, &linears, tokens, &x);
        check(&outs[1..], &linears[1..], tokens, &x, 1e-5);
        for (x, y) in x.chunks_exact(cols).zip(outs[0].chunks_exact(rows)) {
            let mut added = vec![0.0f32; rows * cols];
            composed.adapters.iter().for_each(|a| a.add_rows(0..rows, &mut added));
            let product = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
            let added: Vec<f32> = added.chunks_exact(cols).map(product).collect();
            let [mut x, mut expected] = [x.to_vec(), vec![0.0f32; rows]];
            composed.input.iter().for_each(|m| slow(m, &mut x));
            for (r, e) in expected.iter_mut().enumerate() {
                *e = w.row(r).iter().zip(&x).map(|(w, x)| w * x).sum();
            }
            composed.output.iter().for_each(|m| slow(m, &mut expected));
            let bias = composed.bias.as_ref().unwrap();
            expected.iter_mut().zip(&added).for_each(|(e, a)| *e += a);
            for ((y, e), b) in y.iter().zip(&expected).zip(bias) {
                assert!((y - (e + b)).abs() < 2e-4 * (1.0 + e.abs()), "{y} {e} {b}");
            }
        }
    }
}

/// `x M` by the definition: entry `(i, j)` of a Hadamard matrix is −1 to the power of the ones in `i & j`.
fn slow(map: &Online, x: &mut [f32]) {
    match map {
        Online::Diagonal(factors) => x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f),
        Online::Reorder(from) => {
            let old = x.to_vec();
            (0..x.len()).for_each(|k| x[k] = old[from[k] as usize]);
        }
        Online::Hadamard { block, flips, is_inverse } => {
            // Sylvester's matrices are symmetric: the inverse differs in the place of the signs alone.
            let turn = |x: &mut [f32]| x.iter_mut().zip(flips).filter(|(_, f)| **f).for_each(|(x, _)| *x = -*x);
            if !is_inverse {
                turn(x);
            }
            for x in x.chunks_exact_mut(*block) {
                let old = x.to_vec();
                for (j, x) in x.iter_mut().enumerate() {
                    let sign = |i: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    *x = old.iter().enumerate().map(|(i, v)| sign(i) * v).sum::<f32>() / (*block as f32).sqrt();
                }
            }
            if *is_inverse {
                turn(x);
            }
        }
    }
}

#[test]
fn inputs_are_rounded_unless_only_weights_count() {
    let n = &mut Numbers(9);
    let fp8 = ActivationGrid {
        number: Number::Float(Minifloat::E4M3),
        sharing: Sharing::Token,
        scale: ScaleType::F32,
        is_searched: false,
    };
    let mx = ActivationGrid {
        number: Number::Float(Minifloat::E2M1),
        sharing: Sharing::Columns(32),
        scale: ScaleType::E8M0,
        is_searched: false,
    };
    let storage =
        |n: &mut Numbers| [dense(n, 7, 64, Dtype::BF16), int(n, 9, 64, 8, Group::Row, 0), dense(n, 5, 64, Dtype::F32)];
    let formats = [Some(fp8), Some(fp8), Some(mx)];
    let linears: Vec<Arc<QuantizedLinear>> = (storage(n).into_iter().zip(formats))
        .map(|(s, f)| {
            let activation = f.map(ActivationGrid::dynamic);
            Arc::new(QuantizedLinear { activation, ..QuantizedLinear::uniform(s, None) })
        })
        .collect();
    let x = n.take(6 * 64);
    for level in Level::of_machine() {
        for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
            let kernel = choose_at(level, &linears, arithmetic);
            assert_eq!(kernel.name(), "rounded");
            let outs = run(&*kernel, &Team::new(2), &linears, 6, &x);
            for (i, format) in formats.iter().enumerate() {
                let mut rounded = x.clone();
                rounded.chunks_exact_mut(64).for_each(|row| format.unwrap().dynamic().round(row));
                check(&outs[i..=i], &linears[i..=i], 6, &rounded, 1e-5);
                assert!(rounded != x);
            }
        }
        let kernel = choose_at(level, &linears, Arithmetic::WeightsOnly);
        check(&run(&*kernel, &Team::new(2), &linears, 6, &x), &linears, 6, &x, 1e-5);
    }
}
