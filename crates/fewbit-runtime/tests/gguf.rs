//! Logits of small GGUF files of llama.cpp's own tools against a forward in f64 on the weights as they are decoded.

use std::path::Path;
use std::sync::Arc;

use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Runtime};
use fewbit_store::{ModelFile, Safetensors};

#[test]
fn logits_are_those_of_the_decoded_weights() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance/gguf/tiny"));
    if !folder.exists() {
        println!("skipped: {} is not there", folder.display());
        return;
    }
    for (name, file) in [
        ("tiny-f16", "tiny-f16-00001-of-00002.gguf"),
        ("tiny-q4_0", "tiny-q4_0.gguf"),
        ("tiny-q4_k_m", "tiny-q4_k_m.gguf"),
        ("tiny-q6_k", "tiny-q6_k.gguf"),
        ("tiny-iq4_xs", "tiny-iq4_xs.gguf"),
        ("stories260k-q4_k_m", "stories260k-q4_k_m.gguf"),
    ] {
        let golden = Safetensors::open(&folder.join(format!("{name}.golden.safetensors"))).unwrap();
        let ids: Vec<u32> =
            golden.tensor("input_ids").unwrap().to_i32().unwrap().into_iter().map(|i| i as u32).collect();
        let expected = golden.tensor("exact.logits_last").unwrap();
        let rows: Vec<usize> = (ids.len() - expected.shape[0]..ids.len()).collect();
        let expected = expected.to_f32().unwrap();
        let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (arithmetic, bound) in [(Arithmetic::WeightsOnly, 1e-4), (Arithmetic::Fast, 0.1)] {
            let model = ModelFile::open(&folder.join(file)).unwrap();
            let runtime = Runtime::load(&model, arithmetic, Arc::new(Team::new(2))).unwrap();
            let logits = runtime.logits(&Batch::one(0, ids.len()), &ids, None, &rows).unwrap();
            let worst = logits.data().iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            println!("{name}, {arithmetic:?}: off by {worst} of {scale}");
            assert!(worst <= bound * scale, "{name}, {arithmetic:?}: {worst} of {scale}");
        }
    }
}
