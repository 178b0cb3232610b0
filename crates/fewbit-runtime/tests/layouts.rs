//! Tiny checkpoints as other tools quantize and write them (tools/make_layout_goldens.py) against the logits of these tools.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_format::{Online, Storage};
use fewbit_graph::Part;
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Runtime};
use fewbit_store::{ModelFile, Safetensors};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/layouts").join(case)
}

/// The largest difference from `NAME_0` and `NAME_1`, in units of the largest logit.
fn off(case: &str, arithmetic: Arithmetic, name: &str) -> f32 {
    off_at_first(usize::MAX, case, arithmetic, name)
}

/// The same over so many positions, if there are more.
fn off_at_first(positions: usize, case: &str, arithmetic: Arithmetic, name: &str) -> f32 {
    let golden = Safetensors::open(&folder(case).join("golden.safetensors")).unwrap();
    let runtime = Runtime::load(&ModelFile::open(&folder(case)).unwrap(), arithmetic, Arc::new(Team::new(2))).unwrap();
    let of = |i: usize| {
        let ids = golden.tensor(&format!("input_ids_{i}")).unwrap().to_i32().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|i| i as u32).collect();
        let expected = golden.tensor(&format!("{name}_{i}")).unwrap().to_f32().unwrap();
        let rows: Vec<usize> = (0..ids.len()).collect();
        let logits = runtime.logits(&Batch::one(0, ids.len()), &ids, None, &rows).unwrap();
        let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let width = expected.len() / ids.len();
        let pairs = logits.data().iter().zip(&expected).take(positions.saturating_mul(width));
        pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
    };
    of(0).max(of(1))
}

#[test]
fn weights_are_those_of_the_tool() {
    let cases = ["hqq-widths", "hqq-columns", "torchao-weights", "ct-naive", "ct-hadamard"];
    for case in cases {
        for arithmetic in [Arithmetic::Exact, Arithmetic::WeightsOnly] {
            let off = off(case, arithmetic, "logits");
            assert!(off <= 1e-5, "{case}, {arithmetic:?}: {off}");
        }
    }
}

#[test]
fn inputs_are_rounded_as_the_tool_does() {
    // Sums in another order put some number onto the other side of a tie sooner or later; then one code in 127 differs, and so
    // does what later positions read of it.
    let exact = off_at_first(3, "torchao-dynamic", Arithmetic::Exact, "logits");
    assert!(exact <= 1e-5, "{exact}");
    let behind_a_tie = off("torchao-dynamic", Arithmetic::Exact, "logits");
    assert!(behind_a_tie <= 0.05, "{behind_a_tie}");
    let weights = off("torchao-dynamic", Arithmetic::WeightsOnly, "weights");
    assert!(weights <= 1e-5, "{weights}");
    // The two are not the same.
    assert!(off_at_first(3, "torchao-dynamic", Arithmetic::WeightsOnly, "logits") > 1e-3);
}

/// The storage of a linear of the only block.
fn storage(case: &str, linear: &str) -> (Storage, Vec<Online>) {
    let file = ModelFile::open(&folder(case)).unwrap();
    let weight = file.model().blocks[0].weights.iter().position(|w| w.name.ends_with(linear)).unwrap();
    let linear = file.linear(Part::Block(0), weight).unwrap();
    (linear.bands[0].storage.clone(), linear.input)
}

#[test]
fn codes_stay_codes_where_a_grid_holds_them() {
    for (linear, bits) in
        [("q_proj", 8), ("k_proj", 4), ("v_proj", 3), ("o_proj", 2), ("gate_proj", 1), ("up_proj", 2), ("down_proj", 5)]
    {
        assert!(
            matches!(storage("hqq-widths", linear).0, Storage::Int(codes) if codes.grid().bits == bits),
            "{linear}"
        );
    }
    let is_codes = |linear| matches!(storage("hqq-columns", linear).0, Storage::Int(_));
    let found = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(is_codes);
    // Along the inputs, in groups that divide 64 and 96: 32 does, 64 runs over the ends of rows of 96.
    assert_eq!(found, [false, false, false, false, false, true, false]);
    assert!(matches!(storage("torchao-weights", "o_proj").0, Storage::Float(_)));
    assert!(matches!(&storage("ct-hadamard", "q_proj").1[..], [Online::Hadamard { block: 16, .. }]));
}

#[test]
fn nothing_is_left_over() {
    for case in std::fs::read_dir(folder("")).unwrap() {
        let file = ModelFile::open(&case.unwrap().path()).unwrap();
        assert_eq!(file.notes(), [] as [String; 0], "{}", file.checkpoint().path().display());
    }
}
