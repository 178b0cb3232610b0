use std::ops::Range;

use fewbit_format::{
    Band, Dtype, Error, IntCodes, IntGrid, Result, Storage, TableCodes, TableGrid, Zeros, packed_len, unpack_bits,
};

use super::{FewbitConfig, scale_shape};
use crate::layout::module::Module;
use crate::layout::scheme::{IntScheme, Scheme, TableScheme};

/// Reads a module whose codes are there.
pub(in crate::layout) fn read(config: &FewbitConfig, m: Module<'_>) -> Result<Vec<Band>> {
    let [rows, cols] = m.shape;
    match config.scheme_of(m.name) {
        Some(Scheme::Int(scheme)) => {
            Ok(vec![Band { rows: 0..rows, storage: Storage::Int(read_band(*scheme, m, 0..rows, "")?) }])
        }
        Some(Scheme::Table(scheme)) => {
            Ok(vec![Band { rows: 0..rows, storage: Storage::Table(read_table(*scheme, m)?) }])
        }
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
        None => Err(Error::input(format!("`{}` has codes, but the settings give it no scheme", m.name))
            .hint("mend `default` or `modules` in the `quantization_config` of config.json")),
    }
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
    group.check(cols).map_err(|e| e.tensor(&m.full_name(&part("codes"))))?;
    let codes = read_codes(m, &part("codes"), rows, bits)?;
    let shape = scale_shape(group, rows, cols);
    let (scale, scales) = m.scales(&part("scales"), &[&shape])?;
    let zeros = if m.has(&part("zeros")) {
        let packed = m.part_as(&part("zeros"), Dtype::U8, &[packed_len(scales.len(), bits)])?;
        let mut zeros = vec![0; scales.len()];
        unpack_bits(&packed.bytes, bits, &mut zeros);
        Zeros::Codes(zeros)
    } else if m.has(&part("offsets")) {
        Zeros::Offsets(m.scales(&part("offsets"), &[&shape])?.1)
    } else if scheme.symmetric {
        Zeros::Middle
    } else {
        return Err(Error::input("is missing, and so are offsets, but the scheme is asymmetric")
            .tensor(&m.full_name(&part("zeros"))));
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    let codes =
        IntCodes::new(rows, cols, grid, &codes, scales, zeros).map_err(|e| e.tensor(&m.full_name(&part("codes"))))?;
    m.grouped_by(&part("group_index"), codes)
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

fn read_table(scheme: TableScheme, m: Module<'_>) -> Result<TableCodes> {
    let (TableScheme { bits, group }, [rows, cols]) = (scheme, m.shape);
    let place = |e: Error| e.tensor(&m.full_name("weight.codes"));
    group.check(cols).map_err(place)?;
    let codes = read_codes(m, "weight.codes", rows, bits)?;
    let (scale, scales) = m.scales("weight.scales", &[&scale_shape(group, rows, cols)])?;
    let grid = TableGrid { bits, group, scale };
    let tables = m.scales("weight.table", &[&[grid.levels()], &[rows, grid.levels()]])?.1;
    TableCodes::new(rows, cols, grid, &codes, scales, tables).map_err(place)
}
