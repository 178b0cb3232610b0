//! Blocks of every type of ggml, held against what ggml itself encodes and decodes.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the helpers of tests fail as tests do, and say what they skip"
)]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use fewbit_format::{GgmlBlocks, GgmlType};
use safetensors::SafeTensors;
use serde_json::Value as Json;

const SHAPE: [usize; 2] = [4, 512];

/// A file of the conformance data, or `None` with a line that says so.
fn conformance(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance/gguf/blocks")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

fn file_of(kind: GgmlType) -> Option<Vec<u8>> {
    let name = match kind {
        GgmlType::Q8_1 | GgmlType::Q8K => "activation_types",
        _ => kind.name(),
    };
    conformance(&format!("{name}.safetensors")).map(|path| std::fs::read(path).unwrap())
}

fn bytes_of(file: &SafeTensors<'_>, name: &str) -> Option<Bytes> {
    file.tensor(name).ok().map(|t| Bytes::copy_from_slice(t.data()))
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn decoded(blocks: &GgmlBlocks) -> Vec<f32> {
    let mut out = vec![0.0; SHAPE[0] * SHAPE[1]];
    blocks.decode_rows(0..SHAPE[0], &mut out);
    out
}

/// Every type that a file may hold, to the bit.
#[test]
fn blocks_decode_as_ggml_does() {
    for kind in GgmlType::ALL {
        let Some(file) = file_of(kind) else { return };
        let file = SafeTensors::deserialize(&file).unwrap();
        let mut compared = 0;
        for form in ["plain", "imatrix", kind.name()] {
            let Some(bytes) = bytes_of(&file, &format!("{form}.encoded")) else { continue };
            let blocks = GgmlBlocks::new(kind, SHAPE[0], SHAPE[1], bytes).unwrap();
            let expected = numbers(&bytes_of(&file, &format!("{form}.decoded")).unwrap());
            let differ = decoded(&blocks).iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differ, 0, "{} {form}", kind.name());
            compared += 1;
        }
        assert!(compared > 0, "{}", kind.name());
    }
}

/// The sum of squared errors, by column's importance.
fn error(decoded: &[f32], source: &[f32], importance: &[f32]) -> f64 {
    let square = |(v, w): (&f32, &f32)| (f64::from(*v) - f64::from(*w)).powi(2);
    let squares = decoded.iter().zip(source).map(square);
    squares.zip(importance.iter().cycle()).map(|(e, i)| e * f64::from(*i)).sum()
}

/// The same bytes as ggml's encoders.
#[test]
fn blocks_encode_as_ggml_does() {
    let Some(index) = conformance("index.json") else { return };
    let index: Json = serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
    let mut failed = Vec::new();
    for kind in GgmlType::ALL.into_iter().filter(|k| k.has_encoder()) {
        let Some(file) = file_of(kind) else { return };
        let file = SafeTensors::deserialize(&file).unwrap();
        let entry = index["types"].as_array().unwrap().iter().find(|t| t["type"] == kind.name()).unwrap();
        assert_eq!(entry["imatrix_changes_bytes"].as_bool().unwrap(), kind.heeds_importance(), "{}", kind.name());
        let source = numbers(&bytes_of(&file, "source").unwrap());
        let importance = bytes_of(&file, "imatrix").map(|b| numbers(&b));
        for form in ["plain", "imatrix"] {
            let Some(expected) = bytes_of(&file, &format!("{form}.encoded")) else { continue };
            let given = importance.as_deref().filter(|_| form == "imatrix");
            let blocks = GgmlBlocks::encode(kind, SHAPE[0], SHAPE[1], &source, given).unwrap();
            let differ = blocks.bytes.iter().zip(&expected).filter(|(a, b)| a != b).count();
            let ones = vec![1.0; SHAPE[1]];
            let ours = error(&decoded(&blocks), &source, given.unwrap_or(&ones));
            let theirs = entry[form][if given.is_some() { "weighted_sse" } else { "sse" }].as_f64().unwrap();
            println!("{} {form}: {differ} bytes differ, error {ours:.6e}, ggml's {theirs:.6e}", kind.name());
            if differ > 0 {
                failed.push(format!("{} {form}", kind.name()));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// One block of each type, without the conformance data.
#[test]
fn a_block_of_each_type_decodes_as_ggml_does() {
    let mut seen = 0;
    for line in include_str!("ggml_blocks.txt").lines().filter(|l| !l.starts_with('#')) {
        let [name, block, hash] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let kind = GgmlType::ALL.into_iter().find(|k| k.name() == name).unwrap();
        let bytes: Vec<u8> = block
            .as_bytes()
            .as_chunks::<2>()
            .0
            .iter()
            .map(|h| u8::from_str_radix(str::from_utf8(h).unwrap(), 16).unwrap())
            .collect();
        let mut values = vec![0.0f32; kind.block_len()];
        GgmlBlocks::new(kind, 1, kind.block_len(), bytes.into()).unwrap().decode_rows(0..1, &mut values);
        let decoded = values.iter().flat_map(|v| v.to_le_bytes());
        let found =
            decoded.fold(0xcbf2_9ce4_8422_2325, |hash: u64, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(format!("{found:016x}"), hash, "{name}");
        seen += 1;
    }
    // All but the two forms of activations.
    assert_eq!(seen, GgmlType::ALL.len() - 2);
}
