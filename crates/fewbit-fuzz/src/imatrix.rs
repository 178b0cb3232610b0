use fewbit_store::ImportanceMatrix;

/// An importance matrix in either form; what is read is written and read again.
pub fn imatrix(data: &[u8]) {
    let path = crate::files::write(&[("m", data)]).join("m");
    let Ok(matrix) = ImportanceMatrix::open(&path) else { return };
    for entry in matrix.entries.values() {
        for expert in 0..entry.counts.len() {
            assert_eq!(entry.means(expert).len(), entry.columns());
        }
    }
    for name in ["n.gguf", "n.dat"] {
        let path = path.with_file_name(name);
        // Names longer than GGUF's, or none, cannot be written; sums may overflow.
        if matrix.write(&path).is_ok() {
            let _ = ImportanceMatrix::open(&path);
        }
    }
}
