//! Models with LoRA adapters against PEFT, and against matrices that the adapters were added to.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_format::{Dtype, Group, IntCodes, IntGrid, QuantizedLinear, ScaleType, Storage, Tensor, Zeros};
use fewbit_graph::Part;
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Layer, ModelCache, NoHooks, Rotations, Runtime, Workspace};
use fewbit_store::{LoraAdapter, ModelFile, PartWeights, Safetensors};

/// Adapters of `tools/make_lora_fixture.py`, and the families that they are for.
const CASES: [(&str, &str); 4] = [("llama", "llama"), ("gpt2", "gpt2"), ("phi3", "phi3"), ("llama-gguf", "llama")];

fn tests(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(folder).join(name)
}

fn adapted(family: &str, adapters: &[(&str, f32)]) -> ModelFile {
    let mut file = ModelFile::open(&tests("families", family)).unwrap();
    for (name, scale) in adapters {
        file.attach(&LoraAdapter::open(&tests("adapters", name)).unwrap(), *scale).unwrap();
    }
    file
}

fn runtime(file: &ModelFile, arithmetic: Arithmetic, threads: usize) -> Runtime {
    Runtime::load(file, arithmetic, Arc::new(Team::new(threads))).unwrap()
}

/// Logits at every position.
fn logits(runtime: &Runtime, ids: &[u32]) -> Vec<f32> {
    let rows: Vec<usize> = (0..ids.len()).collect();
    runtime.logits(&Batch::one(0, ids.len()), ids, None, &rows).unwrap().data().to_vec()
}

fn golden(case: &str) -> (Vec<u32>, Vec<f32>) {
    let golden = Safetensors::open(&tests("adapters", case).join("golden.safetensors")).unwrap();
    let ids = golden.tensor("input_ids").unwrap().to_i32().unwrap().into_iter().map(|i| i as u32).collect();
    (ids, golden.tensor("logits").unwrap().to_f32().unwrap())
}

fn greatest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |m, v| m.max(v.abs()))
}

/// The greatest difference, as a share of the greatest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    worst / greatest(expected)
}

#[test]
fn logits_are_those_of_peft() {
    for (case, family) in CASES {
        let (ids, expected) = golden(case);
        let file = adapted(family, &[(case, 1.0)]);
        for (arithmetic, bound) in
            [(Arithmetic::Exact, 1e-5), (Arithmetic::WeightsOnly, 1e-5), (Arithmetic::Fast, 5e-3)]
        {
            let found = logits(&runtime(&file, arithmetic, 2), &ids);
            let worst = difference(&found, &expected);
            assert!(worst <= bound, "{case}, {arithmetic:?}: {worst}");
        }
    }
}

/// One token at a time and all at once, on one thread and on three: the same bits.
#[test]
fn steps_equal_the_whole() {
    for (case, family) in CASES {
        let (ids, _) = golden(case);
        let file = adapted(family, &[(case, 1.0)]);
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let [one, three] = [1, 3].map(|threads| runtime(&file, arithmetic, threads));
            let whole = logits(&three, &ids);
            let mut cache = ModelCache::new(&one, ids.len());
            let mut steps = Vec::new();
            for (at, id) in ids.iter().enumerate() {
                let step = one.logits(&Batch::one(at, 1), &[*id], Some(&mut [&mut cache]), &[0]).unwrap();
                steps.extend_from_slice(step.data());
            }
            assert!(steps == whole, "{case}, {arithmetic:?}");
        }
    }
}

#[test]
fn adapters_add_up() {
    let (ids, expected) = golden("llama");
    let of = |adapters: &[(&str, f32)]| logits(&runtime(&adapted("llama", adapters), Arithmetic::Exact, 2), &ids);
    let parts = of(&[("llama", 0.25), ("llama-gguf", 0.5), ("llama", 0.75), ("llama-gguf", -0.5)]);
    let worst = difference(&parts, &expected);
    assert!(worst <= 1e-5, "{worst}");
    assert_eq!(of(&[("llama", 0.0)]), of(&[]));
    assert!(difference(&of(&[]), &expected) > 0.1, "the adapter does something");
}

/// Beside integers of four bits: what the decoded matrices give to which the adapters were added.
#[test]
fn beside_integers_as_in_the_matrix() {
    for (case, family) in [("llama", "llama"), ("gpt2", "gpt2"), ("phi3", "phi3")] {
        let file = adapted(family, &[(case, 1.0)]);
        for part in [Part::Block(0), Part::Block(1)] {
            let mut beside = file.part(part).unwrap();
            beside.linears.iter_mut().for_each(|l| *l = integers(l));
            assert!(beside.linears.iter().all(|l| !l.adapters.is_empty()), "{case}: every linear has one");
            check_block(&file, part, &beside);
        }
    }
}

/// Experts have adapters of their own.
#[test]
fn beside_experts_as_in_the_matrix() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3}"#;
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let mut file = ModelFile::open(&tests("families", "mixtral")).unwrap();
    let experts = "base_model.model.model.layers.1.block_sparse_moe.experts";
    let tensors: Vec<(String, Vec<usize>)> = [("1.w1", 16, 24), ("1.w2", 24, 16), ("3.w3", 16, 24)]
        .into_iter()
        .flat_map(|(name, out, columns)| {
            let factor = |end: &str, shape| (format!("{experts}.{name}.lora_{end}.weight"), shape);
            [factor("A", vec![2, columns]), factor("B", vec![out, 2])]
        })
        .collect();
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &tensors);
    file.attach(&LoraAdapter::open(dir.path()).unwrap(), 1.0).unwrap();
    let beside = file.part(Part::Block(1)).unwrap();
    assert_eq!(beside.linears.iter().filter(|l| !l.adapters.is_empty()).count(), 3);
    check_block(&file, Part::Block(1), &beside);
}

/// f32 tensors of numbers between −1 and 1.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let (start, count) = (data.len(), shape.iter().product::<usize>());
        data.extend((0..count).flat_map(|i| ((start + i) as f32 * 0.7).sin().to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// Runs a block with adapters beside its linears, and with their sums as matrices.
fn check_block(file: &ModelFile, part: Part, beside: &PartWeights) {
    let merged = PartWeights { linears: beside.linears.iter().map(merged).collect(), ..beside.clone() };
    let without = |l: &Arc<QuantizedLinear>| Arc::new(QuantizedLinear { adapters: Vec::new(), ..(**l).clone() });
    let plain = PartWeights { linears: beside.linears.iter().map(without).collect(), ..beside.clone() };
    let graph = Arc::new(file.model().part(part).clone());
    let run = |weights: PartWeights, tokens: usize| {
        let batch = Batch::one(0, tokens);
        let layer = Layer::new(graph.clone(), weights, Arithmetic::Exact).unwrap();
        let rotations = Rotations::new(&file.model().ropes, &batch);
        let mut x: Vec<f32> = (0..tokens * file.model().hidden).map(|i| (i as f32 * 0.37).sin()).collect();
        layer.run(&Team::new(2), &batch, &rotations, None, &mut NoHooks, &mut Workspace::default(), &mut x);
        x
    };
    for tokens in [1, 5, 40] {
        let expected = run(merged.clone(), tokens);
        let worst = difference(&run(beside.clone(), tokens), &expected);
        assert!(worst <= 1e-5, "{part:?}, {tokens} tokens: {worst}");
        assert!(difference(&run(plain.clone(), tokens), &expected) > 1e-3, "the adapters do something");
    }
}

/// The sum of a linear's matrix and its adapters, in f32.
fn merged(linear: &Arc<QuantizedLinear>) -> Arc<QuantizedLinear> {
    let [rows, cols] = linear.shape;
    let mut sum = linear.decode();
    linear.adapters.iter().for_each(|a| a.add_rows(0..rows, sum.data_mut()));
    let tensor = Tensor::from_f32(Dtype::F32, &[rows, cols], sum.data()).unwrap();
    Arc::new(QuantizedLinear::uniform(Storage::Dense(tensor), linear.bias.clone()))
}

/// Integers in the place of a linear's weights.
fn integers(linear: &Arc<QuantizedLinear>) -> Arc<QuantizedLinear> {
    let [rows, cols] = linear.shape;
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7919 % 61 % 16) as u8).collect();
    let grid = IntGrid { bits: 4, group: Group::Row, symmetric: true, scale: ScaleType::F16 };
    let codes = IntCodes::new(rows, cols, grid, &codes, vec![1.0 / 64.0; rows], Zeros::Middle).unwrap();
    let (bias, adapters) = (linear.bias.clone(), linear.adapters.clone());
    Arc::new(QuantizedLinear { adapters, ..QuantizedLinear::uniform(Storage::Int(codes), bias) })
}
