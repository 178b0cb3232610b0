//! A kernel holds a linear in the bits that it is stored in: counted by the allocator, for every kind of storage.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly, and says what it found")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use fewbit_format::{
    Blocks, Dtype, FloatCodes, FloatGrid, GgmlBlocks, GgmlType, Group, IntCodes, IntGrid, LatticeCodes, LatticeGrid,
    Levels, LowRank, Minifloat, Nested, NestedGrid, Numbers, Online, QuantizedLinear, ScaleType, SecondStage, Sides,
    SignCodes, SignGrid, Signs, Sparse, SparseValues, Storage, TableCodes, TableGrid, Tensor, TrellisCode,
    TrellisCodes, TrellisGrid, TwoOfFour, VectorCodes, VectorGrid, Zeros,
};
use fewbit_kernel::Team;
use fewbit_kernel::linear::{Arithmetic, choose};
use half::f16;

/// Counts what is allocated and not yet given back, and the most of it.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SHAPE: [usize; 2] = [1024, 1024];
const WEIGHTS: usize = SHAPE[0] * SHAPE[1];

/// Codes below `2^bits`, not all alike.
fn codes(count: usize, bits: u8) -> Vec<u8> {
    (0..count).map(|i| ((i * 2_654_435_761) >> 13) as u8 & ((1u16 << bits) - 1) as u8).collect()
}

/// Numbers that every type but a power of two holds.
fn scales(count: usize) -> Vec<f32> {
    (0..count).map(|i| [0.25, 0.5, 0.375, 1.0, 0.4375][i % 5]).collect()
}

fn int(bits: u8, group: Group, zeros: &str) -> Storage {
    let count = group.count(SHAPE[0], SHAPE[1]);
    let zeros = match zeros {
        "middle" => Zeros::Middle,
        "codes" => Zeros::Codes(codes(count, bits)),
        _ => Zeros::Offsets(scales(count).into()),
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale: ScaleType::F16 };
    Storage::Int(IntCodes::new(SHAPE[0], SHAPE[1], grid, &codes(WEIGHTS, bits), scales(count), zeros).unwrap())
}

/// As SpQR has it: scales and zero points of sixteen columns in three bits each.
fn nested() -> Storage {
    let shape = [SHAPE[0], SHAPE[1] / 16];
    let grid = NestedGrid { bits: 3, levels: Levels::Codes, blocks: Blocks::Rows(16), scale: ScaleType::F16 };
    let blocks = grid.count(shape[0], shape[1]);
    let numbers = || {
        let nested = Nested::new(shape, grid, &codes(shape[0] * shape[1], 3), &scales(blocks), &scales(blocks));
        Numbers::Nested(nested.unwrap())
    };
    let grid = IntGrid { bits: 3, group: Group::Columns(16), symmetric: false, scale: ScaleType::F16 };
    let codes = IntCodes::new(SHAPE[0], SHAPE[1], grid, &codes(WEIGHTS, 3), numbers(), Zeros::Points(numbers()));
    Storage::Int(codes.unwrap())
}

fn table(is_shared: bool) -> Storage {
    let grid = TableGrid { bits: 4, group: Group::Columns(64), scale: ScaleType::F16 };
    let tables = scales(16 * if is_shared { 1 } else { SHAPE[0] });
    let count = grid.group.count(SHAPE[0], SHAPE[1]);
    Storage::Table(TableCodes::new(SHAPE[0], SHAPE[1], grid, &codes(WEIGHTS, 4), scales(count), tables).unwrap())
}

fn signs(signs: Signs) -> Storage {
    let grid = SignGrid { signs, group: Group::Columns(64), scale: ScaleType::F16 };
    let numbers = scales(grid.group.count(SHAPE[0], SHAPE[1]) * signs.numbers());
    let codes = codes(WEIGHTS, 8).into_iter().map(|q| q % signs.levels() as u8).collect::<Vec<u8>>();
    Storage::Signs(SignCodes::new(SHAPE[0], SHAPE[1], grid, &codes, &numbers).unwrap())
}

fn lattice(second: SecondStage) -> Storage {
    let grid = LatticeGrid { second, group: Group::Columns(16), scale: ScaleType::BF16 };
    let wide = |most: usize| (0..WEIGHTS / 8).map(|i| (i * 31 % most) as u16).collect::<Vec<u16>>();
    let seconds = match second {
        SecondStage::None => Vec::new(),
        SecondStage::E8Short => wide(256),
        SecondStage::E8P => wide(65536),
    };
    Storage::Lattice(LatticeCodes::new(SHAPE[0], SHAPE[1], grid, wide(65536), &seconds, &scales(WEIGHTS / 16)).unwrap())
}

fn vector() -> Storage {
    let grid = VectorGrid { len: 8, bits: 12, residual_bits: 8, has_columns: true };
    let of = |bits: u32| (0..WEIGHTS / 8).map(|i| (i * 31 % (1 << bits)) as u16).collect::<Vec<u16>>();
    let (books, columns) = (scales(8 * grid.entries()), scales(2 * SHAPE[1]));
    Storage::Vector(VectorCodes::new(SHAPE[0], SHAPE[1], grid, &of(12), &of(8), books, columns).unwrap())
}

fn trellis() -> Storage {
    let (code, scale) = (TrellisCode::OneMad, ScaleType::F16);
    let grid = TrellisGrid { state_bits: 12, tile_bits: 512, code, group: Group::Columns(32), scale };
    let paths = codes(WEIGHTS / 256 * grid.tile_bytes(), 8);
    Storage::Trellis(TrellisCodes::new(SHAPE[0], SHAPE[1], grid, paths, &scales(WEIGHTS / 32)).unwrap())
}

fn float(element: Minifloat, group: Group, scale: ScaleType) -> Storage {
    let count = group.count(SHAPE[0], SHAPE[1]);
    let packed = codes(WEIGHTS * usize::from(element.bits()) / 8, 6);
    let scales = if scale == ScaleType::E8M0 { vec![0.5; count] } else { scales(count) };
    let (grid, scales) = (FloatGrid { element, group, scale }, scale.to_bytes(&scales));
    Storage::Float(FloatCodes::new(SHAPE[0], SHAPE[1], grid, packed.into(), scales.into(), None).unwrap())
}

fn two_of_four() -> Storage {
    let grid = IntGrid { bits: 4, group: Group::Columns(64), symmetric: true, scale: ScaleType::F16 };
    let (rows, cols) = (SHAPE[0], SHAPE[1] / 2);
    let kept =
        IntCodes::new(rows, cols, grid, &codes(rows * cols, 4), scales(rows * cols / 64), Zeros::Middle).unwrap();
    Storage::TwoOfFour(TwoOfFour::new(SHAPE[1], vec![0b0101_1010; WEIGHTS / 8], Storage::Int(kept)).unwrap())
}

fn ggml(kind: GgmlType) -> Storage {
    let mut bytes = codes(SHAPE[0] * kind.row_bytes(SHAPE[1]).unwrap(), 8);
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        // Finite scales.
        kind.f16_fields().iter().for_each(|at| block[at + 1] &= 0xbf);
        match kind {
            GgmlType::Q8K => block[3] &= 0xbf,
            GgmlType::Iq1M => block[55] &= 0xbf,
            GgmlType::Mxfp4 => block[0] &= 0x7f,
            _ => {}
        }
    }
    Storage::Ggml(GgmlBlocks::new(kind, SHAPE[0], SHAPE[1], bytes.into()).unwrap())
}

/// One weight in so many beside the codes.
fn sparse(every: usize) -> Sparse {
    let places: Vec<usize> = (0..WEIGHTS).step_by(every).collect();
    let values = SparseValues::F16(vec![f16::ONE; places.len()]);
    Sparse::new(SHAPE, &places, values).unwrap()
}

/// What is held beyond the stored bits, and the most beyond that while the kernel runs, in bytes.
fn measured(name: &str, make: impl Fn() -> QuantizedLinear, arithmetic: Arithmetic) -> (i64, usize) {
    let (team, x) = (Team::new(2), vec![0.5f32; SHAPE[1]]);
    let mut y = vec![0.0f32; SHAPE[0]];
    // Tables that are made once, threads' own buffers.
    choose(vec![Arc::new(make())], arithmetic).run(&team, 1, &x, &mut [&mut y]);
    let before = LIVE.load(Relaxed);
    let linear = make();
    let stored = linear.stored_bits().div_ceil(8);
    let kernel = choose(vec![Arc::new(linear)], arithmetic);
    let held = LIVE.load(Relaxed) - before;
    PEAK.store(LIVE.load(Relaxed), Relaxed);
    kernel.run(&team, 1, &x, &mut [&mut y]);
    let running = PEAK.load(Relaxed) - before - held;
    let bits = |bytes: f64| 8.0 * bytes / WEIGHTS as f64;
    println!(
        "{name:32} {:9} {:.4} bits stored, {:.4} held, {running} bytes more while it runs",
        kernel.name(),
        bits(stored as f64),
        bits(held as f64)
    );
    assert!(y.iter().all(|v| v.is_finite()), "{name}");
    (held as i64 - stored as i64, running)
}

/// A linear, and how many bytes beyond its bits are known to be held for it.
struct Case {
    name: String,
    make: Box<dyn Fn() -> QuantizedLinear>,
    more: usize,
}

impl Case {
    fn new(name: impl Into<String>, make: impl Fn() -> QuantizedLinear + 'static, more: usize) -> Self {
        Self { name: name.into(), make: Box::new(make), more }
    }
}

/// One test, since all share the count.
#[test]
fn linears_take_no_more_memory_than_their_bits() {
    let mut all: Vec<Case> = Vec::new();
    let mut add = |name: &str, storage: fn() -> Storage, more: usize| {
        all.push(Case::new(name, move || QuantizedLinear::uniform(storage(), None), more));
    };
    add("lattice", || lattice(SecondStage::None), 0);
    add("lattice, 3 bits", || lattice(SecondStage::E8Short), 0);
    add("lattice, 4 bits", || lattice(SecondStage::E8P), 0);
    add("vectors", vector, 0);
    add("trellis", trellis, 0);
    add("sign planes", || signs(Signs::Planes { count: 2, has_offset: true }), 0);
    // Two bits instead of five codes in a byte.
    add("ternary", || signs(Signs::Ternary), WEIGHTS / 20);
    add("two of four", two_of_four, 0);
    add("one table", || table(true), 0);
    // Tables of rows are decoded from f32.
    add("tables of rows", || table(false), 2 * 16 * SHAPE[0]);
    add("nvfp4", || float(Minifloat::E2M1, Group::Columns(16), ScaleType::E4M3), 0);
    add("mxfp4", || float(Minifloat::E2M1, Group::Columns(32), ScaleType::E8M0), 0);
    add("fp8 in blocks", || float(Minifloat::E4M3, Group::Block([128, 128]), ScaleType::F32), 0);
    add("scales of scales", nested, 0);
    for bits in 1..=8 {
        for (group, zeros) in [
            (Group::Columns(32), "middle"),
            (Group::Columns(64), "codes"),
            (Group::Columns(64), "offsets"),
            (Group::Columns(8), "middle"),
            (Group::Row, "middle"),
            (Group::Tensor, "middle"),
        ] {
            // A zero point is one byte while it runs.
            let more = if zeros == "codes" { WEIGHTS / 64 } else { 0 };
            let make = move || QuantizedLinear::uniform(int(bits, group, zeros), None);
            all.push(Case::new(format!("{bits} bits, {group:?}, {zeros}"), make, more));
        }
    }
    for kind in GgmlType::ALL {
        // Scales (and minima) of four and six bits in blocks of 256 are bytes while they run, and the eighth sign of IQ2 and IQ3 is
        // there, which could follow from the others.
        let more = match kind {
            GgmlType::Q2K => WEIGHTS / 16,
            GgmlType::Q3K | GgmlType::Q4K | GgmlType::Q5K | GgmlType::Iq2Xxs | GgmlType::Iq2Xs | GgmlType::Iq3Xxs => {
                WEIGHTS / 64
            }
            GgmlType::Iq4Xs => WEIGHTS / 128,
            // Two bits instead of five values in a byte.
            GgmlType::Tq1_0 => WEIGHTS * 3 / 64,
            _ => 0,
        };
        all.push(Case::new(kind.name(), move || QuantizedLinear::uniform(ggml(kind), None), more));
    }
    let beside =
        |sides: Sides| move || QuantizedLinear { sides: sides.clone(), ..QuantizedLinear::uniform(trellis(), None) };
    for every in [2, 16, 64] {
        let sides = Sides { sparse: Some(sparse(every)), low_rank: None };
        // Where blocks of rows begin.
        let more = 24 * SHAPE[0].div_ceil(Sparse::BLOCK);
        all.push(Case::new(format!("one in {every} beside"), beside(sides), more));
    }
    let low_rank = || {
        let factor = |rows: usize, cols: usize| {
            Storage::Dense(Tensor::from_f32(Dtype::F16, &[rows, cols], &scales(rows * cols)).unwrap())
        };
        LowRank { left: factor(SHAPE[0], 8), right: factor(8, SHAPE[1]) }
    };
    let corrected = move || QuantizedLinear {
        sides: Sides { sparse: None, low_rank: Some(low_rank()) },
        ..QuantizedLinear::uniform(trellis(), None)
    };
    all.push(Case::new("low rank", corrected, 0));
    let hadamard = |n: usize| Online::Hadamard { block: n, flips: vec![true; n], is_inverse: false };
    let mapped = move || QuantizedLinear {
        input: vec![hadamard(SHAPE[1])],
        output: vec![hadamard(SHAPE[0])],
        ..QuantizedLinear::uniform(lattice(SecondStage::None), None)
    };
    // Signs of maps are numbers while it runs.
    all.push(Case::new("maps on both sides", mapped, 4 * (SHAPE[0] + SHAPE[1])));

    let mut failed = Vec::new();
    for Case { name, make, more } in &all {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let (beyond, running) = measured(name, make, arithmetic);
            // The few fields of kernels; what one token needs, and a few decoded rows for each thread.
            if beyond > *more as i64 + 8192 || running > 4 * WEIGHTS / 8 {
                failed
                    .push(format!("{name}: {beyond} bytes beyond its bits, {more} explained; {running} while it runs"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    a_token_allocates_nothing();
}

/// Beside the one above, since the counters are for the whole process.
fn a_token_allocates_nothing() {
    let dense = Tensor::from_f32(Dtype::BF16, &SHAPE, &scales(WEIGHTS)).unwrap();
    let int = |bits| int(bits, Group::Columns(64), "codes");
    let ours = [int(3), int(4), int(8), ggml(GgmlType::Q4K), Storage::Dense(dense)];
    let blocks = [GgmlType::Iq4Xs, GgmlType::Iq3S].map(ggml);
    let others = [table(true), nested(), vector(), trellis(), two_of_four(), lattice(SecondStage::E8P)];
    let others = others.into_iter().chain(blocks);
    for storage in ours.into_iter().chain(others) {
        let linear = Arc::new(QuantizedLinear::uniform(storage, None));
        let kernel = choose(vec![linear.clone(), linear], Arithmetic::Fast);
        let (team, x) = (Team::new(1), vec![0.5f32; SHAPE[1]]);
        let mut y = [vec![0.0f32; SHAPE[0]], vec![0.0f32; SHAPE[0]]];
        let [a, b] = &mut y;
        let mut run = || kernel.run(&team, 1, &x, &mut [a, b]);
        run();
        let before = CALLS.load(Relaxed);
        run();
        assert_eq!(CALLS.load(Relaxed), before, "{}", kernel.name());
    }
}
