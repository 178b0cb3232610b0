//! Matrices of each kind of storage, as recipes make them.

use fewbit_format::{
    Blocks, FloatCodes, FloatGrid, Group, IntCodes, IntGrid, LatticeCodes, LatticeGrid, Levels, Minifloat, Nested,
    NestedGrid, Numbers, ScaleType, SecondStage, SignCodes, SignGrid, Signs, Storage, TableCodes, TableGrid,
    TrellisCode, TrellisCodes, TrellisGrid, TwoOfFour, VectorCodes, VectorGrid, Zeros, packed_len,
};

/// Makes a matrix of so many rows and columns.
type Make = fn(usize, usize) -> Storage;

pub(crate) const ALL: &[(&str, Make)] = &[
    ("nf4 g64", |r, c| table(r, c, 4, Group::Columns(64), true)),
    ("nf4 g64, double", nf4_double),
    ("nf3 g64", |r, c| table(r, c, 3, Group::Columns(64), true)),
    ("squeezellm 4 bits", |r, c| table(r, c, 4, Group::Row, false)),
    ("squeezellm 3 bits", |r, c| table(r, c, 3, Group::Row, false)),
    ("mxfp4", |r, c| float(r, c, "e2m1", Group::Columns(32), ScaleType::E8M0, None)),
    ("nvfp4", |r, c| float(r, c, "e2m1", Group::Columns(16), ScaleType::E4M3, Some(3.0))),
    ("fp8 rows", |r, c| float(r, c, "e4m3", Group::Row, ScaleType::F32, None)),
    ("fp8 blocks", |r, c| float(r, c, "e4m3", Group::Block([128, 128]), ScaleType::F32, None)),
    ("fp6", |r, c| float(r, c, "e3m2", Group::Columns(32), ScaleType::E8M0, None)),
    ("spqr", spqr),
    ("signs 2 planes", |r, c| signs(r, c, Signs::Planes { count: 2, has_offset: true })),
    ("signs 3 planes", |r, c| signs(r, c, Signs::Planes { count: 3, has_offset: true })),
    ("ternary", |r, c| signs(r, c, Signs::Ternary)),
    ("two of four", two_of_four),
    ("lattice 2 bits", |r, c| lattice(r, c, SecondStage::None)),
    ("lattice 3 bits", |r, c| lattice(r, c, SecondStage::E8Short)),
    ("lattice 4 bits", |r, c| lattice(r, c, SecondStage::E8P)),
    ("trellis 2 bits", |r, c| trellis(r, c, 512, TrellisCode::OneMad)),
    ("trellis 2 bits 3inst", |r, c| trellis(r, c, 512, TrellisCode::ThreeInst)),
    ("trellis 2.5 bits", |r, c| trellis(r, c, 640, TrellisCode::OneMad)),
    ("vector 12+8 bits of 8", |r, c| vector(r, c, 12, 8)),
    ("vector 16 bits of 8", |r, c| vector(r, c, 16, 0)),
];

/// Codes below `2^bits`.
fn codes(count: usize, bits: u8) -> Vec<u8> {
    (0..count).map(|i| ((i * 2_654_435_761) >> 13) as u8 & ((1u16 << bits) - 1) as u8).collect()
}

fn wide(count: usize, bits: u32) -> Vec<u16> {
    (0..count).map(|i| (((i * 2_654_435_761) >> 13) % (1 << bits)) as u16).collect()
}

/// Numbers that every type but a power of two holds.
fn scales(count: usize) -> Vec<f32> {
    (0..count).map(|i| [0.25, 0.5, 0.375, 1.0, 0.4375][i % 5]).collect()
}

fn table(rows: usize, cols: usize, bits: u8, group: Group, is_shared: bool) -> Storage {
    let grid = TableGrid { bits, group, scale: ScaleType::F16 };
    let levels = scales(grid.levels() * if is_shared { 1 } else { rows });
    let made = TableCodes::new(rows, cols, grid, &codes(rows * cols, bits), scales(group.count(rows, cols)), levels);
    Storage::Table(made.expect("sizes fit"))
}

fn nested(shape: [usize; 2], grid: NestedGrid, offsets: usize) -> Numbers {
    let count = grid.count(shape[0], shape[1]);
    let codes = codes(shape[0] * shape[1], grid.bits);
    let offsets = scales(if offsets > 1 { count } else { offsets });
    Numbers::Nested(Nested::new(shape, grid, &codes, &scales(count), &offsets).expect("sizes fit"))
}

fn nf4_double(rows: usize, cols: usize) -> Storage {
    let grid = TableGrid { bits: 4, group: Group::Columns(64), scale: ScaleType::F16 };
    let second = NestedGrid { bits: 8, levels: Levels::Dynamic, blocks: Blocks::Flat(256), scale: ScaleType::F32 };
    let numbers = nested([rows, cols / 64], second, 1);
    let made = TableCodes::new(rows, cols, grid, &codes(rows * cols, 4), numbers, scales(16));
    Storage::Table(made.expect("sizes fit"))
}

fn spqr(rows: usize, cols: usize) -> Storage {
    let second = NestedGrid { bits: 3, levels: Levels::Codes, blocks: Blocks::Rows(16), scale: ScaleType::F16 };
    let numbers = || nested([rows, cols / 16], second, 2);
    let grid = IntGrid { bits: 3, group: Group::Columns(16), symmetric: false, scale: ScaleType::F16 };
    let made = IntCodes::new(rows, cols, grid, &codes(rows * cols, 3), numbers(), Zeros::Points(numbers()));
    Storage::Int(made.expect("sizes fit"))
}

fn float(rows: usize, cols: usize, element: &str, group: Group, scale: ScaleType, global: Option<f32>) -> Storage {
    let element = Minifloat::parse(element).expect("a name");
    let count = group.count(rows, cols);
    let packed = codes(rows * packed_len(cols, element.bits()), 6);
    let numbers = if scale == ScaleType::E8M0 { vec![0.5; count] } else { scales(count) };
    let (grid, numbers) = (FloatGrid { element, group, scale }, scale.to_bytes(&numbers));
    Storage::Float(FloatCodes::new(rows, cols, grid, packed.into(), numbers.into(), global).expect("sizes fit"))
}

fn signs(rows: usize, cols: usize, signs: Signs) -> Storage {
    let grid = SignGrid { signs, group: Group::Columns(128), scale: ScaleType::F16 };
    let numbers = scales(grid.group.count(rows, cols) * signs.numbers());
    let codes: Vec<u8> = codes(rows * cols, 8).into_iter().map(|q| q % signs.levels() as u8).collect();
    Storage::Signs(SignCodes::new(rows, cols, grid, &codes, &numbers).expect("sizes fit"))
}

fn two_of_four(rows: usize, cols: usize) -> Storage {
    let grid = IntGrid { bits: 4, group: Group::Columns(64), symmetric: true, scale: ScaleType::F16 };
    let half = rows * cols / 2;
    let kept = IntCodes::new(rows, cols / 2, grid, &codes(half, 4), scales(half / 64), Zeros::Middle);
    let kept = Storage::Int(kept.expect("sizes fit"));
    Storage::TwoOfFour(TwoOfFour::new(cols, vec![0b0101_1010; rows * cols / 8], kept).expect("two of four"))
}

fn lattice(rows: usize, cols: usize, second: SecondStage) -> Storage {
    let grid = LatticeGrid { second, group: Group::Row, scale: ScaleType::F32 };
    let count = rows * cols / 8;
    let seconds = match second {
        SecondStage::None => Vec::new(),
        SecondStage::E8Short => wide(count, 8),
        SecondStage::E8P => wide(count, 16),
    };
    Storage::Lattice(LatticeCodes::new(rows, cols, grid, wide(count, 16), &seconds, &scales(rows)).expect("sizes fit"))
}

fn trellis(rows: usize, cols: usize, tile_bits: u16, code: TrellisCode) -> Storage {
    let grid = TrellisGrid { state_bits: 16, tile_bits, code, group: Group::Row, scale: ScaleType::F32 };
    let paths = codes(rows * cols / 256 * grid.tile_bytes(), 8);
    Storage::Trellis(TrellisCodes::new(rows, cols, grid, paths, &scales(rows)).expect("sizes fit"))
}

fn vector(rows: usize, cols: usize, bits: u8, residual_bits: u8) -> Storage {
    let grid = VectorGrid { len: 8, bits, residual_bits, has_columns: true };
    let count = rows * cols / 8;
    let residual = if residual_bits > 0 { wide(count, u32::from(residual_bits)) } else { Vec::new() };
    let (books, columns) = (scales(8 * grid.entries()), scales(2 * cols));
    let made = VectorCodes::new(rows, cols, grid, &wide(count, u32::from(bits)), &residual, books, columns);
    Storage::Vector(made.expect("sizes fit"))
}
