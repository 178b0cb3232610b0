//! Integer codes as the layouts of GPTQ and AWQ have them: an integer zero point and a plain scale for each group of a row.

use fewbit_format::{Group, IntCodes, ScaleType, Storage, Zeros};

/// The codes of a weight that these layouts can hold, as far as they are alike; else why not.
pub(super) fn codes_of(storage: &Storage) -> Result<&IntCodes, String> {
    let Storage::Int(codes) = storage else { return Err("it holds integer codes alone".to_owned()) };
    if !matches!(codes.grid().scale, ScaleType::F16 | ScaleType::BF16) {
        return Err(format!("it holds scales in F16 or BF16, not {:?}", codes.grid().scale));
    }
    if codes.has_nested() {
        return Err("it holds scales, not codes of a second level in their place".to_owned());
    }
    match codes.zeros() {
        Zeros::Offsets(_) | Zeros::Points(_) => Err("it holds integer zero points, not real offsets".to_owned()),
        Zeros::Middle | Zeros::Codes(_) => Ok(codes),
    }
}

/// Codes, zero points and scales, unpacked.
pub(super) struct Integers {
    /// `[rows, cols]`.
    pub(super) shape: [usize; 2],
    /// Bits of a code.
    pub(super) bits: u8,
    /// Groups of a row.
    pub(super) groups: usize,
    /// `[rows, cols]`.
    pub(super) codes: Vec<u8>,
    /// `[rows, groups]`.
    pub(super) zeros: Vec<u8>,
    /// Type of a scale.
    pub(super) scale: ScaleType,
    /// `[rows, groups]`.
    pub(super) scales: Vec<f32>,
    /// The group of each column.
    pub(super) index: Vec<i32>,
}

impl Integers {
    /// Takes codes apart for which [`codes_of`] found nothing. One scale of the matrix is repeated for its rows.
    pub(super) fn of(codes: &IntCodes) -> Self {
        let codes = codes.in_rows();
        let ([rows, cols], grid, groups) = (codes.shape(), codes.grid(), codes.groups_per_row());
        let mut unpacked = vec![0; rows * cols];
        for (r, row) in unpacked.chunks_exact_mut(cols).enumerate() {
            codes.row_codes(r, row);
        }
        let repeated = if grid.group == Group::Tensor { rows } else { 1 };
        let zeros = match codes.zeros() {
            Zeros::Codes(zeros) => zeros.repeat(repeated),
            _ => vec![1 << (grid.bits - 1); rows * groups],
        };
        let scales = codes.scales().values().repeat(repeated);
        let index = match codes.group_index() {
            Some(index) => index.iter().map(|k| *k as i32).collect(),
            None => (0..cols).map(|c| (c / (cols / groups)) as i32).collect(),
        };
        Self { shape: [rows, cols], bits: grid.bits, groups, codes: unpacked, zeros, scale: grid.scale, scales, index }
    }
}
