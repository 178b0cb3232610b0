use fewbit_store::{Checkpoint, Safetensors};

/// A folder: the text of an index (none if empty), the header of a file (none if empty: the bytes are the whole file),
/// its data. The file lies there under two names.
pub fn safetensors(data: &[u8]) {
    let Some(([index, header], data)) = crate::texts(data) else { return };
    let mut file = Vec::new();
    if !header.is_empty() {
        file.extend((header.len() as u64).to_le_bytes());
        file.extend(header.as_bytes());
    }
    file.extend(data);
    let mut files: Vec<(&str, &[u8])> = vec![("config.json", b"{}"), ("model.safetensors", &file)];
    if !index.is_empty() {
        files.extend([("a.safetensors", &*file), ("model.safetensors.index.json", index.as_bytes())]);
    }
    let folder = crate::files::write(&files);
    if let Ok(file) = Safetensors::open(&folder.join("model.safetensors")) {
        for name in file.names() {
            let tensor = file.tensor(name).expect("a name that is listed is there");
            assert_eq!(tensor.len() * tensor.dtype.size_bytes(), tensor.bytes.len());
        }
    }
    if let Ok(checkpoint) = Checkpoint::open(&folder) {
        look(&checkpoint);
    }
}

/// Asks a checkpoint for everything about each of its tensors.
pub(crate) fn look(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).expect("a name that is listed is there");
        let _ = checkpoint.non_finite(name);
        if let Ok(tensor) = checkpoint.tensor(name) {
            let _ = (tensor.to_f32(), tensor.to_i32());
        }
        if let Ok(storage) = checkpoint.storage(name) {
            let [rows, cols] = storage.shape();
            assert_eq!(shape.iter().product::<usize>(), rows * cols);
            if rows > 0 && (1..1 << 16).contains(&cols) {
                storage.decode_rows(rows - 1..rows, &mut vec![0.0; cols]);
            }
        }
        checkpoint.drop_pages(name);
    }
}
