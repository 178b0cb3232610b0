//! Importance matrices of llama.cpp: how large the inputs of linears are, by column, in both forms of file.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use fewbit_format::{Dtype, Error, Result};

use crate::mapped::Mapped;
use crate::{Elements, Gguf, GgufWriter, TensorPlan, Value};

/// Tokens of a chunk of which a file that does not say it is made.
const CHUNK_TOKENS: u32 = 512;

/// Sums of the squares of what matrices were multiplied with, by the name of their tensor in GGUF.
///
/// Source: llama.cpp, `tools/imatrix`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportanceMatrix {
    /// By the tensor's name, such as `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, Importances>,
    /// What text it was made of.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
}

/// Of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Importances {
    /// `Σ x²` by column, `[experts, columns]`; one expert where there are none.
    pub sums: Vec<f32>,
    /// Tokens that each expert got.
    pub counts: Vec<f32>,
}

impl Importances {
    /// Columns.
    pub fn columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Mean squares by column for an expert (0 where there are none); ones for an expert that got no token.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn means(&self, expert: usize) -> Vec<f32> {
        let (columns, count) = (self.columns(), self.counts[expert]);
        let sums = &self.sums[expert * columns..][..columns];
        if count > 0.0 { sums.iter().map(|s| s / count).collect() } else { vec![1.0; columns] }
    }

    /// Mean squares of one of `experts`, also from the older form of file, which has one count for all of them.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn means_of(&self, expert: usize, experts: usize) -> Vec<f32> {
        if self.counts.len() == experts {
            return self.means(expert);
        }
        let all = self.means(0);
        let columns = all.len() / experts;
        all[expert * columns..][..columns].to_vec()
    }
}

impl ImportanceMatrix {
    /// Reads a file of either form.
    ///
    /// # Errors
    /// If it is of neither, is truncated, or holds what is no sum of squares.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        let read = if file.bytes().starts_with(b"GGUF") {
            Self::of_gguf(&Gguf::open(path)?)
        } else {
            Self::of_legacy(file.bytes())
        };
        let matrix = read.map_err(|e| e.file(path))?;
        for (name, of_tensor) in &matrix.entries {
            if let Some(v) = of_tensor.sums.iter().chain(&of_tensor.counts).find(|v| !(v.is_finite() && **v >= 0.0)) {
                return Err(Error::input(format!("has {v} among its sums of squares"))
                    .hint("make the importance matrix again")
                    .tensor(name)
                    .file(path));
            }
        }
        Ok(matrix)
    }

    fn of_gguf(gguf: &Gguf) -> Result<Self> {
        if gguf.string("general.type")? != Some("imatrix") {
            return Err(Error::input("is a GGUF file, but no importance matrix").hint("llama-imatrix makes one"));
        }
        let number = |key: &str| Ok::<_, Error>(gguf.u64(key)?.and_then(|n| u32::try_from(n).ok()));
        let mut matrix = Self {
            entries: BTreeMap::new(),
            datasets: gguf.strings("imatrix.datasets")?.unwrap_or_default().to_vec(),
            chunks: number("imatrix.chunk_count")?.unwrap_or(0),
            chunk_tokens: number("imatrix.chunk_size")?.unwrap_or(CHUNK_TOKENS),
        };
        let find = |name: &str| gguf.tensors().iter().find(|t| t.name == name);
        for tensor in gguf.tensors() {
            let Some(name) = tensor.name.strip_suffix(".in_sum2") else { continue };
            let counts = find(&format!("{name}.counts"))
                .ok_or_else(|| Error::input("has sums, and no count of the tokens").tensor(name))?;
            let floats = |t: &crate::GgufTensor| match t.elements {
                Elements::Plain(Dtype::F32) => Ok(f32s(&gguf.bytes(t))),
                other => Err(Error::input(format!("is {}, where F32 is needed", other.name())).tensor(&t.name)),
            };
            let of_tensor = Importances { sums: floats(tensor)?, counts: floats(counts)? };
            if of_tensor.counts.is_empty() || !of_tensor.sums.len().is_multiple_of(of_tensor.counts.len()) {
                let (sums, counts) = (of_tensor.sums.len(), of_tensor.counts.len());
                return Err(Error::input(format!("has {sums} sums for {counts} experts")).tensor(name));
            }
            matrix.entries.insert(name.to_owned(), of_tensor);
        }
        Ok(matrix)
    }

    /// The older form: means, each times the number of chunks.
    fn of_legacy(bytes: &[u8]) -> Result<Self> {
        let mut rest = Fields(bytes);
        let (mut matrix, count) = (Self { chunk_tokens: CHUNK_TOKENS, ..Self::default() }, rest.length()?);
        for _ in 0..count {
            let name = rest.text()?;
            let (calls, columns) = (rest.length()?, rest.length()?);
            let sums = f32s(rest.take(columns.saturating_mul(4))?);
            matrix.entries.insert(name, Importances { sums, counts: vec![calls.max(1) as f32] });
        }
        // Files of the first versions end here.
        if !rest.0.is_empty() {
            matrix.chunks = rest.length()? as u32;
            matrix.datasets.push(rest.text()?);
        }
        Ok(matrix)
    }

    /// Writes it: in the older form where the name ends in `.dat`, else as GGUF. Written aside, then renamed.
    ///
    /// # Errors
    /// If the file exists, or the disk refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|e| e == "dat") { self.write_legacy(path) } else { self.write_gguf(path) }
    }

    fn write_gguf(&self, path: &Path) -> Result<()> {
        let metadata = [
            ("general.type".to_owned(), Value::String("imatrix".to_owned())),
            ("imatrix.datasets".to_owned(), Value::Strings(self.datasets.clone())),
            ("imatrix.chunk_count".to_owned(), Value::U32(self.chunks)),
            ("imatrix.chunk_size".to_owned(), Value::U32(self.chunk_tokens)),
        ];
        let plan = |name: String, shape| TensorPlan { name, elements: Elements::Plain(Dtype::F32), shape };
        let plans = self.entries.iter().flat_map(|(name, of_tensor)| {
            let (experts, columns) = (of_tensor.counts.len(), of_tensor.columns());
            let sums = if experts == 1 { vec![columns] } else { vec![experts, columns] };
            [plan(format!("{name}.in_sum2"), sums), plan(format!("{name}.counts"), vec![experts, 1])]
        });
        let mut writer = GgufWriter::create(path, &metadata, &plans.collect::<Vec<_>>())?;
        for of_tensor in self.entries.values() {
            writer.tensor(&bytes_of(&of_tensor.sums))?;
            writer.tensor(&bytes_of(&of_tensor.counts))?;
        }
        writer.finish()
    }

    fn write_legacy(&self, path: &Path) -> Result<()> {
        if path.exists() {
            return Err(Error::input("exists already").hint("choose another name, or remove it").file(path));
        }
        let mut bytes = Vec::new();
        let put = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as i32).to_le_bytes());
        put(&mut bytes, self.entries.len());
        for (name, of_tensor) in &self.entries {
            put(&mut bytes, name.len());
            bytes.extend(name.as_bytes());
            let calls = self.chunks.max(1);
            put(&mut bytes, calls as usize);
            put(&mut bytes, of_tensor.sums.len());
            let means = (0..of_tensor.counts.len()).flat_map(|e| of_tensor.means(e));
            bytes.extend(bytes_of(&means.map(|m| m * calls as f32).collect::<Vec<_>>()));
        }
        let dataset = self.datasets.last().map_or("", String::as_str);
        put(&mut bytes, self.chunks as usize);
        put(&mut bytes, dataset.len());
        bytes.extend(dataset.as_bytes());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let aside = folder.join(format!(".{}.partial", path.file_name().unwrap_or_default().to_string_lossy()));
        let failed = |e: std::io::Error| {
            let _ = std::fs::remove_file(&aside);
            Error::io("writing", path, &e)
        };
        let write = || std::fs::File::create(&aside).and_then(|mut f| f.write_all(&bytes).and_then(|()| f.sync_all()));
        write().and_then(|()| std::fs::rename(&aside, path)).map_err(failed)
    }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// What is left of a file of the older form.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            Error::input("is neither a GGUF file nor a whole importance matrix of the older form")
                .hint("take the file that llama-imatrix or `fewbit calibrate` wrote")
        })?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number that counts something.
    fn length(&mut self) -> Result<usize> {
        let bytes = self.take(4)?;
        let n = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        usize::try_from(n).map_err(|_| Error::input(format!("counts {n} of something")))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.length()?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| Error::input("has a name that is no UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ImportanceMatrix {
        let entry = |counts: Vec<f32>, columns: usize| {
            let sums = (0..columns * counts.len()).map(|i| (1 + i) as f32 * counts[i / columns]).collect();
            Importances { sums, counts }
        };
        let entries = [
            ("blk.0.attn_q.weight".to_owned(), entry(vec![96.0], 5)),
            ("blk.0.ffn_up_exps.weight".to_owned(), entry(vec![64.0, 0.0, 32.0], 4)),
        ];
        let datasets = vec!["a text".to_owned()];
        ImportanceMatrix { entries: entries.into(), datasets, chunks: 3, chunk_tokens: 32 }
    }

    #[test]
    fn both_forms_come_back() {
        let (dir, matrix) = (tempfile::tempdir().unwrap(), example());
        let path = dir.path().join("m.gguf");
        matrix.write(&path).unwrap();
        assert_eq!(ImportanceMatrix::open(&path).unwrap(), matrix);
        assert!(matrix.write(&path).unwrap_err().to_string().contains("exists already"));
        let path = dir.path().join("m.dat");
        matrix.write(&path).unwrap();
        let back = ImportanceMatrix::open(&path).unwrap();
        assert_eq!((back.chunks, &back.datasets), (3, &matrix.datasets));
        assert_eq!(back.entries["blk.0.attn_q.weight"].means(0), [1.0, 2.0, 3.0, 4.0, 5.0]);
        // Experts lie in one row there, and what no token reached has ones.
        let all = back.entries["blk.0.ffn_up_exps.weight"].means(0);
        assert_eq!(all, [1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0, 9.0, 10.0, 11.0, 12.0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_importance_matrix_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dat");
        example().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for end in 1..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            // The last two fields may be absent.
            let is_older = end == whole.len() - 8 - "a text".len();
            assert_eq!(ImportanceMatrix::open(&path).is_ok(), is_older, "{end} bytes");
        }
        std::fs::write(&path, [255; 64]).unwrap();
        assert!(ImportanceMatrix::open(&path).unwrap_err().to_string().contains("counts -1"));
        let mut bad = example();
        bad.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[2] = f32::NAN;
        let path = dir.path().join("nan.gguf");
        bad.write(&path).unwrap();
        let e = ImportanceMatrix::open(&path).unwrap_err().to_string();
        assert!(e.contains("NaN among its sums of squares") && e.contains("blk.0.attn_q.weight"), "{e}");
    }

    /// Files that llama.cpp wrote, and the importances that it takes from them.
    #[test]
    fn files_of_llama_cpp_have_its_importances() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/gguf/imatrix");
        if !folder.exists() {
            eprintln!("skipped: {} is absent", folder.display());
            return;
        }
        let values = crate::Safetensors::open(&folder.join("values.safetensors")).unwrap();
        let mut count = 0;
        for name in ["tiny", "synthetic"] {
            for form in ["gguf", "dat"] {
                let matrix = ImportanceMatrix::open(&folder.join(format!("{name}.imatrix.{form}"))).unwrap();
                for (tensor, of_tensor) in &matrix.entries {
                    let want = values.tensor(&format!("{name}.{tensor}")).unwrap().to_f32().unwrap();
                    let found: Vec<f32> = (0..of_tensor.counts.len()).flat_map(|e| of_tensor.means(e)).collect();
                    assert_eq!(found.len(), want.len(), "{name} {form} {tensor}");
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
                    assert!(found.iter().zip(&want).all(close), "{name} {form} {tensor}");
                    count += 1;
                }
            }
        }
        assert!(count > 20, "{count}");
    }
}
