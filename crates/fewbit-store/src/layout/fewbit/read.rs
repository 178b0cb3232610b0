use std::ops::Range;

use fewbit_format::{
    Band, Dtype, Error, FloatCodes, FloatGrid, GgmlBlocks, GgmlType, IntCodes, IntGrid, LATTICE_DIM, LatticeCodes,
    LatticeGrid, Result, SecondStage, SignCodes, SignGrid, Storage, TILE, TableCodes, TableGrid, TrellisCodes,
    TrellisGrid, TwoOfFour, VectorCodes, VectorGrid, Zeros, packed_len, tiles, unpack_bits,
};

use super::{FewbitConfig, numbers, scale_shape, tile_shape};
use crate::layout::module::Module;
use crate::layout::scheme::{FloatScheme, IntScheme, LatticeScheme, Scheme, SignScheme, TableScheme, TrellisScheme};

/// Reads a module whose codes are there.
pub(in crate::layout) fn read(config: &FewbitConfig, m: Module<'_>) -> Result<Vec<Band>> {
    let [rows, cols] = m.shape;
    match config.scheme_of(m.name).map(Scheme::weights) {
        Some(Scheme::Bands(schemes)) => {
            let mut bands = Vec::with_capacity(schemes.len());
            let mut first = 0usize;
            for (i, (count, scheme)) in schemes.iter().enumerate() {
                let last =
                    first.checked_add(*count).filter(|last| *last <= rows).ok_or_else(|| bands_differ(m, schemes))?;
                let codes = read_band(*scheme, Module { shape: [*count, cols], ..m }, first..last, &format!(".{i}"))?;
                bands.push(Band { rows: first..last, storage: Storage::Int(codes) });
                first = last;
            }
            if first == rows { Ok(bands) } else { Err(bands_differ(m, schemes)) }
        }
        Some(scheme) => Ok(vec![Band { rows: 0..rows, storage: read_one(scheme, m)? }]),
        None => Err(Error::input(format!("`{}` has codes, but the settings give it no scheme", m.name))
            .hint("mend `default` or `modules` in the `quantization_config` of config.json")),
    }
}

/// Reads a weight all of whose rows are of one kind.
fn read_one(scheme: &Scheme, m: Module<'_>) -> Result<Storage> {
    Ok(match scheme {
        Scheme::Int(scheme) => Storage::Int(read_band(*scheme, m, 0..m.shape[0], "")?),
        Scheme::Table(scheme) => Storage::Table(read_table(*scheme, m)?),
        Scheme::Signs(scheme) => Storage::Signs(read_signs(*scheme, m)?),
        Scheme::Float(scheme) => Storage::Float(read_float(*scheme, m)?),
        Scheme::Ggml(kind) => Storage::Ggml(read_ggml(*kind, m)?),
        Scheme::Lattice(scheme) => Storage::Lattice(read_lattice(*scheme, m)?),
        Scheme::Vector(grid) => Storage::Vector(read_vector(*grid, m)?),
        Scheme::Trellis(scheme) => Storage::Trellis(read_trellis(*scheme, m)?),
        Scheme::TwoOfFour(kept) => Storage::TwoOfFour(read_two_of_four(kept.as_deref(), m)?),
        Scheme::Bands(_) | Scheme::Rounded(..) => return Err(Error::internal("a scheme within a scheme")),
    })
}

fn read_two_of_four(kept: Option<&Scheme>, m: Module<'_>) -> Result<TwoOfFour> {
    let [rows, cols] = m.shape;
    let mask = m.part_as("weight.mask", Dtype::U8, &[rows, TwoOfFour::mask_bytes(cols)])?.bytes.to_vec();
    let half = Module { shape: [rows, cols / 2], ..m };
    let kept = if let Some(scheme) = kept {
        read_one(scheme, half)?
    } else {
        let tensor = m.part("weight.kept")?;
        if !(tensor.dtype.is_float() && tensor.shape == half.shape) {
            let (name, shape) = (tensor.dtype.name(), &tensor.shape);
            return Err(Error::input(format!("is {name} {shape:?}, where floats {:?} are needed", half.shape))
                .tensor(&m.full_name("weight.kept")));
        }
        Storage::Dense(tensor)
    };
    TwoOfFour::new(cols, mask, kept).map_err(|e| e.tensor(&m.full_name("weight.mask")))
}

fn bands_differ(m: Module<'_>, schemes: &[(usize, IntScheme)]) -> Error {
    let rows: Vec<usize> = schemes.iter().map(|(rows, _)| *rows).collect();
    Error::input(format!("bands of {rows:?} rows in the settings, where the config asks for {} rows", m.shape[0]))
        .tensor(&m.full_name("weight"))
}

fn read_band(scheme: IntScheme, m: Module<'_>, rows: Range<usize>, band: &str) -> Result<IntCodes> {
    let IntScheme { bits, group, .. } = scheme;
    let (rows, cols) = (rows.len(), m.shape[1]);
    let part = |name: &str| format!("weight.{name}{band}");
    group.check(cols).map_err(|e| e.tensor(&m.full_name(&part("scales"))))?;
    let is_tiled = m.has(&part("tiles"));
    let (place, packed, shape) = if is_tiled {
        let shape = [rows.div_ceil(tiles::ROWS), tiles::tile_bytes(cols, bits)];
        (part("tiles"), m.part_as(&part("tiles"), Dtype::U8, &shape)?.bytes, tile_shape(group, rows, cols))
    } else {
        let packed = m.part_as(&part("codes"), Dtype::U8, &[rows, packed_len(cols, bits)])?.bytes;
        (part("codes"), packed, scale_shape(group, rows, cols))
    };
    let numbers = |name: &str| numbers::read(m, name, band, scheme.second, &shape);
    let (scale, scales) = numbers("scales")?;
    let zeros = if m.has(&part("zeros")) {
        let packed = m.part_as(&part("zeros"), Dtype::U8, &[packed_len(scales.len(), bits)])?;
        let mut zeros = vec![0; scales.len()];
        unpack_bits(&packed.bytes, bits, &mut zeros);
        Zeros::Codes(zeros)
    } else if has_numbers(m, "offsets", band) {
        Zeros::Offsets(numbers("offsets")?.1)
    } else if has_numbers(m, "points", band) {
        Zeros::Points(numbers("points")?.1)
    } else if scheme.symmetric {
        Zeros::Middle
    } else {
        return Err(Error::input("is missing, and so are offsets, but the scheme is asymmetric")
            .tensor(&m.full_name(&part("zeros"))));
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    let make = if is_tiled { IntCodes::from_tiles } else { IntCodes::from_packed };
    let codes = make([rows, cols], grid, packed, scales, zeros).map_err(|e| e.tensor(&m.full_name(&place)))?;
    m.grouped_by(&part("group_index"), codes)
}

fn has_numbers(m: Module<'_>, name: &str, band: &str) -> bool {
    m.has(&format!("weight.{name}{band}")) || m.has(&format!("weight.{name}.codes{band}"))
}

fn read_codes(m: Module<'_>, part: &str, rows: usize, bits: u8) -> Result<Vec<u8>> {
    let (cols, row_bytes) = (m.shape[1], packed_len(m.shape[1], bits));
    let packed = m.part_as(part, Dtype::U8, &[rows, row_bytes])?;
    let mut codes = vec![0; rows * cols];
    for (row, out) in packed.bytes.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(cols)) {
        unpack_bits(row, bits, out);
    }
    Ok(codes)
}

fn read_signs(scheme: SignScheme, m: Module<'_>) -> Result<SignCodes> {
    let (SignScheme { signs, group }, [rows, cols]) = (scheme, m.shape);
    let place = |e: Error| e.tensor(&m.full_name("weight.codes"));
    group.check(cols).map_err(place)?;
    let packed = m.part_as("weight.codes", Dtype::U8, &[rows, signs.row_bytes(cols)])?;
    let (scale, numbers) = m.scales("weight.numbers", &[[rows, group.per_row(cols), signs.numbers()]])?;
    SignCodes::from_packed(rows, cols, SignGrid { signs, group, scale }, packed.bytes.to_vec(), &numbers).map_err(place)
}

fn read_table(scheme: TableScheme, m: Module<'_>) -> Result<TableCodes> {
    let (TableScheme { bits, group, second }, [rows, cols]) = (scheme, m.shape);
    let place = |e: Error| e.tensor(&m.full_name("weight.codes"));
    group.check(cols).map_err(place)?;
    let codes = read_codes(m, "weight.codes", rows, bits)?;
    let (scale, scales) = numbers::read(m, "scales", "", second, &scale_shape(group, rows, cols))?;
    let grid = TableGrid { bits, group, scale };
    let tables = if m.part("weight.table")?.dtype == Dtype::I8 {
        let integers = m.part_as("weight.table", Dtype::I8, &[rows, grid.levels()])?;
        integers.bytes.iter().map(|b| f32::from(*b as i8)).collect()
    } else {
        m.scales("weight.table", &[&[grid.levels()][..], &[rows, grid.levels()]])?.1
    };
    TableCodes::new(rows, cols, grid, &codes, scales, tables).map_err(place)
}

fn read_lattice(scheme: LatticeScheme, m: Module<'_>) -> Result<LatticeCodes> {
    let (LatticeScheme { second, group }, [rows, cols]) = (scheme, m.shape);
    let place = |e: Error| e.tensor(&m.full_name("weight.codes"));
    let grid = LatticeGrid { second, group, scale: fewbit_format::ScaleType::F16 };
    grid.check(cols).map_err(place)?;
    let per_row = cols / LATTICE_DIM;
    let words = |part: &str| -> Result<Vec<u16>> {
        let stored = m.part_as(part, Dtype::U8, &[rows, 2 * per_row])?;
        Ok(stored.bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect())
    };
    let seconds = match second {
        SecondStage::None => Vec::new(),
        SecondStage::E8Short => {
            let stored = m.part_as("weight.residual", Dtype::U8, &[rows, per_row])?;
            stored.bytes.iter().map(|b| u16::from(*b)).collect()
        }
        SecondStage::E8P => words("weight.residual")?,
    };
    let (scale, scales) = m.scales("weight.scales", &[&scale_shape(group, rows, cols)])?;
    LatticeCodes::new(rows, cols, LatticeGrid { scale, ..grid }, words("weight.codes")?, &seconds, &scales)
        .map_err(place)
}

fn read_vector(grid: VectorGrid, m: Module<'_>) -> Result<VectorCodes> {
    let ([rows, cols], len) = (m.shape, usize::from(grid.len));
    let strips = rows.div_ceil(len);
    let stream = |part: &str, bits: u8| m.part_as(part, Dtype::U8, &[strips, packed_len(cols, bits)]);
    let codes = stream("weight.codes", grid.bits)?.bytes.to_vec();
    let residual =
        if grid.residual_bits > 0 { stream("weight.residual", grid.residual_bits)?.bytes.to_vec() } else { Vec::new() };
    let f16 = |part: &str, shape: &[usize]| m.part_as(part, Dtype::F16, shape)?.to_f32();
    let codebook = f16("weight.codebook", &[grid.entries(), len])?;
    let columns = if grid.has_columns { f16("weight.columns", &[2, cols])? } else { Vec::new() };
    VectorCodes::from_packed(rows, cols, grid, codes, residual, codebook, columns)
        .map_err(|e| e.tensor(&m.full_name("weight.codebook")))
}

fn read_trellis(scheme: TrellisScheme, m: Module<'_>) -> Result<TrellisCodes> {
    let (TrellisScheme { state_bits, tile_bits, code, group }, [rows, cols]) = (scheme, m.shape);
    let place = |e: Error| e.tensor(&m.full_name("weight.codes"));
    let grid = TrellisGrid { state_bits, tile_bits, code, group, scale: fewbit_format::ScaleType::F16 };
    grid.check(cols).map_err(place)?;
    let packed = m.part_as("weight.codes", Dtype::U8, &[rows.div_ceil(TILE), cols / TILE, grid.tile_bytes()])?;
    let (scale, scales) = m.scales("weight.scales", &[&scale_shape(group, rows, cols)])?;
    let grid = TrellisGrid { scale, ..grid };
    TrellisCodes::new(rows, cols, grid, packed.bytes.to_vec(), &scales).map_err(place)
}

fn read_ggml(kind: GgmlType, m: Module<'_>) -> Result<GgmlBlocks> {
    let [rows, cols] = m.shape;
    let bytes = m.part("weight.codes")?.bytes;
    GgmlBlocks::new(kind, rows, cols, bytes).map_err(|e| e.tensor(&m.full_name("weight.codes")))
}

fn read_float(scheme: FloatScheme, m: Module<'_>) -> Result<FloatCodes> {
    let (FloatScheme { element, group, .. }, [rows, cols]) = (scheme, m.shape);
    let place = |e: Error| e.tensor(&m.full_name("weight.codes"));
    let codes = m.part_as("weight.codes", Dtype::U8, &[rows, packed_len(cols, element.bits())])?;
    let (scale, scales) = m.stored_scales("weight.scales", &[scale_shape(group, rows, cols)])?;
    let global = if m.has("weight.global_scale") { Some(m.scales("weight.global_scale", &[[1]])?.1[0]) } else { None };
    let grid = FloatGrid { element, group, scale };
    FloatCodes::new(rows, cols, grid, codes.bytes, scales, global).map_err(place)
}
